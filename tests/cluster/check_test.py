# SPDX-License-Identifier: BSD-3-Clause
"""The background check of copies (docs/internals/verify.md): it finds what was changed on a replica without being asked, and cries wolf at nothing
that programs do beside it, nor at replicas that trail, come and go."""

import os
import random
import threading

from lib.cluster import ClusterTest, CommandFailed, main, wait
from lib.tree_work import Side, Work
from writers import CASES

MIB = 1 << 20
PAGE = 4096
PROGRAMS = ("lmdb", "mmap_fork", "pmem_all_ways", "sqlite", "raw_static")


class CheckTest(ClusterTest):
    def checked(self, **options):
        """A cluster that goes through all files once a second, or as fast as it may."""
        return self.cluster(check="1s", **options)

    def load(self, cluster):
        for name in PROGRAMS:
            program, words, _, env = CASES[name]
            preload = name != "raw_static"
            writer = cluster.writer(program, name, *words, preload=preload, env=env if preload else {})
            writer.wait_for(3)

    def change_the_tree(self, cluster):
        """Random work on names and sizes, on a thread, until the test ends."""
        os.mkdir(cluster.mounted("tree"))
        side, work, stop = Side(cluster.mounted("tree")), Work(5), threading.Event()

        def run():
            while not stop.is_set() and not side.lost:
                side.do(work.next())
            side.close()
        thread = threading.Thread(target=run)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(stop.set)

    def check(self, cluster, node=None):
        """What status tells of the check; a primary that is too busy to answer is asked again."""
        return wait(lambda: cluster.replica_status(node or cluster.replica).get("check"), "the primary tells of its check")

    def wait_rounds(self, cluster, more, node=None):
        """Until so many more rounds have begun and ended."""
        target = self.check(cluster, node)["rounds"] + more + 1
        wait(lambda: self.check(cluster, node)["rounds"] >= target, lambda: f"round {target}: {self.check(cluster, node)}", 200)

    def still(self, cluster, size=MIB):
        """A file that nobody changes any more."""
        with open(cluster.mounted("still"), "wb") as file:
            file.write(random.Random(1).randbytes(size))
            file.flush()
            os.fsync(file.fileno())

    def damage(self, cluster, offset, name="still"):
        with open(cluster.backing(cluster.replica, name), "r+b") as file:
            file.seek(offset)
            file.write(b"rotten")

    def alarms(self, cluster):
        return cluster.events(cluster.primary, "copies_differ")

    def wait_alarm(self, cluster, **fields):
        wait(lambda: cluster.events(cluster.primary, "copies_differ", node=cluster.replica, **fields),
             lambda: f"the damage is found: {self.alarms(cluster)} {self.check(cluster)}", 60)


class Finds(CheckTest):
    def test_P5_damage_on_a_replica_is_found_while_programs_write_and_nothing_else_is(self):
        for rpo in ("0", "50ms"):
            with self.subTest(rpo=rpo):
                cluster = self.checked(rpo=rpo)
                self.still(cluster)
                self.load(cluster)
                self.wait_rounds(cluster, 1)
                self.assertEqual(self.alarms(cluster), [])
                self.damage(cluster, 100 * PAGE + 17)
                self.wait_alarm(cluster, path="still", what="data", found_by="check", offset=100 * PAGE, length=PAGE)
                check = self.check(cluster)
                self.assertEqual((check["differences"], check["first"]),
                                 (1, {"path": "still", "what": "data", "offset": 100 * PAGE, "length": PAGE}))
                self.assertIn("/still", cluster.pmirror("status", "--sandbox", cluster.directory))
                cluster.pmirror("verify", "--sandbox", cluster.directory, "v0", "--repair", cluster.replica)
                wait(lambda: self.check(cluster)["differences"] == 0, "status tells that it is mended")
                self.wait_rounds(cluster, 1)
                self.assertEqual(len(self.alarms(cluster)), 1)
                self.assertEqual(len(cluster.events(cluster.primary, "copies_equal", node=cluster.replica)), 1)

    def test_P5_a_page_of_a_file_that_a_program_maps_and_a_file_that_is_gone_are_found_and_told_as_one_condition(self):
        cluster = self.checked()
        self.still(cluster)
        stepper = cluster.stepper("mapped", mapped=True)
        self.assertEqual([stepper.do("store", page, "good") for page in range(16)] + [stepper.do("fsync")], [0] * 17)
        self.damage(cluster, 5 * PAGE, "mapped")
        self.wait_alarm(cluster, path="mapped", offset=5 * PAGE)
        # The replica's daemon knows the file until it looks at the directory again.
        os.unlink(cluster.backing(cluster.replica, "still"))
        cluster.kill(cluster.replica)
        cluster.start(cluster.replica)
        wait(lambda: self.check(cluster)["differences"] == 2, lambda: f"both are known: {self.check(cluster)}", 60)
        self.assertEqual(len(self.alarms(cluster)), 1)
        # The program's own sync mends the page; the check sees that by itself.
        self.assertEqual([stepper.do("store", 5, "newer"), stepper.do("fsync")], [0, 0])
        wait(lambda: self.check(cluster)["differences"] == 1, lambda: f"one is left: {self.check(cluster)}", 60)
        self.assertFalse(cluster.events(cluster.primary, "copies_equal"))
        cluster.pmirror("verify", "--sandbox", cluster.directory, "v0", "--repair", cluster.replica)
        wait(lambda: self.check(cluster)["differences"] == 0, "nothing differs")
        self.assertEqual(cluster.differences(cluster.primary, cluster.replica), [])

    def test_P5_damage_stays_known_when_the_file_gets_another_name_and_ends_with_the_copy(self):
        cluster = self.cluster(check="12s", nodes=3)  # what is known is looked at between two walks
        self.still(cluster)
        self.damage(cluster, 7 * PAGE)
        self.wait_alarm(cluster, path="still", offset=7 * PAGE)
        os.rename(cluster.mounted("still"), cluster.mounted("moved"))
        self.wait_rounds(cluster, 1)
        self.assertEqual(self.check(cluster)["differences"], 1)
        self.assertFalse(cluster.events(cluster.primary, "copies_equal"))
        for action in ("remove", "add"):
            cluster.pmirror("replica", action, "--sandbox", cluster.directory, "v0", cluster.replica, seconds=150)
        self.assertEqual(len(cluster.events(cluster.primary, "copies_equal", node=cluster.replica)), 1)
        self.wait_rounds(cluster, 1)
        self.assertEqual(self.check(cluster)["differences"], 0)
        self.assertEqual(len(self.alarms(cluster)), 1)

    def test_status_tells_the_last_verify_and_that_no_check_runs(self):
        cluster = self.cluster(check="off")
        self.still(cluster, PAGE)
        status = cluster.replica_status(cluster.replica)
        self.assertEqual((status["check"], status["verify"]), (None, None))
        self.assertEqual(cluster.verify(), [])
        first = cluster.replica_status(cluster.replica)["verify"]
        self.assertEqual((first["equal"], first["bytes"], first["differences"], first["busy"]), (True, PAGE, 0, 0))
        self.damage(cluster, 0)
        self.assertEqual(len(cluster.verify()), 2)
        second = cluster.replica_status(cluster.replica)["verify"]
        self.assertEqual((second["equal"], second["differences"]), (False, 1))
        self.assertGreater(second["time"], first["time"])
        self.assertEqual(len(cluster.events(cluster.primary, "copies_differ", found_by="verify", path="still")), 1)
        cluster.pmirror("verify", "--sandbox", cluster.directory, "v0", "--repair", cluster.replica)
        self.assertTrue(cluster.replica_status(cluster.replica)["verify"]["equal"])
        self.assertEqual(len(cluster.events(cluster.primary, "copies_equal")), 1)

    def test_P9_the_primary_is_not_repaired_from_a_replica(self):
        cluster = self.cluster()
        self.still(cluster, PAGE)
        with self.assertRaises(CommandFailed) as refused:
            cluster.pmirror("verify", "--sandbox", cluster.directory, "v0", "--repair", cluster.primary)
        self.assertEqual(refused.exception.status, 1)
        self.assertIn(f"{cluster.primary} is the primary of v0", refused.exception.errors)
        self.assertEqual(cluster.replica_status(cluster.replica)["state"], "in-sync")


class NoFalseAlarm(CheckTest):
    def test_P5_beside_programs_of_all_kinds_and_changes_of_the_tree(self):
        for rpo in ("0", "50ms"):
            with self.subTest(rpo=rpo):
                cluster = self.checked(rpo=rpo)
                self.load(cluster)
                self.change_the_tree(cluster)
                self.wait_rounds(cluster, 2)
                self.assertEqual(self.alarms(cluster), [])
                self.assertFalse(cluster.events(cluster.primary, "check_failed"))
                self.assertFalse(cluster.events(cluster.primary, "sync_failed"))
                self.doCleanups()

    def test_P5_while_replicas_come_and_go(self):
        cluster = self.checked(nodes=3, on_loss="proceed", deadline="500ms")
        self.load(cluster)
        self.change_the_tree(cluster)
        for node in cluster.replicas:
            cluster.kill(node)
            cluster.wait_state(node, "disconnected")
            cluster.start(node)
            cluster.wait_in_sync(seconds=60)
            self.wait_rounds(cluster, 1)
            cluster.partition(cluster.primary, node)
            cluster.wait_state(node, "disconnected")
            cluster.heal(cluster.primary, node)
            cluster.wait_in_sync(seconds=60)
            self.wait_rounds(cluster, 1)
        self.assertEqual(self.alarms(cluster), [])
        self.assertFalse(cluster.events(cluster.primary, "check_failed"))


if __name__ == "__main__":
    main()
