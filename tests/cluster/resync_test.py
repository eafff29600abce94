# SPDX-License-Identifier: BSD-3-Clause
"""Copies that differ, for whatever reason, become equal by themselves (P5), and nothing acknowledged is lost on the way (P1, P3)."""

import errno
import os
import random
import shutil

from lib.cluster import ClusterTest, main, wait

DEADLINE = "500ms"


class ResyncTest(ClusterTest):
    def assert_equal_again(self, cluster, *nodes):
        cluster.wait_in_sync(seconds=60)
        for node in nodes or cluster.replicas:
            wait(lambda node=node: not cluster.differences(cluster.primary, node), lambda node=node:
                 f"copies are equal: {cluster.differences(cluster.primary, node)[:5]}", 20)
        self.assertEqual(cluster.verify(), [])

    def load(self, cluster):
        """Programs that commit without end: path -> (checker, its Writer)."""
        return {"mapped": ("mmap_writer", cluster.writer("mmap_writer", "mapped", "--sync", "all")),
                "plain": ("raw_static", cluster.writer("raw_static", "plain", preload=False))}

    def assert_nothing_is_lost(self, cluster, load, node):
        for path, (program, writer) in load.items():
            cluster.check(program, node, path, writer.acknowledged())

    def fill(self, cluster, seed):
        """A tree of every kind of object, made through the mount."""
        rng = random.Random(seed)
        for folder in ("a", "a/b", "c"):
            os.mkdir(cluster.mounted(folder))
        for i in range(12):
            path = cluster.mounted(rng.choice(("", "a", "a/b", "c")) + f"/f{i}")
            with open(path, "wb") as file:
                file.write(rng.randbytes(rng.randrange(300_000)))
            os.chmod(path, rng.choice((0o600, 0o644, 0o755)))
        os.symlink("f1", cluster.mounted("link"))
        os.link(cluster.mounted(self.some_file(cluster)), cluster.mounted("hard"))
        os.mkfifo(cluster.mounted("fifo"))

    def some_file(self, cluster):
        for folder, _, files in os.walk(cluster.mounted("")):
            for name in sorted(files):
                if name.startswith("f") and name != "fifo":
                    return os.path.relpath(os.path.join(folder, name), cluster.mounted(""))
        raise AssertionError("no file")

    def change(self, cluster):
        """Renames, removes, truncates, links, overwrites."""
        root = cluster.mounted("")
        os.rename(os.path.join(root, "a/b"), os.path.join(root, "c/b"))
        os.rename(os.path.join(root, "c"), os.path.join(root, "moved"))
        os.link(os.path.join(root, "hard"), os.path.join(root, "a/hard2"))
        os.unlink(os.path.join(root, "hard"))
        with open(os.path.join(root, "a/hard2"), "r+b") as file:
            file.truncate(1000)
            file.seek(500)
            file.write(b"changed")
        os.unlink(os.path.join(root, "link"))
        os.symlink("elsewhere", os.path.join(root, "link"))
        os.mkdir(os.path.join(root, "new"))
        with open(os.path.join(root, "new/file"), "wb") as file:
            file.write(b"n" * 70_000)
        os.setxattr(os.path.join(root, "new/file"), "user.x", b"y")
        os.chmod(os.path.join(root, "a"), 0o711)


class Crashes(ResyncTest):
    def test_P3_P5_the_primary_daemon_is_killed_under_load_and_started_again(self):
        cluster = self.cluster()
        for _ in range(2):
            load = self.load(cluster)
            for _, writer in load.values():
                writer.wait_for(30)
            cluster.kill(cluster.primary)
            self.assert_nothing_is_lost(cluster, load, cluster.replica)
            for _, writer in load.values():
                writer.close()
            cluster.start(cluster.primary)
            self.assert_equal_again(cluster)
            self.assertTrue(cluster.events(cluster.primary, "redundancy_restored", node=cluster.replica))
            for path in load:
                os.unlink(cluster.mounted(path))

    def test_P3_both_daemons_are_killed_in_either_order(self):
        cluster = self.cluster()
        for first, second in ((cluster.primary, cluster.replica), (cluster.replica, cluster.primary)):
            load = self.load(cluster)
            for _, writer in load.values():
                writer.wait_for(30)
            cluster.kill(first)
            cluster.kill(second)
            for _, writer in load.values():
                writer.close()
            cluster.start(first)
            cluster.start(second)
            self.assert_equal_again(cluster)
            self.assert_nothing_is_lost(cluster, load, cluster.replica)
            self.assert_nothing_is_lost(cluster, load, cluster.primary)
            for path in load:
                os.unlink(cluster.mounted(path))

    def test_P5_a_replica_whose_copy_was_taken_away_is_filled_anew(self):
        cluster = self.cluster(on_loss="proceed", deadline=DEADLINE)
        self.fill(cluster, 1)
        cluster.kill(cluster.replica)
        shutil.rmtree(cluster.backing(cluster.replica))
        os.mkdir(cluster.backing(cluster.replica))
        os.unlink(os.path.join(cluster.directory, cluster.replica, "state", "v0.copy"))
        self.change(cluster)
        cluster.start(cluster.replica)
        self.assert_equal_again(cluster)


    def test_P5_P9_a_damaged_map_of_marks_costs_a_comparison_of_everything_and_no_data(self):
        cluster = self.cluster(on_loss="proceed", deadline=DEADLINE)
        self.fill(cluster, 6)
        load = self.load(cluster)
        for _, writer in load.values():
            writer.wait_for(30)
        cluster.kill(cluster.replica)
        for _, writer in load.values():
            writer.wait_for(writer.acknowledged()[0] + 100)
        cluster.kill(cluster.primary)
        marks = os.path.join(cluster.directory, cluster.primary, "state", "v0.marks")
        size = os.path.getsize(marks)
        with open(marks, "r+b") as file:
            for offset in range(0, size, 512):
                file.seek(offset)
                file.write(b"damaged")
        cluster.start(cluster.primary)
        cluster.start(cluster.replica)
        self.assert_equal_again(cluster)
        self.assert_nothing_is_lost(cluster, load, cluster.replica)
        self.assertEqual(len(cluster.events(cluster.primary, "marks_in_doubt")), 1)


class Proceed(ResyncTest):
    def test_the_bytes_sent_are_about_those_that_differ(self):
        cluster = self.cluster(on_loss="proceed", deadline=DEADLINE)
        pages, dirty = 16384, 300
        with open(cluster.mounted("large"), "wb") as file:
            file.write(os.urandom(pages * 4096))
        cluster.partition(cluster.primary, cluster.replica)
        with open(cluster.mounted("large"), "r+b") as file:
            for page in random.Random(7).sample(range(pages), dirty):
                os.pwrite(file.fileno(), os.urandom(4096), page * 4096)
            os.fsync(file.fileno())
        self.assertGreaterEqual(cluster.replica_status(cluster.replica)["dirty_bytes"], dirty * 4096)
        cluster.heal(cluster.primary, cluster.replica)
        self.assert_equal_again(cluster)
        line = cluster.events(cluster.primary, "redundancy_restored")[0]
        sent = int(next(word for word in line.split() if word.startswith("bytes_sent=")).split("=")[1])
        self.assertGreaterEqual(sent, dirty * 4096)
        self.assertLessEqual(sent, 1.1 * dirty * 4096)

    def test_P1_P3_programs_go_on_without_the_replica_and_it_is_brought_back(self):
        cluster = self.cluster(on_loss="proceed", deadline=DEADLINE)
        self.fill(cluster, 2)
        load = self.load(cluster)
        for _, writer in load.values():
            writer.wait_for(30)
        cluster.partition(cluster.primary, cluster.replica)
        for _, writer in load.values():
            writer.wait_for(writer.acknowledged()[0] + 200)
        cluster.wait_state(cluster.replica, "disconnected")
        self.change(cluster)
        self.assertGreater(cluster.replica_status(cluster.replica)["dirty_bytes"], 0)
        self.assertEqual(len(cluster.events(cluster.primary, "redundancy_lost")), 1)
        cluster.heal(cluster.primary, cluster.replica)
        cluster.wait_in_sync()
        for _, writer in load.values():
            writer.wait_for(writer.acknowledged()[0] + 30)
        for _, writer in load.values():
            writer.kill()
        self.assert_nothing_is_lost(cluster, load, cluster.replica)
        self.assert_equal_again(cluster)
        self.assertEqual(cluster.replica_status(cluster.replica)["dirty_bytes"], 0)

    def test_P3_one_of_two_replicas_is_away_and_the_other_goes_on(self):
        cluster = self.cluster(nodes=3, on_loss="proceed", deadline=DEADLINE)
        first, second = cluster.replicas
        load = self.load(cluster)
        for _, writer in load.values():
            writer.wait_for(30)
        cluster.kill(second)
        for _, writer in load.values():
            writer.wait_for(writer.acknowledged()[0] + 100)
        self.assert_nothing_is_lost(cluster, load, first)
        cluster.start(second)
        cluster.wait_in_sync()
        for _, writer in load.values():
            writer.kill()
        for node in (first, second):
            self.assert_nothing_is_lost(cluster, load, node)
        self.assert_equal_again(cluster)

    def test_P6_a_volume_that_is_mounted_while_its_replica_is_away_goes_on_without_it(self):
        cluster = self.cluster(on_loss="proceed", deadline=DEADLINE)
        cluster.kill(cluster.replica)
        cluster.kill(cluster.primary)
        cluster.start(cluster.primary)
        writer = cluster.writer("mmap_writer", "alone", "--sync", "all")
        writer.wait_for(30)
        self.assertTrue(cluster.events(cluster.primary, "redundancy_lost"))
        cluster.start(cluster.replica)
        cluster.wait_in_sync()
        writer.kill()
        cluster.check("mmap_writer", cluster.replica, "alone", writer.acknowledged())
        self.assert_equal_again(cluster)

    def test_P5_a_clean_end_without_the_replica_does_not_hide_that_it_lacks_something(self):
        cluster = self.cluster(on_loss="proceed", deadline=DEADLINE)
        self.fill(cluster, 3)
        cluster.kill(cluster.replica)
        self.change(cluster)
        cluster.stop(cluster.primary)
        cluster.start(cluster.primary)
        cluster.start(cluster.replica)
        self.assert_equal_again(cluster)


    def test_P4_a_primary_whose_replica_follows_a_later_mount_is_fenced(self):
        cluster = self.cluster(on_loss="proceed", deadline=DEADLINE)
        with open(cluster.mounted("file"), "wb") as file:
            file.write(b"x")
        state = os.path.join(cluster.directory, cluster.primary, "state")
        cluster.stop(cluster.primary)
        for name in ("v0.copy", "v0.marks"):
            shutil.copy(os.path.join(state, name), cluster.scratch)
        for _ in range(2):
            cluster.start(cluster.primary)
            cluster.wait_in_sync()
            cluster.stop(cluster.primary)
        for name in ("v0.copy", "v0.marks"):
            shutil.copy(os.path.join(cluster.scratch, name), state)
        cluster.start(cluster.primary)
        wait(lambda: cluster.events(cluster.primary, "superseded", node=cluster.replica), "the primary is told")
        file = os.open(cluster.mounted("file"), os.O_RDWR)
        for call in (lambda: os.fsync(file), lambda: os.write(file, b"y"), lambda: os.mkdir(cluster.mounted("new"))):
            with self.assertRaises(OSError) as refused:
                call()
            self.assertEqual(refused.exception.errno, errno.ESTALE)
        os.close(file)
        self.assertEqual(len(cluster.events(cluster.primary, "superseded")), 1)
        status = cluster.replica_status(cluster.replica)
        self.assertEqual(status["state"], "stale")
        self.assertIn("fenced", status["reason"])


class Commands(ResyncTest):
    def test_P5_verify_finds_bytes_that_were_changed_on_the_replica_and_repairs_them(self):
        cluster = self.cluster()
        self.fill(cluster, 4)
        self.assertEqual(cluster.verify(), [])
        with open(cluster.backing(cluster.replica, self.some_file(cluster)), "r+b") as file:
            file.write(b"rotten")
        os.chmod(cluster.backing(cluster.replica, "a"), 0o700)
        self.assertEqual(len(cluster.verify()), 3)  # data, mode, and the sentence
        cluster.pmirror("verify", "--sandbox", cluster.directory, "v0", "--repair", cluster.replica)
        self.assert_equal_again(cluster)

    def test_resync_of_copies_that_are_in_sync_returns_at_once_and_a_full_one_compares_them(self):
        cluster = self.cluster()
        self.fill(cluster, 5)
        self.assertIn("in sync", cluster.pmirror("resync", "--sandbox", cluster.directory, "v0"))
        self.assertFalse(cluster.events(cluster.primary, "redundancy_restored"))
        self.assertIn("in sync", cluster.pmirror("resync", "--sandbox", cluster.directory, "v0", cluster.replica, "--full"))
        self.assertTrue(cluster.events(cluster.primary, "redundancy_restored"))


if __name__ == "__main__":
    main()
