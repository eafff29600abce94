# SPDX-License-Identifier: BSD-3-Clause
"""The main job on real programs (tests/apps), under the preload library and without it: what a program saw acknowledged is on the replica
when its node is killed (P1, P3), and after a clean end the copies are equal."""

from lib.cluster import ClusterTest, main
from writers import CASES

COMMITS_BEFORE_THE_KILL = 60


class Programs(ClusterTest):
    """All programs run at the same time, each on a file of its own."""

    def start(self, cluster, preload, *options, **more):
        writers = {}
        for name, (program, own, _, env) in CASES.items():
            # Without the preload library nobody hears of a flush that is only the CPU's: there libpmem has to find out that this is no pmem.
            writers[name] = cluster.writer(program, name, *own, *options, preload=preload,
                                           env={**(env if preload else {}), **more})
        return writers

    def assert_equal(self, cluster):
        self.assertEqual(cluster.differences(cluster.primary, cluster.replica), [])
        self.assertEqual(cluster.verify(), [])

    def kill_the_primary_under_load(self, preload):
        cluster = self.cluster()
        writers = self.start(cluster, preload)
        for name, writer in writers.items():
            with self.subTest(name):
                writer.wait_for(COMMITS_BEFORE_THE_KILL, CASES[name][2])
        cluster.kill(cluster.primary)
        for name, writer in writers.items():
            program, _, count, env = CASES[name]
            with self.subTest(name):
                writer.kill()
                cluster.check(program, cluster.replica, name, writer.acknowledged(count), env)

    def end_cleanly(self, preload, **environment):
        cluster = self.cluster()
        for name, writer in self.start(cluster, preload, "--count", "40", **environment).items():
            program, _, count, env = CASES[name]
            with self.subTest(name):
                self.assertEqual(writer.finish(), 0, writer.errors())
                cluster.check(program, cluster.replica, name, [40] * count, env)
        self.assert_equal(cluster)

    def test_P3_preloaded_programs_lose_no_acknowledged_commit_when_their_node_is_killed(self):
        self.kill_the_primary_under_load(preload=True)

    def test_P3_plain_programs_lose_no_acknowledged_commit_when_their_node_is_killed(self):
        self.kill_the_primary_under_load(preload=False)

    def test_copies_are_equal_after_preloaded_programs_ended(self):
        self.end_cleanly(preload=True)

    def test_P8_both_copies_are_files_that_the_program_goes_on_with_without_pmirror(self):
        cluster = self.cluster()
        self.assertEqual(cluster.writer("lmdb_writer", "ledger", "--writemap", "--count", "40").finish(), 0)
        nodes = [cluster.primary, cluster.replica]
        for node in nodes:  # the primary first: it parts from its replica
            cluster.stop(node)
        for node in nodes:
            with self.subTest(node):
                found = cluster.run(cluster.app("lmdb_writer"), "write", "--count", "5", cluster.backing(node, "ledger"), preload=False)
                self.assertEqual((found.returncode, found.stdout.split()), (0, ["41", "42", "43", "44", "45"]), found.stderr)

    def test_P7_programs_under_jemalloc_work(self):
        self.end_cleanly(preload=True, LD_PRELOAD="libjemalloc.so.2")

    def test_copies_are_equal_after_plain_programs_ended(self):
        self.end_cleanly(preload=False)


if __name__ == "__main__":
    main()
