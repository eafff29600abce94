# SPDX-License-Identifier: BSD-3-Clause
"""Cuts and kills at random moments under load: after each heal the copies are equal byte by byte, every acknowledged commit is in both, and the
programs' own checkers pass (P1, P3, P5; traps 3 and 7).

PMIRROR_CHAOS_ROUNDS faults of each kind (few by default), from PMIRROR_CHAOS_SEED; both are printed, but the moments are the machine's.
"""

import os
import random
import re
import signal
import subprocess
import tempfile
import time

from lib.cluster import ClusterTest, main, wait
from writers import CASES

ROUNDS = int(os.environ.get("PMIRROR_CHAOS_ROUNDS", "2"))
SEED = int(os.environ.get("PMIRROR_CHAOS_SEED", str(random.randrange(1 << 31))))
PROGRAMS = ("lmdb_writemap", "lmdb", "pmemobj", "mmap_all_ways", "sqlite", "raw_static")
LONGEST_FAULT = 1.5  # seconds; the deadline is between nothing and that
DEADLINE = "500ms"


class Fio:
    """Stores to a mapping, syncs now and then, and reads back what it wrote, until it is killed. With a thread: job processes leave the group."""

    def __init__(self, cluster):
        self._output = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            cluster.run_command("fio", "--name=fio", "--thread", f"--directory={cluster.mounted('')}", "--ioengine=mmap", "--rw=randrw", "--bs=4k", "--size=2m",
                                "--fsync=16", "--verify=crc32c", "--verify_backlog=32", "--verify_fatal=1",
                                "--verify_state_save=0", "--time_based", "--runtime=600", "--eta=never"),
            stdout=self._output, stderr=subprocess.STDOUT, start_new_session=True)

    def _maps_its_file(self):
        with open(f"/proc/{self._process.pid}/maps", encoding="utf-8") as maps:
            return "/fio.0.0" in maps.read()

    def wait_for_start(self):
        wait(lambda: self._process.poll() is not None or self._maps_its_file(), "fio maps its file")

    def kill(self):
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # killed with its node
        self._process.wait(30)

    def end(self):
        """Kills it, and fails when it has ended by itself: it does when it reads other bytes than it wrote, and when a call fails."""
        self.kill()
        self._output.seek(0)
        output = self._output.read()
        self._output.close()
        if self._process.returncode != -signal.SIGKILL or re.search("verify( failed|:)", output):
            raise AssertionError(f"fio ended with {self._process.returncode}: {output}")


class Chaos(ClusterTest):
    options = {}  # of every cluster
    rounds = ROUNDS

    def setUp(self):
        self.rng = random.Random(f"{SEED} {self.id()}")
        print(f"PMIRROR_CHAOS_ROUNDS={ROUNDS} PMIRROR_CHAOS_SEED={SEED}", flush=True)

    def moment(self, longest=LONGEST_FAULT):
        # Sleep because: the fault comes, or ends, at a random moment.
        time.sleep(self.rng.uniform(0, longest))

    def start(self, cluster):
        writers = {"fio": Fio(cluster)}
        self.addCleanup(writers["fio"].kill)
        for name in PROGRAMS:
            program, options, _, env = CASES[name]
            preload = name != "raw_static"
            writers[name] = cluster.writer(program, name, *options, preload=preload, env=env if preload else {})
        return writers

    def assert_whole(self, cluster, writers, acknowledged):
        """Ends the writers; everything that they, or their predecessors, saw acknowledged is in both copies, which are equal."""
        writers.pop("fio").end()
        for name, writer in writers.items():
            writer.kill()
            acknowledged[name] = max(acknowledged.get(name, 0), writer.acknowledged()[0])
        cluster.wait_in_sync(seconds=60)
        wait(lambda: not cluster.differences(cluster.primary, cluster.replica),
             lambda: f"copies are equal: {cluster.differences(cluster.primary, cluster.replica)[:5]}", 30)
        for name, number in acknowledged.items():
            program, _, _, env = CASES[name]
            for node in (cluster.primary, cluster.replica):
                cluster.check(program, node, name, [number], env)
        self.assertEqual(cluster.verify(), [])

    def run_rounds(self, fault, **options):
        cluster = self.cluster(deadline=DEADLINE, **self.options, **options)
        acknowledged = {}
        for _ in range(self.rounds):
            writers = self.start(cluster)
            writers["fio"].wait_for_start()
            for name in PROGRAMS:
                writers[name].wait_for(acknowledged.get(name, 0) + 3)
            self.moment()
            fault(cluster, writers)
            self.assert_whole(cluster, writers, acknowledged)

    def cut(self, cluster, _):
        cluster.partition(cluster.primary, cluster.replica)
        self.moment()
        cluster.heal(cluster.primary, cluster.replica)
        self.moment(0.5)

    def test_P1_P3_P5_cuts_of_the_network_under_proceed(self):
        self.run_rounds(self.cut, on_loss="proceed")

    def test_P1_P3_P5_cuts_of_the_network_under_suspend(self):
        self.run_rounds(self.cut, on_loss="suspend", suspend="10m")

    def test_P3_P5_kills_of_a_program(self):
        def kill_one(_, writers):
            self.rng.choice(list(writers.values())).kill()
            self.moment(0.3)
        self.run_rounds(kill_one)

    def test_P3_P5_kills_of_the_primary_node(self):
        def kill(cluster, _):
            cluster.kill(cluster.primary)
            cluster.start(cluster.primary)
        self.run_rounds(kill)

    def test_P3_P5_kills_of_the_primary_node_while_the_replica_is_away(self):
        def kill(cluster, _):
            cluster.kill(cluster.replica)
            self.moment()
            cluster.kill(cluster.primary)
            cluster.start(cluster.primary)
            self.moment(0.5)
            cluster.start(cluster.replica)
        self.run_rounds(kill, on_loss="proceed")

    def test_P3_P5_kills_of_the_replica_node(self):
        def kill(cluster, _):
            cluster.kill(cluster.replica)
            self.moment()
            cluster.start(cluster.replica)
            self.moment(0.5)
        self.run_rounds(kill, on_loss="proceed")

    def test_P3_P5_kills_of_the_primary_node_during_a_resync(self):
        def kill(cluster, _):
            cluster.partition(cluster.primary, cluster.replica)
            self.moment()
            cluster.heal(cluster.primary, cluster.replica)
            self.moment(0.3)
            cluster.kill(cluster.primary)
            cluster.start(cluster.primary)
        self.run_rounds(kill, on_loss="proceed")


class TrailingChaos(Chaos):
    """The same with a replica that trails (docs/internals/rpo.md)."""
    options = {"rpo": "50ms"}
    rounds = (ROUNDS + 1) // 2


if __name__ == "__main__":
    main()
