# SPDX-License-Identifier: BSD-3-Clause
"""Daemons and programs that end, cleanly or not, and start again: nothing acknowledged is lost (P3), copies become equal by themselves or
are told not to be (P5, trap 7), and nothing hangs (P6)."""

import errno
import os
import signal
import subprocess

from lib.cluster import ClusterTest, main, wait

DEADLINE = 0.6  # seconds


class RestartTest(ClusterTest):
    def assert_becomes_equal(self, cluster):
        wait(lambda: not cluster.differences(cluster.primary, cluster.replica), "copies are equal")
        self.assertEqual(cluster.verify(), [])

    def ids(self, cluster):
        """path -> inode number, as programs see them."""
        found = {}
        for folder, folders, files in os.walk(cluster.mounted("")):
            for name in folders + files:
                path = os.path.join(folder, name)
                found[path] = os.lstat(path).st_ino
        return found

    def load(self, cluster):
        """Programs that commit without end: path -> (checker, its Writer)."""
        return {"mapped": ("mmap_writer", cluster.writer("mmap_writer", "mapped", "--sync", "all")),
                "plain": ("raw_static", cluster.writer("raw_static", "plain", preload=False))}

    def assert_nothing_is_lost(self, cluster, load):
        for path, (program, writer) in load.items():
            cluster.check(program, cluster.replica, path, writer.acknowledged())


class Clean(RestartTest):
    def stop_all(self, cluster):
        cluster.stop(cluster.primary)  # before the replica, which has to hear of it
        cluster.stop(cluster.replica)

    def start_all(self, cluster):
        cluster.start(cluster.replica)
        cluster.start(cluster.primary)
        cluster.wait_in_sync()

    def test_P3_after_a_clean_end_of_all_daemons_the_copies_go_on_without_a_comparison(self):
        cluster = self.cluster()
        os.makedirs(cluster.mounted("folder/inner"))
        os.symlink("target", cluster.mounted("folder/link"))
        for restarts in range(2):
            for program, path in (("mmap_writer", "folder/mapped"), ("raw_static", "plain")):
                count = 30 * (restarts + 1) if program == "mmap_writer" else 30
                writer = cluster.writer(program, path, "--count", str(count), preload=program == "mmap_writer")
                self.assertEqual(writer.finish(), 0, writer.errors())
                cluster.check(program, cluster.replica, path, [30 * (restarts + 1)])
            self.assertEqual(cluster.verify(), [])
            ids = self.ids(cluster)
            self.stop_all(cluster)
            self.assertEqual(cluster.differences(cluster.primary, cluster.replica), [])
            self.assertEqual(len(cluster.events(cluster.primary, "volume_left")), restarts + 1)
            self.start_all(cluster)
            self.assertEqual(self.ids(cluster), ids)
        self.assert_becomes_equal(cluster)

    def test_P6_a_clean_end_of_the_primary_under_programs_ends_in_time_and_hangs_none(self):
        cluster = self.cluster()
        load = self.load(cluster)
        for _, writer in load.values():
            writer.wait_for(30)
        idle = cluster.stepper("idle", mapped=True)
        self.assertEqual([idle.do("store", 0, "new"), idle.do("msync", 0)], [0, 0])
        cluster.stop(cluster.primary)
        for _, writer in load.values():
            self.assertNotEqual(writer.finish(20), 0)
        idle.do("store", 0, "newer")
        self.assertNotEqual(idle.do("msync", 0), 0)
        self.assert_nothing_is_lost(cluster, load)
        idle.kill()
        self.assertTrue(cluster.differences(cluster.primary, cluster.replica))
        self.assertTrue(cluster.events(cluster.primary, "volume_left_unclean"))
        cluster.start(cluster.primary)  # it went on storing: nobody may call the copies equal before they were compared (P5)
        cluster.wait_in_sync()
        self.assertTrue(cluster.events(cluster.primary, "redundancy_restored"))
        self.assert_becomes_equal(cluster)

    def test_P6_a_clean_end_of_the_primary_without_its_replica_ends_in_time_and_is_told_unclean(self):
        cluster = self.cluster(on_loss="suspend", deadline=f"{int(DEADLINE * 1000)}ms", suspend="10m")
        mapped = cluster.stepper("mapped", mapped=True)
        plain = cluster.stepper("plain", preload=False)
        killed = cluster.stepper("killed", mapped=True)
        self.assertEqual(plain.do("write", 0, "new"), 0)
        cluster.partition(cluster.primary, cluster.replica)
        killed.do("store", 0, "new")
        killed.kill()  # what it stored, the daemon has to bring over
        mapped.do("store", 0, "new")
        mapped.begin("msync", 0)
        plain.begin("fsync")
        wait(lambda: cluster.status()["suspended_syncs"] == 2, lambda: f"both wait: {cluster.status()}")
        cluster.stop(cluster.primary)
        self.assertNotEqual(mapped.outcome().errno, 0)
        self.assertNotEqual(plain.outcome().errno, 0)
        self.assertTrue(cluster.events(cluster.primary, "volume_left_unclean"))

    def test_P3_a_replica_daemon_that_ends_cleanly_and_starts_again_is_back_without_a_comparison(self):
        cluster = self.cluster()
        load = self.load(cluster)
        for _, writer in load.values():
            writer.wait_for(30)
        cluster.stop(cluster.replica)
        cluster.start(cluster.replica)
        for _, writer in load.values():
            writer.wait_for(writer.acknowledged()[0] + 30)
            writer.kill()
        cluster.wait_in_sync()
        self.assert_nothing_is_lost(cluster, load)
        self.assert_becomes_equal(cluster)


class Replica(RestartTest):
    def killed_under_load(self, cluster, while_away):
        load = self.load(cluster)
        for _, writer in load.values():
            writer.wait_for(30)
        cluster.kill(cluster.replica)
        while_away()
        cluster.start(cluster.replica)
        for _, writer in load.values():
            writer.wait_for(writer.acknowledged()[0] + 30)
        cluster.wait_in_sync()
        for _, writer in load.values():
            writer.kill()
        self.assert_nothing_is_lost(cluster, load)
        self.assert_becomes_equal(cluster)

    def test_P6_writers_go_on_when_a_killed_replica_is_back_before_the_deadline(self):
        cluster = self.cluster(on_loss="fail", deadline="60s")
        self.killed_under_load(cluster, lambda: None)
        self.assertFalse([line for line in cluster.events(cluster.primary, "replica_state") if "state=in-sync" not in line])

    def test_P6_writers_go_on_when_a_killed_replica_is_back_after_the_deadline(self):
        cluster = self.cluster(on_loss="suspend", deadline=f"{int(DEADLINE * 1000)}ms", suspend="10m")
        self.killed_under_load(cluster, lambda: wait(lambda: cluster.status()["suspended_syncs"] == 2, "all writers wait"))
        self.assertEqual(cluster.status()["suspended_syncs"], 0)


class Primary(RestartTest):
    def test_P3_programs_fail_in_time_when_the_daemon_is_killed_and_nothing_acknowledged_is_lost(self):
        cluster = self.cluster(on_loss="fail", deadline=f"{int(DEADLINE * 1000)}ms")
        load = self.load(cluster)
        load["alone"] = ("mmap_writer", cluster.writer("mmap_writer", "alone"))  # needs nothing of the daemon once it is connected
        stepper = cluster.stepper("steps", mapped=True)
        for _, writer in load.values():
            writer.wait_for(30)
        cluster.signal(cluster.primary, signal.SIGKILL)
        for _, writer in load.values():
            self.assertNotEqual(writer.finish(20), 0)
        stepper.do("store", 0, "new")
        self.assertEqual(stepper.do("msync", 0), errno.EIO)
        self.assert_nothing_is_lost(cluster, load)
        stepper.kill()

        cluster.start(cluster.primary)
        cluster.wait_in_sync()
        self.assertTrue(cluster.events(cluster.primary, "redundancy_restored"))
        self.assert_nothing_is_lost(cluster, load)
        self.assert_becomes_equal(cluster)


def received_bytes(netns):
    """By all network devices of a namespace, but for loopback."""
    lines = subprocess.run(["ip", "netns", "exec", netns, "cat", "/proc/net/dev"], check=True, capture_output=True, text=True).stdout.splitlines()
    devices = (line.split(":") for line in lines if ":" in line)
    return sum(int(counters.split()[0]) for name, counters in devices if name.strip() != "lo")


def sum_of(lines, field):
    """Of a number that each of the event's lines carries."""
    return sum(int(word.split("=", 1)[1]) for line in lines for word in line.split() if word.startswith(field + "="))


class Program(RestartTest):
    def test_trap7_stores_of_a_program_killed_before_its_sync_reach_the_replica_by_themselves(self):
        cluster = self.cluster()
        programs = [cluster.stepper(name, mapped=True) for name in ("a", "b")]
        for program in programs:
            for page in range(0, 16, 3):
                program.do("store", page, "unsynced")
        self.assertTrue(cluster.differences(cluster.primary, cluster.replica))
        for program in programs:
            program.kill()
        self.assert_becomes_equal(cluster)

    def test_trap7_of_what_a_killed_program_had_mapped_only_the_difference_crosses_the_wire(self):
        cluster = self.cluster(nodes=3, on_loss="suspend", deadline="60s")
        pages = 16384
        other = cluster.stepper("mapped", pages=pages, mapped=True)
        for attempt in range(5):
            stepper = cluster.stepper("mapped", pages=pages, mapped=True)
            self.assertEqual([stepper.do("store", page, f"synced {attempt}") for page in range(0, pages, 64)], [0] * (pages // 64))
            self.assertEqual(stepper.do("msync"), 0)
            for page in (5, 64, 9000):
                self.assertEqual(stepper.do("store", page, f"never synced {attempt}"), 0)
            received = received_bytes(cluster.node("n2").netns)
            compared = sum_of(cluster.events("n1", "mappings_compared"), "bytes")
            stepper.kill()
            # A sync of somebody else beside it.
            self.assertEqual([other.do("store", 70, f"by another {attempt}"), other.do("msync", 70)], [0, 0])
            wait(lambda: not cluster.differences("n1", "n2") and not cluster.differences("n1", "n3"), "the copies are equal")
            wait(lambda: all(cluster.replica_status(node)["dirty_bytes"] == 0 for node in ("n2", "n3")), "nothing is dirty")
            if sum_of(cluster.events("n1", "mappings_compared"), "bytes") - compared >= (pages - 1) * 4096:
                self.assertLess(received_bytes(cluster.node("n2").netns) - received, pages * 4096 // 16)
                return
        self.fail("a replica was silent for two seconds, five times")

    def test_trap7_stores_of_a_program_killed_while_the_replica_was_away_reach_it_when_it_is_back(self):
        cluster = self.cluster(on_loss="suspend", deadline=f"{int(DEADLINE * 1000)}ms")
        program = cluster.stepper("a", mapped=True)
        cluster.partition(cluster.primary, cluster.replica)
        program.do("store", 5, "unsynced")
        program.kill()
        wait(lambda: cluster.replica_status(cluster.replica)["dirty_bytes"] > 0, "the daemon knows")
        cluster.heal(cluster.primary, cluster.replica)
        cluster.wait_in_sync()
        self.assert_becomes_equal(cluster)
        wait(lambda: cluster.replica_status(cluster.replica)["dirty_bytes"] == 0, "nothing is dirty")


if __name__ == "__main__":
    main()
