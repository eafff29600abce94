# SPDX-License-Identifier: BSD-3-Clause
"""A replica whose resync is cut in its middle can be taken back to what it was before (P2, P8): `pmirror settle`."""

import os
import shutil
import subprocess

from lib.cluster import ClusterTest, CommandFailed, main, wait
from lib.trees import differences

MEGABYTE = 1 << 20
FILES = 8
FILE_MEGABYTES = 40  # so many that the resync takes seconds


class UndoTest(ClusterTest):
    def fill(self, cluster, letter):
        """Large files of one letter, and a tree that differs with it."""
        for number in range(FILES):
            with open(cluster.mounted(f"large{number}"), "wb") as file:
                for _ in range(FILE_MEGABYTES):
                    file.write(letter * MEGABYTE)
        os.mkdir(cluster.mounted(f"folder-{letter.decode()}"))
        with open(cluster.mounted("small"), "wb") as file:
            file.write(letter)

    def first_letters(self, cluster):
        """Of the replica's large files: which of them the resync has reached."""
        letters = []
        for number in range(FILES):
            with open(cluster.backing(cluster.replica, f"large{number}"), "rb") as file:
                letters.append(file.read(1))
        return letters

    def cut_resync(self):
        """A cluster whose primary was killed in the middle of a resync, and whose replica is stopped; a copy of what the replica was."""
        cluster = self.cluster(on_loss="proceed", deadline="500ms")
        self.fill(cluster, b"o")
        with open(cluster.mounted("removed"), "wb") as file:
            file.write(b"precious")
        cluster.wait_in_sync()
        os.sync()
        cluster.kill(cluster.replica)
        before = os.path.join(cluster.scratch, "before")
        subprocess.run(["cp", "-a", cluster.backing(cluster.replica), before], check=True)
        os.unlink(cluster.mounted("removed"))
        os.rename(cluster.mounted("folder-o"), cluster.mounted("folder-m"))
        self.fill(cluster, b"n")
        cluster.start(cluster.replica)
        wait(lambda: b"n" in self.first_letters(cluster), "the first bytes of the resync arrived", 60)
        self.assertEqual(cluster.replica_status(cluster.replica)["state"], "resyncing")
        cluster.kill(cluster.primary)
        cluster.stop(cluster.replica)
        self.assertTrue(differences(before, cluster.backing(cluster.replica)), "the resync had changed nothing yet")
        return cluster, before

    def test_P2_P8_a_resync_that_was_cut_is_settled_to_the_image_before_it(self):
        cluster, before = self.cut_resync()
        backing = cluster.backing(cluster.replica)
        self.assertIn("taken back to its last consistency point", cluster.pmirror("settle", backing))
        self.assertEqual(differences(before, backing), [])
        self.assertIn("nothing to settle", cluster.pmirror("settle", backing))
        cluster.start(cluster.replica)
        with self.assertRaises(CommandFailed) as refusal:
            cluster.pmirror("settle", backing)
        self.assertIn("another pmirrord serves", refusal.exception.errors)
        cluster.start(cluster.primary)
        cluster.wait_in_sync(seconds=90)
        self.assertEqual(cluster.verify(), [])
        self.assertFalse(os.path.exists(os.path.join(backing, ".pmirror/undo/log")))
        shutil.rmtree(before)


if __name__ == "__main__":
    main()
