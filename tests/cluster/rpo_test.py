# SPDX-License-Identifier: BSD-3-Clause
"""A replica with an RPO above 0: it trails, is a legal image at every instant (P2), and no older than its RPO (P1). docs/internals/rpo.md."""

import os
import signal
import threading

from lib.cluster import ClusterTest, main, wait

PROGRAMS = {"mapped": ("mmap_writer", ("--sync", "all"), True),
            "forked": ("mmap_writer", ("--writers", "3", "--fork", "--sync", "all"), True),
            "lmdb": ("lmdb_writer", (), True),
            "sqlite": ("sqlite_writer", (), True),
            "object": ("pmemobj_writer", (), True),
            "plain": ("raw_static", (), False)}
WRITERS = {"forked": 3}


class RpoTest(ClusterTest):
    def load(self, cluster, *names):
        """name -> its Writer, all of them going."""
        load = {name: cluster.writer(PROGRAMS[name][0], name, *PROGRAMS[name][1], preload=PROGRAMS[name][2])
                for name in names or PROGRAMS}
        for name, writer in load.items():
            writer.wait_for(5, WRITERS.get(name, 1))
        return load

    def acknowledged(self, load):
        return {name: writer.acknowledged(WRITERS.get(name, 1)) for name, writer in load.items()}

    def assert_legal(self, cluster, node, acknowledged):
        """The node's files are what a power cut could have left, and have at least these commits."""
        for name, counts in acknowledged.items():
            cluster.check(PROGRAMS[name][0], node, name, counts)

    def trail(self, cluster, node=None):
        return cluster.replica_status(node or cluster.replica).get("trail")

    def wait_trailing(self, cluster, node=None):
        wait(lambda: self.trail(cluster, node) is not None, "the replica trails", 30)

    def wait_batches(self, cluster, more, node=None):
        """Until so many more batches are acknowledged: then all that was captured before the call is."""
        target = self.trail(cluster, node)["batches"] + more
        wait(lambda: (self.trail(cluster, node) or {"batches": 0})["batches"] >= target, f"batch {target} is acknowledged", 60)

    def end(self, load):
        for writer in load.values():
            writer.close()

    def assert_equal(self, cluster):
        cluster.wait_in_sync()
        self.assertEqual(cluster.verify(), [])
        for node in cluster.replicas:
            self.assertEqual(cluster.differences(cluster.primary, node), [])


class Trails(RpoTest):
    def test_P1_P2_every_program_is_replicated_and_verify_finds_the_copies_equal(self):
        cluster = self.cluster(rpo="50ms")
        self.wait_trailing(cluster)
        load = self.load(cluster)
        self.wait_batches(cluster, 5)
        self.assertEqual(cluster.verify(), [], "under load, at a frozen point")
        acknowledged = self.acknowledged(load)
        self.end(load)
        self.assert_equal(cluster)
        self.assert_legal(cluster, cluster.replica, acknowledged)
        trail = self.trail(cluster)
        self.assertGreater(trail["batches"], 0)
        self.assertLess(trail["batch_bytes"], trail["captured_bytes"], "pages that are synced again and again cross once")

    def test_the_tree_follows_in_the_order_of_its_changes(self):
        cluster = self.cluster(rpo="50ms")
        self.wait_trailing(cluster)
        for i in range(30):
            path = cluster.mounted(f"f{i}.tmp")
            with open(path, "wb") as file:
                file.write(b"%04d" % i * 5000)
                file.flush()
                os.fsync(file.fileno())
            os.rename(path, cluster.mounted(f"f{i % 7}"))
        os.truncate(cluster.mounted("f3"), 123)
        os.mkdir(cluster.mounted("d"))
        os.link(cluster.mounted("f1"), cluster.mounted("d/l"))
        os.unlink(cluster.mounted("f1"))
        self.assert_equal(cluster)

    def test_P2_P3_whenever_the_primary_dies_the_replica_is_legal_and_has_what_was_shipped(self):
        cluster = self.cluster(rpo="50ms")
        for more in (3, 1, 6):
            self.wait_trailing(cluster)
            load = self.load(cluster)
            acknowledged = self.acknowledged(load)
            self.wait_batches(cluster, more + 1)
            cluster.kill(cluster.primary)
            self.assert_legal(cluster, cluster.replica, acknowledged)
            self.end(load)
            cluster.start(cluster.primary)
            cluster.wait_in_sync(seconds=60)
            self.assert_equal(cluster)
            for name in load:
                for file in os.listdir(cluster.mounted("")):
                    if file.startswith(name):
                        os.unlink(cluster.mounted(file))

    def test_P2_P6_a_killed_replica_goes_on_where_its_journal_ends(self):
        cluster = self.cluster(rpo="50ms", suspend="60s")
        self.wait_trailing(cluster)
        load = self.load(cluster, "mapped", "lmdb", "plain")
        for _ in range(3):
            self.wait_batches(cluster, 2)
            acknowledged = self.acknowledged(load)
            self.wait_batches(cluster, 2)
            cluster.kill(cluster.replica)
            self.assert_legal(cluster, cluster.replica, acknowledged)
            cluster.start(cluster.replica)
            self.wait_batches(cluster, 2)
        self.assertFalse(cluster.events(cluster.primary, "replica_unfit"), "nothing had to be compared")
        acknowledged = self.acknowledged(load)
        self.end(load)
        self.assert_equal(cluster)
        self.assert_legal(cluster, cluster.replica, acknowledged)


class Limits(RpoTest):
    def test_P1_P6_syncs_wait_at_the_limit_while_the_replica_is_away_and_go_on_when_it_is_back(self):
        for rpo in ("100ms", "256KiB", "50syncs"):
            with self.subTest(rpo=rpo):
                cluster = self.cluster(rpo=rpo, suspend="60s")
                self.wait_trailing(cluster)
                load = self.load(cluster, "mapped", "plain")
                cluster.partition(cluster.primary, cluster.replica)
                wait(lambda: self.trail(cluster)["lag_ns"] > 6_000_000_000, "the replica lags", 30)
                before = self.acknowledged(load)
                wait(lambda: self.trail(cluster)["lag_ns"] > 8_000_000_000, "it lags more", 30)
                self.assertEqual(self.acknowledged(load), before, "no sync returns beyond the RPO")
                self.assertEqual(cluster.replica_status(cluster.replica)["state"], "disconnected")
                cluster.heal(cluster.primary, cluster.replica)
                for name, writer in load.items():
                    writer.wait_for(before[name][0] + 20)
                acknowledged = self.acknowledged(load)
                self.end(load)
                self.assert_equal(cluster)
                self.assert_legal(cluster, cluster.replica, acknowledged)
                self.assertGreater(self.trail(cluster)["breach_ns"], 1_000_000_000)
                cluster.down()

    def test_P1_a_sync_of_the_tree_waits_at_the_limit_too(self):
        cluster = self.cluster(rpo="100ms", suspend="60s")
        self.wait_trailing(cluster)
        done = []

        def rename_and_sync():
            folder = os.open(cluster.mounted(""), os.O_RDONLY | os.O_DIRECTORY)
            while not ended.is_set():
                with open(cluster.mounted("new"), "wb"):
                    pass
                os.rename(cluster.mounted("new"), cluster.mounted("name"))
                os.fsync(folder)
                done.append(None)
            os.close(folder)

        ended = threading.Event()
        thread = threading.Thread(target=rename_and_sync)
        thread.start()
        try:
            wait(lambda: len(done) > 5, "syncs of the directory return", 30)
            cluster.partition(cluster.primary, cluster.replica)
            wait(lambda: self.trail(cluster)["lag_ns"] > 2_000_000_000, "the replica lags", 30)
            before = len(done)
            wait(lambda: self.trail(cluster)["lag_ns"] > 4_000_000_000, "it lags more", 30)
            self.assertEqual(len(done), before, "no sync returns beyond the RPO")
            cluster.heal(cluster.primary, cluster.replica)
            wait(lambda: len(done) > before + 5, "syncs go on", 60)
        finally:
            cluster.heal(cluster.primary, cluster.replica)
            ended.set()
            thread.join()
        self.assert_equal(cluster)

    def test_P6_on_lag_proceed_goes_on_and_says_that_the_replica_lags(self):
        cluster = self.cluster(rpo="100syncs", on_lag="proceed", suspend="60s")
        self.wait_trailing(cluster)
        load = self.load(cluster, "plain")
        cluster.signal(cluster.replica, signal.SIGSTOP)
        try:
            wait(lambda: self.trail(cluster)["lag_syncs"] > 300, "syncs go on beyond the RPO", 60)
        finally:
            cluster.signal(cluster.replica, signal.SIGCONT)
        acknowledged = self.acknowledged(load)
        self.wait_batches(cluster, 2)
        self.assertGreater(self.trail(cluster)["breach_ns"], 0)
        self.end(load)
        self.assert_equal(cluster)
        self.assert_legal(cluster, cluster.replica, acknowledged)

    def test_P5_on_loss_proceed_leaves_the_replica_behind_and_brings_it_back(self):
        cluster = self.cluster(rpo="100ms", on_loss="proceed", deadline="500ms")
        self.wait_trailing(cluster)
        load = self.load(cluster, "mapped", "plain")
        cluster.partition(cluster.primary, cluster.replica)
        wait(lambda: self.trail(cluster) is None, "it is left behind", 30)
        for name, writer in load.items():
            writer.wait_for(self.acknowledged(load)[name][0] + 50)
        cluster.heal(cluster.primary, cluster.replica)
        self.wait_trailing(cluster)
        acknowledged = self.acknowledged(load)
        self.end(load)
        self.assert_equal(cluster)
        self.assert_legal(cluster, cluster.replica, acknowledged)


class Ends(RpoTest):
    def test_a_clean_end_brings_everything_over_and_the_next_mount_compares_nothing(self):
        cluster = self.cluster(rpo="10s")
        self.wait_trailing(cluster)
        load = self.load(cluster, "mapped", "plain")
        acknowledged = self.acknowledged(load)
        self.end(load)
        cluster.stop(cluster.primary)
        self.assertEqual(cluster.differences(cluster.primary, cluster.replica), [])
        self.assert_legal(cluster, cluster.replica, acknowledged)
        cluster.start(cluster.primary)
        self.wait_trailing(cluster)
        self.assertFalse(cluster.events(cluster.primary, "replica_unfit"))
        self.assertFalse(cluster.events(cluster.primary, "redundancy_restored"))

    def test_P3_what_a_killed_program_had_synced_arrives_and_the_copies_are_equal(self):
        cluster = self.cluster(rpo="2s")
        self.wait_trailing(cluster)
        load = self.load(cluster, "mapped", "forked", "lmdb")
        for writer in load.values():
            writer.kill()
        acknowledged = self.acknowledged(load)
        self.end(load)
        self.assert_equal(cluster)
        self.assert_legal(cluster, cluster.replica, acknowledged)


if __name__ == "__main__":
    main()
