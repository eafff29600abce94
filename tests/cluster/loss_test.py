# SPDX-License-Identifier: BSD-3-Clause
"""What programs, status and the log see when a replica is lost, by each policy (P6), and that nothing is forgotten (trap 3, P3)."""

import errno
import json
import os
import signal
import subprocess

from lib.cluster import ClusterTest, CommandFailed, main, wait
from writers import FORCE_PMEM

DEADLINE = 0.6  # seconds; short, because every failure in here takes that long
DATA_PORT = 7401
ESTABLISHED = "01"  # in /proc/net/tcp
FSYNC = 74  # in /proc/PID/syscall


class LossTest(ClusterTest):
    def short(self, on_loss, **options):
        return self.cluster(on_loss=on_loss, deadline=f"{int(DEADLINE * 1000)}ms", **options)

    def lose(self, cluster, how):
        """Takes v0's replica away; a function that brings it back."""
        if how == "killed":
            cluster.kill(cluster.replica)
            return lambda: cluster.start(cluster.replica)
        cluster.partition(cluster.primary, cluster.replica)
        return lambda: cluster.heal(cluster.primary, cluster.replica)

    def assert_fails(self, outcome, seconds=DEADLINE):
        """The call failed with EIO, not before its time."""
        self.assertEqual(outcome.errno, errno.EIO, outcome)
        self.assertGreaterEqual(outcome.seconds, seconds)

    def assert_page(self, cluster, path, page, text, node=None):
        with open(cluster.backing(node or cluster.replica, path), "rb") as file:
            file.seek(page * 4096)
            self.assertEqual(file.read(len(text)).decode(errors="replace"), text)

    def assert_becomes_equal(self, cluster):
        for node in cluster.replicas:
            wait(lambda other=node: not cluster.differences(cluster.primary, other), f"{node} equal")
        self.assertEqual(cluster.verify(), [])

    def suspended(self, cluster):
        return cluster.status()["suspended_syncs"]


class Fail(LossTest):
    def fails_and_recovers(self, how):
        cluster = self.short("fail")
        mapped = cluster.stepper("mapped", mapped=True)
        plain = cluster.stepper("plain", preload=False)
        written = cluster.stepper("written", preload=False)
        maker = cluster.stepper("other", preload=False)
        flusher = cluster.writer("pmem_writer", "flushed", "--how", "persist", env=FORCE_PMEM)
        flusher.wait_for(10)
        self.assertEqual([mapped.do("store", 0, "old"), mapped.do("msync", 0), plain.do("write", 0, "old"), maker.do("mkdir", cluster.mounted("a"))],
                         [0, 0, 0, 0])

        bring_back = self.lose(cluster, how)
        mapped.do("store", 0, "new")
        mapped.begin("msync", 0)
        plain.begin("fsync")
        written.begin("write", 1, "new")
        maker.begin("mkdir", cluster.mounted("b"))
        for program in (mapped, plain, written, maker):
            self.assert_fails(program.outcome())
        self.assertEqual(flusher.finish(), -signal.SIGBUS, flusher.errors())
        cluster.wait_state(cluster.replica, "disconnected")
        self.assertIn(cluster.replica, cluster.replica_status(cluster.replica)["reason"])
        self.assertTrue(cluster.events(cluster.primary, "replica_state", node=cluster.replica, state="disconnected"))
        self.assertTrue(cluster.events(cluster.primary, "sync_failed"))
        self.assertEqual(mapped.do("msync", 0), errno.EIO)  # not for free because the page looks clean (trap 3)

        bring_back()
        cluster.wait_in_sync()
        self.assertEqual(mapped.do("msync", 0), 0)
        self.assert_page(cluster, "mapped", 0, "new")
        self.assertEqual(written.do("fsync"), 0)
        self.assert_page(cluster, "written", 1, "new")
        self.assertEqual(maker.do("mkdir", cluster.mounted("b/c")), 0)
        self.assertTrue(os.path.isdir(cluster.backing(cluster.replica, "b/c")))
        cluster.check("pmem_writer", cluster.replica, "flushed", flusher.acknowledged())
        self.assert_becomes_equal(cluster)
        self.assertEqual(self.suspended(cluster), 0)

    def test_P6_every_kind_of_sync_fails_when_the_replica_is_killed_and_the_next_one_brings_all(self):
        self.fails_and_recovers("killed")

    def test_P6_every_kind_of_sync_fails_when_the_network_is_cut_and_the_next_one_brings_all(self):
        self.fails_and_recovers("cut off")

    def test_P1_each_of_two_replicas_has_every_commit_and_the_loss_of_one_fails_syncs(self):
        cluster = self.short("fail", nodes=3)
        first, second = cluster.replicas
        writer = cluster.writer("mmap_writer", "file", "--writers", "2", "--sync", "all")
        plain = cluster.writer("raw_static", "plain", preload=False)
        stepper = cluster.stepper("steps", mapped=True)
        writer.wait_for(50, 2)
        plain.wait_for(50)
        for replica in (first, second):
            cluster.check("mmap_writer", replica, "file", writer.acknowledged(2))
            cluster.check("raw_static", replica, "plain", plain.acknowledged())
        cluster.kill(second)
        stepper.do("store", 0, "new")
        stepper.begin("msync", 0)
        self.assert_fails(stepper.outcome())
        self.assertNotEqual(writer.finish(), 0)
        self.assertNotEqual(plain.finish(), 0)
        cluster.wait_state(second, "disconnected")
        self.assertEqual(cluster.replica_status(first)["state"], "in-sync")
        for replica in (first, second):
            cluster.check("mmap_writer", replica, "file", writer.acknowledged(2))
            cluster.check("raw_static", replica, "plain", plain.acknowledged())
        cluster.start(second)
        cluster.wait_in_sync()
        self.assertEqual(stepper.do("msync", 0), 0)
        for replica in (first, second):
            self.assert_page(cluster, "steps", 0, "new", replica)
        self.assert_becomes_equal(cluster)


class Suspend(LossTest):
    def cut_off_with_waiting_syncs(self, cluster):
        """A preloaded program in msync and a plain one in fsync and one in mkdir, all of which wait beyond the deadline."""
        mapped = cluster.stepper("mapped", mapped=True)
        plain = cluster.stepper("plain", preload=False)
        maker = cluster.stepper("other", preload=False)
        self.assertEqual([mapped.do("store", 0, "new"), plain.do("write", 0, "new")], [0, 0])
        cluster.partition(cluster.primary, cluster.replica)
        mapped.begin("msync", 0)
        plain.begin("fsync")
        maker.begin("mkdir", cluster.mounted("made"))
        return mapped, plain, maker

    def test_P6_syncs_wait_visibly_and_go_on_when_the_replica_is_back(self):
        cluster = self.short("suspend", suspend="10m")
        programs = self.cut_off_with_waiting_syncs(cluster)
        wait(lambda: self.suspended(cluster) == len(programs), lambda: f"all wait: {cluster.status()}")
        self.assertEqual(len(cluster.events(cluster.primary, "sync_suspended")), 1)
        cluster.wait_state(cluster.replica, "disconnected")
        self.assertEqual([program.busy() for program in programs], [True] * len(programs))
        cluster.heal(cluster.primary, cluster.replica)
        self.assertEqual([program.outcome().errno for program in programs], [0] * len(programs))
        self.assert_page(cluster, "mapped", 0, "new")
        self.assertTrue(os.path.isdir(cluster.backing(cluster.replica, "made")))
        wait(lambda: self.suspended(cluster) == 0, lambda: f"none waits: {cluster.status()}")
        cluster.wait_in_sync()
        self.assert_becomes_equal(cluster)

    def test_P6_a_program_that_waits_can_be_killed_at_once_and_is_counted_no_more(self):
        cluster = self.short("suspend", suspend="10m")
        programs = self.cut_off_with_waiting_syncs(cluster)
        wait(lambda: self.suspended(cluster) == len(programs), lambda: f"all wait: {cluster.status()}")
        for program in programs:
            program.kill(seconds=10)
        wait(lambda: self.suspended(cluster) == 0, lambda: f"none waits: {cluster.status()}")
        cluster.heal(cluster.primary, cluster.replica)
        cluster.wait_in_sync()
        self.assert_becomes_equal(cluster)

    def test_P6_a_killed_program_ends_no_sync_but_its_own(self):
        cluster = self.short("suspend", suspend="10m")
        programs = [cluster.stepper(f"file{number}", preload=False) for number in range(3)]
        folders = [cluster.mounted(f"folder{number}") for number in range(3)]
        for folder in folders:
            os.mkdir(folder)
        cluster.partition(cluster.primary, cluster.replica)
        programs[0].begin("fsync_directory", folders[0])
        wait(lambda: self.suspended(cluster) > 0, "the first one waits")
        for program, folder in zip(programs[1:], folders[1:]):  # these wait for what the first one sends
            program.begin("fsync_directory", folder)
            wait(lambda waiting=program: waiting.system_call() == FSYNC, "it waits")
        programs[1].kill(seconds=10)
        programs[0].kill(seconds=10)
        wait(lambda: self.suspended(cluster) == 1, "the last one waits")
        self.assertTrue(programs[2].busy())
        cluster.heal(cluster.primary, cluster.replica)
        self.assertEqual(programs[2].outcome().errno, 0)
        self.assertEqual(self.suspended(cluster), 0)
        self.assert_becomes_equal(cluster)

    def test_P6_syncs_fail_when_the_time_to_suspend_has_run_out(self):
        cluster = self.short("suspend", suspend="900ms")
        programs = self.cut_off_with_waiting_syncs(cluster)
        for program in programs:
            self.assert_fails(program.outcome(), DEADLINE + 0.9)
        self.assertEqual(self.suspended(cluster), 0)
        cluster.heal(cluster.primary, cluster.replica)
        cluster.wait_in_sync()
        self.assertEqual(programs[0].do("msync"), 0)
        self.assert_page(cluster, "mapped", 0, "new")
        self.assert_becomes_equal(cluster)


class Short(LossTest):
    """Losses that end before the deadline."""

    def data_connections(self, cluster):
        """How many connections the primary's node has to the data port."""
        pid = cluster.daemon(cluster.primary)
        found = 0
        for table in ("tcp", "tcp6"):
            with open(f"/proc/{pid}/net/{table}", encoding="ascii") as file:
                found += sum(words[2].endswith(f":{DATA_PORT:04X}") and words[3] == ESTABLISHED
                             for words in map(str.split, file) if words[0] != "sl")
        return found

    def losses(self, cluster):
        return [line for line in cluster.events(cluster.primary, "replica_state") if "state=in-sync" not in line]

    def writers(self, cluster):
        return [cluster.writer("mmap_writer", "mapped", "--sync", "all"), cluster.writer("raw_static", "plain", preload=False)]

    def assert_go_on(self, cluster, writers):
        for writer in writers:
            writer.wait_for(writer.acknowledged()[0] + 20)
        for writer, (program, path) in zip(writers, (("mmap_writer", "mapped"), ("raw_static", "plain"))):
            writer.kill()
            cluster.check(program, cluster.replica, path, writer.acknowledged())
        self.assert_becomes_equal(cluster)

    def test_P6_a_cut_shorter_than_the_deadline_is_replayed_and_changes_no_state(self):
        cluster = self.cluster(on_loss="fail", deadline="20s")
        writers = self.writers(cluster)
        for writer in writers:
            writer.wait_for(20)
        before = self.losses(cluster)
        cluster.partition(cluster.primary, cluster.replica)
        wait(lambda: self.data_connections(cluster) == 0, "connections have broken")
        self.assertEqual(cluster.replica_status(cluster.replica)["state"], "in-sync")
        cluster.heal(cluster.primary, cluster.replica)
        self.assert_go_on(cluster, writers)
        self.assertEqual(self.losses(cluster), before)
        self.assertGreaterEqual(cluster.replica_status(cluster.replica)["reconnects"], 1)

    def test_P6_a_network_that_fails_is_left_for_the_other_one(self):
        cluster = self.cluster(on_loss="fail", deadline="20s")
        writers = self.writers(cluster)
        for writer in writers:
            writer.wait_for(20)
        before = self.losses(cluster)
        subprocess.run(["ip", "-n", os.path.basename(cluster.node(cluster.replica).netns), "link", "set", "eth0", "down"], check=True)
        self.assert_go_on(cluster, writers)
        self.assertEqual(self.losses(cluster), before)


class Silence(LossTest):
    """A daemon that is stopped and has nothing to do."""

    def test_P6_a_stopped_replica_daemon_shows_and_comes_back(self):
        cluster = self.short("suspend")
        cluster.signal(cluster.replica, signal.SIGSTOP)
        try:
            wait(lambda: cluster.events(cluster.primary, "replica_state", state="disconnected"), "the loss is logged")
        finally:
            cluster.signal(cluster.replica, signal.SIGCONT)
        cluster.wait_in_sync()
        self.assert_becomes_equal(cluster)

    def own_state(self, cluster):
        """v0's replica as its own daemon sees it."""
        config = os.path.join(cluster.directory, cluster.replica, "pmirrord.toml")
        return json.loads(cluster.pmirror("status", "--config", config, "--json"))["volumes"][0]["replicas"][0]

    def test_P6_a_stopped_primary_daemon_shows_on_the_replica_and_comes_back(self):
        cluster = self.short("suspend")
        self.assertEqual(self.own_state(cluster)["state"], "in-sync")
        cluster.signal(cluster.primary, signal.SIGSTOP)
        try:
            wait(lambda: self.own_state(cluster)["state"] == "disconnected", "the replica knows")
            self.assertIn("ms", self.own_state(cluster)["reason"])
        finally:
            cluster.signal(cluster.primary, signal.SIGCONT)
        wait(lambda: self.own_state(cluster)["state"] == "in-sync", "the replica knows")
        cluster.wait_in_sync()
        self.assert_becomes_equal(cluster)


class Told(LossTest):
    def test_P5_verify_lists_what_somebody_changed_behind_the_replicas_back(self):
        cluster = self.short("suspend")
        stepper = cluster.stepper("file", preload=False)
        self.assertEqual([stepper.do("write", 3, "good"), stepper.do("fsync"), cluster.verify()], [0, 0, []])
        with open(cluster.backing(cluster.replica, "file"), "r+b") as file:
            file.seek(3 * 4096)
            file.write(b"bad!")
        lines = cluster.verify()
        self.assertIn(f"{cluster.replica}: /file: data {3 * 4096}+4096", lines)
        self.assertEqual([stepper.do("write", 3, "good"), stepper.do("fsync"), cluster.verify()], [0, 0, []])

    def test_P6_ping_and_status_tell_how_things_stand(self):
        cluster = self.short("suspend")
        stepper = cluster.stepper("file", mapped=True)
        before = cluster.replica_status(cluster.replica)["durable_seq"]
        self.assertEqual([stepper.do("store", 0, "new"), stepper.do("msync", 0)], [0, 0])
        status = cluster.status()
        self.assertEqual({key: status[key] for key in ("name", "primary", "rpo", "role", "on_loss", "suspended_syncs", "mapped_processes")},
                         {"name": "v0", "primary": cluster.primary, "rpo": "0", "role": "primary", "on_loss": "suspend",
                          "suspended_syncs": 0, "mapped_processes": 1})
        replica = status["replicas"][0]
        self.assertEqual({key: replica[key] for key in ("node", "state", "dirty_bytes", "durable_seq", "placement", "reason")},
                         {"node": cluster.replica, "state": "in-sync", "dirty_bytes": 0, "durable_seq": before + 1,
                          "placement": "message", "reason": ""})
        answer = json.loads(cluster.pmirror("ping", cluster.replica, "--sandbox", cluster.directory, "--json"))
        self.assertGreater(answer["durable_ns"], 0)
        cluster.signal(cluster.replica, signal.SIGSTOP)
        try:
            with self.assertRaises(CommandFailed) as refused:
                cluster.pmirror("ping", cluster.replica, "--sandbox", cluster.directory)
            self.assertEqual(refused.exception.status, 1)
            stepper.do("store", 0, "newer")
            stepper.begin("msync", 0)
            wait(lambda: self.suspended(cluster) == 1, "the sync waits")
            self.assertGreater(len(cluster.pmirror("status", "--sandbox", cluster.directory).splitlines()), 2)
        finally:
            cluster.signal(cluster.replica, signal.SIGCONT)
        self.assertEqual(stepper.outcome().errno, 0)


if __name__ == "__main__":
    main()
