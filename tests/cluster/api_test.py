# SPDX-License-Identifier: BSD-3-Clause
"""The functions of pmirror.h in a C program (tests/apps/api_steps.c), under the preload library and without it, on a volume whose network is cut,
whose replica is killed, and whose copy is damaged. That they lose nothing is in programs_test.py (the case `api`)."""

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile

from lib.cluster import ClusterTest, main, wait

PAGE = 4096
BYTES = 16 * PAGE
VERIFY, ATOMIC = 1, 2
CAN_FLUSH, CAN_VERIFY, CAN_ASYNC, CAN_ATOMIC, CAN_SUBSCRIBE = 1, 2, 4, 8, 16
IN_SYNC, DEGRADED, ALONE, FENCED, CLOSING = 1, 2, 3, 4, 5
STATE, LOST, RESTORED, EVENT_CLOSING, LAG, DAEMON_GONE = 1, 2, 3, 5, 6, 8
ACTION_SYNC, ACTION_FLUSH, ACTION_VERIFY = 1, 2, 3

# Writes a byte at a place of a file as often as it can.
SPOILER = """import os, sys
file = os.open(sys.argv[1], os.O_WRONLY)
while True:
    os.pwrite(file, b"!", int(sys.argv[2]))
"""


def socket_of(mount):
    """The socket that a mount names as its source."""
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        line = next(line for line in file if line.split()[4] == mount)
    return line.split(" - ")[1].split()[1].removeprefix("pmirror:")


class Steps:
    """The program: one call at a time."""

    def __init__(self, cluster, preload, name="file", socket_path=None):
        words = [cluster.app("api_steps"), cluster.mounted(name), BYTES]
        # Several sandboxes may be on this machine: `pmirror run` names the daemon, and without it the environment has to.
        environment = {} if preload else {"PMIRROR_SOCKET": socket_path or socket_of(cluster.node(cluster.primary).mount)}
        self.command = [str(word) for word in (cluster.run_command(*words) if preload else words)]
        self._errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
                                        env={**os.environ, **environment}, start_new_session=True)
        assert self.answer() == (0, {}), self.errors()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"{self.command} ended: {self.errors()}")
        number, _, rest = line.rstrip("\n").partition(" ")
        # The value of the last word may have blanks.
        fields = dict(re.findall(r"(\w+)=((?:(?! \w+=).)*)", rest))
        return int(number), {name: int(value) if re.fullmatch(r"-?\d+", value) else value for name, value in fields.items()}

    def begin(self, *words):
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()

    def call(self, *words):
        self.begin(*words)
        return self.answer()

    def do(self, *words):
        """The errno."""
        return self.call(*words)[0]

    def errors(self):
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")

    def close(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(30)
        for file in (self.process.stdin, self.process.stdout, self._errors):
            file.close()


class Api(ClusterTest):
    def steps(self, cluster, preload=True, name="file", **options):
        steps = Steps(cluster, preload, name, **options)
        self.addCleanup(steps.close)
        return steps

    def both(self):
        for preload in (True, False):
            with self.subTest(preload=preload):
                yield preload

    def on_replica(self, cluster, offset, length, name="file"):
        with open(cluster.backing(cluster.replica, name), "rb") as file:
            return os.pread(file.fileno(), length, offset)

    def test_attributes_say_what_is_promised_and_how_the_volume_is(self):
        cluster = self.cluster(on_loss="proceed")
        for preload in self.both():
            steps = self.steps(cluster, preload, f"file{preload}")
            error, seen = steps.call("attributes", 2 * PAGE + 8)
            self.assertEqual(error, 0)
            self.assertEqual(seen["volume"], "v0")
            self.assertEqual(seen["node"], cluster.replica)
            self.assertEqual(seen["file"], os.stat(cluster.mounted(f"file{preload}")).st_ino)
            self.assertEqual(seen["offset"], 2 * PAGE + 8)
            self.assertEqual((seen["state"], seen["members"], seen["replicas"], seen["policy"]), (IN_SYNC, 1, 1, 3))
            self.assertEqual((seen["local"], seen["remote"], seen["power"], seen["group"]), (0, 8 if preload else 0, 0, 16384 if preload else 0))
            self.assertEqual((seen["error_range"], seen["error_offset"], seen["size"]), (PAGE, 0, 1))
            self.assertEqual(seen["preloaded"], int(preload))
            wanted = CAN_FLUSH | CAN_VERIFY | CAN_ATOMIC if preload else 0
            self.assertEqual(seen["capabilities"] & (CAN_FLUSH | CAN_VERIFY | CAN_ASYNC | CAN_ATOMIC | CAN_SUBSCRIBE),
                             wanted | CAN_ASYNC | CAN_SUBSCRIBE)
            self.assertEqual(steps.do("stranger"), errno.ENXIO)
        cluster.kill(cluster.replica)
        cluster.wait_state(cluster.replica, "disconnected")
        for preload in self.both():
            _, seen = self.steps(cluster, preload, f"file{preload}").call("attributes", 0)
            self.assertEqual((seen["state"], seen["members"]), (ALONE, 0))

    def test_P5_flush_and_verify_finds_what_was_changed_on_the_replica_and_nothing_else(self):
        cluster = self.cluster()
        steps = self.steps(cluster)
        steps.do("store", 0, BYTES, 7)
        self.assertEqual(steps.do("verify", 100, 50, 3 * PAGE, 2 * PAGE, 0, 8), 0)
        self.assertEqual(self.on_replica(cluster, 3 * PAGE, 2 * PAGE), b"\7" * 2 * PAGE)
        self.assertEqual(steps.do("verify", 0, BYTES), 0)
        # A flush repairs what it names; so the replica's file is damaged again and again, as by a medium that loses what it was told.
        spoiler = subprocess.Popen([sys.executable, "-c", SPOILER, cluster.backing(cluster.replica, "file"), str(3 * PAGE + 5)])
        try:
            wait(lambda: steps.do("verify", 0, 64, 3 * PAGE, 8) == errno.EILSEQ, "the damage was found")
            _, info = steps.call("error")
            self.assertEqual((info["error"], info["action"], info["place"], info["length"], info["offset"]),
                             (errno.EILSEQ, ACTION_VERIFY, 3 * PAGE, 8, 3 * PAGE))
            self.assertEqual((info["replica"], info["node"]), (0, cluster.replica))
            self.assertEqual(steps.do("verify", 0, 64, 4 * PAGE, 8), 0)
        finally:
            spoiler.kill()
            spoiler.wait()
        self.assertEqual(steps.do("verify", 0, BYTES), 0)
        self.assertEqual(cluster.verify(), [])

    def test_flush_and_verify_gives_no_false_alarm_beside_others_who_store_and_sync(self):
        cluster = self.cluster()
        first, second = self.steps(cluster, name="shared"), self.steps(cluster, name="shared")
        verdicts = []
        for round_ in range(40):
            for steps in (first, second):
                steps.do("store", 0, 2 * PAGE, round_)
            first.begin("verify", 0, 2 * PAGE)
            second.begin("flush", 64, PAGE)
            verdicts.append(first.answer()[0])
            self.assertIn(verdicts[-1], (0, errno.EAGAIN))
            self.assertEqual(second.answer()[0], 0)
        self.assertIn(0, verdicts)

    def test_verify_without_the_preload_library_says_so_and_the_rest_works(self):
        cluster = self.cluster()
        steps = self.steps(cluster, preload=False)
        steps.do("store", 0, BYTES, 5)
        self.assertEqual(steps.do("verify", 0, 64), errno.ENOTSUP)
        self.assertEqual(steps.do("atomic", 0, 64), errno.ENOTSUP)
        self.assertEqual(steps.do("async", VERIFY, 0, 64), errno.ENOTSUP)
        self.assertEqual(steps.do("flush", 0, 64, PAGE, 10), 0)
        self.assertEqual(self.on_replica(cluster, PAGE, 10), b"\5" * 10)
        error, made = steps.call("async", 0, 5 * PAGE, 100)
        self.assertEqual(error, 0)
        self.assertEqual(steps.call("poll", made["id"], 20000)[1], {"done": 1, "readable": 1, "error": 0})
        self.assertEqual(self.on_replica(cluster, 5 * PAGE, 100), b"\5" * 100)

    def test_an_asynchronous_flush_is_complete_when_it_is_on_the_replica(self):
        cluster = self.cluster()
        steps = self.steps(cluster)
        ids = []
        for i in range(300):
            steps.do("store", i * 64, 64, i % 251)
            error, made = steps.call("async", VERIFY if i % 10 == 0 else 0, i * 64, 64)
            self.assertEqual(error, 0)
            ids.append(made["id"])
        for number in ids:
            self.assertEqual(steps.call("poll", number, 20000)[1], {"done": 1, "readable": 1, "error": 0})
        self.assertEqual(self.on_replica(cluster, 0, 300 * 64), b"".join(bytes([i % 251]) * 64 for i in range(300)))
        self.assertEqual(steps.do("async", VERIFY | ATOMIC, 0, 8), errno.EINVAL)
        self.assertEqual(steps.do("async", 64, 0, 8), errno.EINVAL)
        self.assertEqual(steps.do("async", 0, BYTES, 8), errno.EINVAL)

    def test_P3_an_asynchronous_flush_in_a_partition_completes_after_it_or_fails_and_stays_dirty(self):
        cluster = self.cluster(on_loss="fail", deadline="3s")
        for preload in self.both():
            steps = self.steps(cluster, preload, f"file{preload}")
            steps.do("store", 0, 64, 9)
            self.assertEqual(steps.do("flush", 0, 64), 0)
            cluster.partition(cluster.primary, cluster.replica)
            steps.do("store", 0, 64, 11)
            _, made = steps.call("async", 0, 0, 64)
            self.assertEqual(steps.call("poll", made["id"], 300)[1]["done"], 0)
            outcome = steps.call("wait", made["id"], 30000)[1]
            self.assertEqual(outcome, {"done": 1, "error": errno.EIO})
            _, why = steps.call("why", made["id"])
            self.assertEqual((why["error"], why["action"]), (errno.EIO, ACTION_FLUSH))
            cluster.heal(cluster.primary, cluster.replica)
            cluster.wait_in_sync()
            # Nothing was stored since: a sync sends it all the same (trap 3).
            self.assertEqual(steps.do("sync", 0, 64), 0)
            self.assertEqual(self.on_replica(cluster, 0, 64, f"file{preload}"), b"\x0b" * 64)

    def test_P2_a_flush_group_is_on_a_killed_replica_whole_or_not_at_all(self):
        cluster = self.cluster(on_loss="fail", deadline="1s")
        steps = self.steps(cluster)
        for offset in (0, BYTES - 2 * PAGE):
            steps.do("store", offset, 2 * PAGE, 0)
        self.assertEqual(steps.do("flush", 0, BYTES), 0)
        self.assertEqual(steps.call("groups", 100), (0, {"groups": 100}))
        self.assertEqual(self.on_replica(cluster, 0, 2 * PAGE), bytes([100]) * 2 * PAGE)
        self.assertEqual(steps.do("atomic", 0, 8, BYTES - 2 * PAGE, 2 * PAGE), 0)
        self.assertEqual(steps.do("atomic", 0, 16385), errno.E2BIG)
        for _ in range(4):
            steps.begin("groups", 1 << 40)
            cluster.kill(cluster.replica)
            outcome, fields = steps.answer()
            self.assertEqual(outcome, errno.EIO)
            cluster.pmirror("settle", cluster.backing(cluster.replica))
            first, second = self.on_replica(cluster, 0, 2 * PAGE), self.on_replica(cluster, BYTES - 2 * PAGE, 2 * PAGE)
            self.assertEqual(first, second)
            self.assertEqual(first, first[:1] * 2 * PAGE)
            self.assertIn(first[0], [number % 256 for number in (100, fields["groups"], fields["groups"] - 1)])
            cluster.start(cluster.replica)
            cluster.wait_in_sync()

    def test_a_forked_child_has_none_of_its_parents_flushes_and_flushes_itself(self):
        cluster = self.cluster(on_loss="suspend")
        steps = self.steps(cluster)
        steps.do("store", 0, 64, 9)
        self.assertEqual(steps.do("flush", 0, 64), 0)
        # Stopped, it does not answer; the child's flush has to wait for it, too.
        cluster.signal(cluster.replica, signal.SIGSTOP)
        _, made = steps.call("async", 0, 0, 64)
        steps.call("poll", made["id"], 0)  # its descriptor is there before the fork
        steps.begin("fork", made["id"])
        cluster.signal(cluster.replica, signal.SIGCONT)
        self.assertEqual(steps.answer()[0], 0)
        self.assertEqual(steps.call("poll", made["id"], 20000)[1], {"done": 1, "readable": 1, "error": 0})
        self.assertEqual(self.on_replica(cluster, 0, 8), b"c" * 8)

    def test_trap14_a_program_that_closes_our_descriptors_loses_the_poll_and_nothing_else(self):
        cluster = self.cluster()
        steps = self.steps(cluster)
        _, made = steps.call("async", 0, 0, 64)
        steps.call("poll", made["id"], 20000)
        self.assertEqual(steps.do("closefrom", 3), 0)
        self.assertEqual(steps.do("release", made["id"]), 0)
        steps.do("store", 0, 64, 3)
        _, made = steps.call("async", 0, 0, 64)
        self.assertEqual(steps.call("wait", made["id"], 20000)[1], {"done": 1, "error": 0})
        self.assertEqual(self.on_replica(cluster, 0, 64), b"\3" * 64)

    def test_a_flush_of_an_unmapped_range_is_refused(self):
        cluster = self.cluster()
        steps = self.steps(cluster)
        self.assertEqual(steps.do("unmap"), 0)
        self.assertEqual(steps.do("async", 0, 0, 64), errno.EINVAL)
        self.assertEqual(steps.do("flush", 0, 64), errno.EINVAL)

    def test_events_tell_of_redundancy_lost_and_restored(self):
        cluster = self.cluster(on_loss="proceed")
        observers = [self.steps(cluster, preload, f"file{preload}") for preload in (True, False)]
        for steps in observers:
            self.assertEqual(steps.do("subscribe", "nosuch"), errno.ENOENT)
            self.assertEqual(steps.do("subscribe", "v0"), 0)
            _, first = steps.call("next", 5000)
            self.assertEqual((first["kind"], first["state"], first["members"], first["volume"]), (STATE, IN_SYNC, 1, "v0"))
            self.assertEqual(steps.call("next", 0), (0, {}))
        cluster.kill(cluster.replica)
        for steps in observers:
            _, lost = steps.call("next", 30000)
            self.assertEqual((lost["kind"], lost["replica"], lost["node"], lost["state"]), (LOST, 0, cluster.replica, ALONE))
        cluster.start(cluster.replica)
        for steps in observers:
            _, restored = steps.call("next", 30000)
            self.assertEqual((restored["kind"], restored["replica"], restored["missed"]), (RESTORED, 0, 0))

    def test_one_lag_is_one_event_with_a_begin_and_an_end(self):
        cluster = self.cluster(rpo="100ms", on_lag="proceed", suspend="60s")
        wait(lambda: "trail" in cluster.replica_status(cluster.replica), "the replica trails")
        observers = [self.steps(cluster, preload, f"file{preload}") for preload in (True, False)]
        for steps in observers:
            self.assertEqual(steps.do("subscribe", "v0"), 0)
            _, first = steps.call("next", 5000)
            self.assertEqual((first["kind"], first["lagging"]), (STATE, 0))
        cluster.signal(cluster.replica, signal.SIGSTOP)
        try:
            steps.do("store", 0, 64, 1)
            self.assertEqual(steps.do("sync", 0, 64), 0)
            for steps in observers:
                _, began = steps.call("next", 30000)
                self.assertEqual((began["kind"], began["replica"], began["node"], began["lagging"]), (LAG, 0, cluster.replica, 1))
        finally:
            cluster.signal(cluster.replica, signal.SIGCONT)
        for steps in observers:
            _, ended = steps.call("next", 30000)
            self.assertEqual((ended["kind"], ended["replica"], ended["lagging"], ended["missed"]), (LAG, 0, 0, 0))
        for name in ("replica_lagging", "replica_lag_over"):
            self.assertEqual(len(cluster.events(cluster.primary, name, node=cluster.replica, rpo="100ms")), 1)

    def test_the_daemons_end_is_the_last_event(self):
        cluster = self.cluster()
        steps = self.steps(cluster, preload=False)
        self.assertEqual(steps.do("subscribe", "-"), 0)
        self.assertEqual(steps.call("next", 5000)[1]["kind"], STATE)
        os.kill(cluster.daemon(cluster.primary), signal.SIGKILL)
        self.assertEqual(steps.call("next", 30000)[1]["kind"], DAEMON_GONE)
        self.assertEqual(steps.do("next", 0), errno.ENOTCONN)
        self.assertEqual(steps.do("unsubscribe"), 0)
        self.assertEqual(steps.do("subscribe", "-"), errno.ENOTCONN)

    def test_a_daemon_that_ends_while_it_is_asked_cannot_be_asked(self):
        cluster = self.cluster()
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as ending:
            ending.bind(f"{folder}/socket")
            ending.listen()
            steps = self.steps(cluster, preload=False, socket_path=f"{folder}/socket")
            steps.begin("subscribe", "-")
            accepted = ending.accept()[0]
            accepted.recv(1, socket.MSG_PEEK)  # there is a request
            accepted.close()  # that nobody read: the other end is reset
            self.assertEqual(steps.answer()[0], errno.ENOTCONN)

    def test_error_information_names_range_file_and_replica(self):
        cluster = self.cluster(on_loss="fail", deadline="1s")
        steps = self.steps(cluster)
        steps.do("store", 0, BYTES, 1)
        self.assertEqual(steps.do("flush", 0, BYTES), 0)
        cluster.kill(cluster.replica)
        steps.do("store", 3 * PAGE + 16, 32, 2)
        self.assertEqual(steps.do("flush", 3 * PAGE + 16, 32), errno.EIO)
        _, info = steps.call("error")
        inode = os.stat(cluster.mounted("file")).st_ino
        self.assertGreater(inode, 0)
        self.assertEqual((info["error"], info["action"], info["offset"], info["length"], info["place"]),
                         (errno.EIO, ACTION_FLUSH, 3 * PAGE + 16, 32, 3 * PAGE + 16))
        self.assertEqual((info["replica"], info["node"]), (0, cluster.replica))
        self.assertIn("replica", info["text"])
        self.assertEqual(steps.do("sync", 5 * PAGE, PAGE), errno.EIO)
        _, info = steps.call("error")
        self.assertEqual((info["action"], info["offset"]), (ACTION_SYNC, 5 * PAGE))
        self.assertEqual(steps.do("verify", 0, 8), errno.EIO)
        self.assertEqual(steps.call("error")[1]["action"], ACTION_VERIFY)
        cluster.start(cluster.replica)
        cluster.wait_in_sync()
        wait(lambda: steps.do("verify", 0, BYTES) == 0, "a flush and verify succeeded")


if __name__ == "__main__":
    main()
