# SPDX-License-Identifier: BSD-3-Clause
"""Programs that hold mappings while their local daemon ends, cleanly or not, and starts again: they go on by themselves with the same mappings,
nothing acknowledged is lost (P3), and nothing hangs (P6)."""

import errno
import os
import random
import signal
import subprocess

from lib.cluster import ClusterTest, main, wait
from writers import FORCE_PMEM

SHORT = "600ms"  # a deadline that passes in a test
LONG = "60s"     # one that no restart reaches


class ReconnectTest(ClusterTest):
    def daemon_dies(self, cluster):
        cluster.signal(cluster.primary, signal.SIGKILL)
        wait(lambda: cluster.daemon(cluster.primary) == 0, "the daemon is gone")

    def goes_on(self, writers, commits=30):
        for writer, count in writers:
            for newest in writer.acknowledged(count):
                writer.wait_for(newest + commits, count)

    def assert_equal_again(self, cluster):
        cluster.wait_in_sync(seconds=60)
        wait(lambda: not cluster.differences(cluster.primary, cluster.replica), lambda:
             f"copies are equal: {cluster.differences(cluster.primary, cluster.replica)[:5]}")
        self.assertEqual(cluster.verify(), [])

    def restarts_under(self, cluster, load, rounds=3, seed=1, shipped=True):
        """`load`: path -> (program, options, writers, environment). Kills the daemon at random moments under all of them. `shipped`: what is
        acknowledged is on the replica, not only what the RPO says."""
        rng = random.Random(seed)
        running = {path: (program, cluster.writer(program, path, *options, env=env), count, env)
                   for path, (program, options, count, env) in load.items()}
        writers = [(writer, count) for _, writer, count, _ in running.values()]
        self.goes_on(writers)
        for _ in range(rounds):
            cluster.wait_in_sync(seconds=60)  # under `proceed` commits that were acknowledged before are only here
            self.goes_on(writers, rng.randrange(1, 60))
            self.daemon_dies(cluster)
            for path, (program, writer, count, env) in running.items():
                cluster.check(program, cluster.replica, path, writer.acknowledged(count) if shipped else [0] * count, env)
            # Sleep because: the moment at which the daemon comes back is the random input of this test.
            wait(lambda at=rng.random() * 0.3, begun=os.times().elapsed: os.times().elapsed - begun >= at, "a moment has passed")
            cluster.start(cluster.primary)
            self.goes_on(writers, rng.randrange(1, 60))
        cluster.wait_in_sync(seconds=60)
        self.goes_on(writers)
        for path, (program, writer, count, env) in running.items():
            self.assertIsNone(writer.process.poll(), writer.errors())
            writer.kill()
        self.assert_equal_again(cluster)
        for path, (program, writer, count, env) in running.items():
            cluster.check(program, cluster.replica, path, writer.acknowledged(count), env)


class Writers(ReconnectTest):
    def test_P3_msync_writers_go_on_over_killed_daemons_under_suspend(self):
        cluster = self.cluster(on_loss="suspend", deadline=LONG)
        self.restarts_under(cluster, {"one": ("mmap_writer", ["--sync", "msync"], 1, {}),
                                      "threads": ("mmap_writer", ["--writers", "4", "--sync", "msync-file"], 4, {}),
                                      "processes": ("mmap_writer", ["--writers", "3", "--fork", "--sync", "msync"], 3, {})})

    def test_P3_msync_writers_go_on_over_killed_daemons_under_proceed(self):
        cluster = self.cluster(on_loss="proceed", deadline=LONG)
        self.restarts_under(cluster, {"one": ("mmap_writer", ["--sync", "msync"], 1, {}),
                                      "threads": ("mmap_writer", ["--writers", "4", "--sync", "msync"], 4, {})}, seed=2)

    def test_P3_writers_go_on_over_killed_daemons_with_an_rpo(self):
        # What the replica holds at a kill is what was shipped; nothing acknowledged is missing when all is over.
        cluster = self.cluster(rpo="50ms", deadline=LONG)
        load = {"msync": ("mmap_writer", ["--sync", "msync"], 1, {}),
                "threads": ("mmap_writer", ["--writers", "4", "--sync", "msync-file"], 4, {}),
                "forked": ("mmap_writer", ["--writers", "3", "--fork", "--sync", "msync"], 3, {}),
                "pmem": ("pmem_writer", [], 1, FORCE_PMEM)}
        self.restarts_under(cluster, load, seed=4, shipped=False)

    def test_P3_libpmem_writers_go_on_over_killed_daemons(self):
        cluster = self.cluster(on_loss="suspend", deadline=LONG)
        self.restarts_under(cluster, {"pmem": ("pmem_writer", [], 1, FORCE_PMEM),
                                      "page_cache": ("pmem_writer", [], 1, {"PMEM_IS_PMEM_FORCE": "0"}),
                                      "pmem2": ("pmem2_writer", [], 1, FORCE_PMEM)}, seed=3)


class Waiting(ReconnectTest):
    def test_P6_an_msync_waits_for_the_daemon_and_succeeds_when_it_is_back_in_time(self):
        cluster = self.cluster(on_loss="suspend", deadline=SHORT, suspend="10m")
        program = cluster.stepper("file", mapped=True)
        program.do("store", 0, "before")
        self.assertEqual(program.do("msync", 0), 0)
        self.daemon_dies(cluster)
        program.do("store", 0, "during")
        program.do("store", 3, "during")
        program.begin("msync", 0)
        # Sleep because: the deadline has to pass while nobody is there to tell of it.
        wait(lambda begun=os.times().elapsed: os.times().elapsed - begun > 1.5, "the deadline has passed")
        cluster.start(cluster.primary)
        self.assertEqual(program.outcome().errno, 0)
        program.do("store", 5, "after")
        self.assertEqual(program.do("msync"), 0)
        self.assert_equal_again(cluster)
        with open(cluster.backing(cluster.replica, "file"), "rb") as file:
            content = file.read()
        self.assertEqual([content[page * 4096:page * 4096 + 6] for page in (0, 3, 5)], [b"during", b"during", b"after\0"])

    def test_P6_an_msync_fails_in_time_when_no_daemon_comes_back_and_its_retry_succeeds(self):
        cluster = self.cluster(on_loss="fail", deadline=SHORT)
        program = cluster.stepper("file", mapped=True)
        self.daemon_dies(cluster)
        program.do("store", 1, "kept")
        self.assertEqual(program.do("msync", 1), errno.EIO)
        cluster.start(cluster.primary)
        cluster.wait_in_sync()
        self.assertEqual(program.do("msync", 1), 0)
        self.assert_equal_again(cluster)

    def test_P1_an_msync_that_has_nothing_to_send_waits_until_the_copies_are_compared(self):
        cluster = self.cluster(on_loss="fail", deadline=SHORT)
        program = cluster.stepper("file", mapped=True)
        program.do("store", 1, "kept")
        self.assertEqual(program.do("msync", 1), 0)
        self.daemon_dies(cluster)
        cluster.kill(cluster.replica)
        cluster.start(cluster.primary)
        self.assertEqual(program.do("msync", 1), errno.EIO)
        cluster.start(cluster.replica)
        cluster.wait_in_sync()
        self.assertEqual(program.do("msync", 1), 0)

    def test_P3_programs_go_on_over_a_clean_end_of_the_daemon(self):
        cluster = self.cluster(on_loss="suspend", deadline=LONG)
        program = cluster.stepper("file", mapped=True)
        writer = cluster.writer("mmap_writer", "mapped", "--sync", "msync")
        writer.wait_for(30)
        program.do("store", 2, "before")
        cluster.stop(cluster.primary)
        program.do("store", 4, "during")
        cluster.start(cluster.primary)
        self.goes_on([(writer, 1)])
        self.assertEqual(program.do("msync"), 0)
        cluster.wait_in_sync()
        writer.kill()
        cluster.check("mmap_writer", cluster.replica, "mapped", writer.acknowledged())
        self.assert_equal_again(cluster)


class Others(ReconnectTest):
    def test_trap4_a_sync_covers_the_stores_of_a_program_that_has_not_joined_the_new_daemon(self):
        cluster = self.cluster(on_loss="suspend", deadline=LONG)
        idle = cluster.stepper("file", mapped=True)
        syncing = cluster.stepper("file", mapped=True)
        self.daemon_dies(cluster)
        cluster.start(cluster.primary)
        self.assertEqual(len(cluster.events(cluster.primary, "program_adopted")), 2)
        cluster.wait_in_sync()
        idle.do("store", 3, "unsynced")
        self.assertEqual(syncing.do("msync"), 0)
        with open(cluster.backing(cluster.replica, "file"), "rb") as file:
            self.assertEqual(file.read()[3 * 4096:3 * 4096 + 8], b"unsynced")
        idle.do("store", 4, "again")
        self.assertEqual(idle.do("msync"), 0)
        self.assert_equal_again(cluster)

    def test_trap7_stores_of_a_program_that_ends_without_joining_the_new_daemon_reach_the_replica(self):
        cluster = self.cluster(on_loss="suspend", deadline=LONG)
        idle = cluster.stepper("file", mapped=True)
        self.daemon_dies(cluster)
        cluster.start(cluster.primary)
        cluster.wait_in_sync()
        idle.do("store", 3, "unsynced")
        idle.kill()
        self.assert_equal_again(cluster)

    def test_P3_a_program_that_only_reads_keeps_its_mapping(self):
        cluster = self.cluster(on_loss="suspend", deadline=LONG)
        writer = cluster.writer("mmap_writer", "mapped", "--sync", "msync")
        writer.wait_for(30)
        reader = subprocess.Popen(cluster.run_command("python3", "-c", (
            "import mmap, os, sys; fd = os.open(sys.argv[1], os.O_RDONLY); m = mmap.mmap(fd, 0, prot=mmap.PROT_READ)\n"
            "for line in sys.stdin: print(len(bytes(m)), flush=True)"), cluster.mounted("mapped")),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.addCleanup(reader.kill)
        sizes = []
        for _ in range(2):
            reader.stdin.write("\n")
            sizes.append(int(reader.stdout.readline()))
            self.daemon_dies(cluster)
            cluster.start(cluster.primary)
            self.goes_on([(writer, 1)])
        self.assertEqual(sizes[0], sizes[1])
        reader.stdin.close()
        self.assertEqual(reader.wait(30), 0)
        reader.stdout.close()
        writer.kill()
        self.assert_equal_again(cluster)

    def test_P9_syncs_of_a_file_that_was_unlinked_fail_and_those_of_others_go_on(self):
        cluster = self.cluster(on_loss="suspend", deadline=LONG)
        gone = cluster.stepper("gone", mapped=True)
        kept = cluster.stepper("kept", mapped=True)
        os.unlink(cluster.mounted("gone"))
        self.assertEqual(gone.do("msync"), 0)
        self.daemon_dies(cluster)
        cluster.start(cluster.primary)
        for program in (gone, kept):
            program.do("store", 1, "new")
        self.assertEqual(gone.do("msync"), errno.EIO)
        self.assertEqual(kept.do("msync"), 0)
        gone.kill()
        self.assert_equal_again(cluster)


if __name__ == "__main__":
    main()
