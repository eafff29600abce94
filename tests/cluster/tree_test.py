# SPDX-License-Identifier: BSD-3-Clause
"""Trees: every change of names, attributes and sizes, and every write, has reached the replica before the call returns (P1, P3)."""

import collections
import errno
import itertools
import multiprocessing
import os
import random
import shutil
import subprocess
import tempfile
import threading

from lib.agents import Agent, Refused
from lib.cluster import BUILD, ClusterTest, main, wait
from lib.leftovers import is_alive
from lib.tree_work import Side, Work, show, split
from lib.trees import differences

PAGE = 4096
WORKERS = 5
STEPS = 350
STEPS_BEFORE_THE_KILL = 120
FORKED = multiprocessing.get_context("fork")


class Worker(threading.Thread):
    """Does the work of a seed on a directory of the mount and, when that has answered, on a plain one, which so holds what was acknowledged."""

    def __init__(self, seed, mounted, plain, steps):
        super().__init__()
        self.seed = seed
        self.done = 0
        self.wrong = None
        self.lost_step = None  # when the daemon was gone
        self.plain = plain
        self._steps = steps
        for directory in (mounted, plain):
            os.makedirs(directory)
        self._mounted_side, self._plain_side = Side(mounted), Side(plain)

    def run(self):
        work = Work(self.seed)
        while self.done < self._steps and self.wrong is None:
            step = work.next()
            answer = self._mounted_side.do(step)
            if self._mounted_side.lost:
                self.lost_step = step
                if step[0] in ("write", "append", "copy"):
                    acknowledged, self.lost_step = split(step, self._mounted_side.written)
                    self._plain_side.do(acknowledged)
                break
            expected = self._plain_side.do(step)
            if answer != expected:
                self.wrong = f"seed {self.seed}, step {self.done}: {show(step)} answered {answer!r:.80}, on a plain directory {expected!r:.80}"
            self.done += 1
        self._mounted_side.close()

    def parts_of_the_lost_step(self):
        """Does it on the plain directory: the replica may have it, although nobody was told. What was several pages may have been on its way in several
        requests."""
        step = self.lost_step
        if step[0] == "write":
            while step[2]:
                part, step = split(step, PAGE - step[3] % PAGE)
                yield self._plain_side.do(part)
        elif step[0] == "copy":
            while step[3]:
                part, step = split(step, min(step[3], PAGE - step[5] % PAGE))
                yield self._plain_side.do(part)
        elif step[0] == "append":
            while step[2]:
                part, step = split(step, PAGE - self._plain_side.place_of_append(step[1]) % PAGE)
                yield self._plain_side.do(part)
        else:
            yield self._plain_side.do(step)

    def close(self):
        self._plain_side.close()


class TreeTest(ClusterTest):
    def assert_equal(self, cluster):
        self.assertEqual(cluster.differences(cluster.primary, cluster.replica), [])
        self.assertEqual(cluster.verify(), [])

    def workers(self, cluster, steps):
        seed = random.randrange(1 << 30)
        workers = [Worker(seed + i, cluster.mounted(f"w{i}"), os.path.join(cluster.scratch, "plain", f"w{i}"), steps) for i in range(WORKERS)]
        for worker in workers:
            self.addCleanup(worker.close)
            worker.start()
        return workers


class Changes(TreeTest):
    def test_P1_random_changes_of_many_threads_answer_like_a_plain_directory_and_are_on_the_replica(self):
        cluster = self.cluster()
        workers = self.workers(cluster, STEPS)
        while any(worker.is_alive() for worker in workers):
            self.assertEqual(cluster.verify(), [])  # beside the work
        for worker in workers:
            worker.join()
        self.assertEqual([worker.wrong for worker in workers if worker.wrong], [])
        for i, worker in enumerate(workers):
            self.assertEqual(differences(cluster.backing(cluster.replica, f"w{i}"), worker.plain), [], f"seed {worker.seed}")
        self.assert_equal(cluster)

    def test_P3_every_change_that_was_acknowledged_is_on_each_replica_when_the_primary_is_killed(self):
        cluster = self.cluster(nodes=3)
        workers = self.workers(cluster, 1 << 30)
        wait(lambda: all(worker.done >= STEPS_BEFORE_THE_KILL or not worker.is_alive() for worker in workers), "the workers are busy")
        cluster.kill(cluster.primary)
        for i, worker in enumerate(workers):
            worker.join()
            self.assertIsNone(worker.wrong)
            missing = {node: differences(cluster.backing(node, f"w{i}"), worker.plain) for node in cluster.replicas}
            ahead = {node for node in cluster.replicas if missing[node]}
            for _ in worker.parts_of_the_lost_step():
                ahead = {node for node in ahead if differences(cluster.backing(node, f"w{i}"), worker.plain)}
            self.assertEqual(ahead, set(), f"seed {worker.seed}, {worker.done} steps, then {show(worker.lost_step)}; before that one: {missing}")

    def test_P1_processes_that_change_the_same_names_leave_equal_trees(self):
        cluster = self.cluster()
        seed = random.randrange(1 << 30)
        processes = [FORKED.Process(target=work_beside_others, args=(cluster.mounted(""), seed + i)) for i in range(WORKERS)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        self.assertEqual([process.exitcode for process in processes], [0] * WORKERS, f"seed {seed}")
        self.assert_equal(cluster)


def work_beside_others(directory, seed):
    side, work = Side(directory), Work(seed)
    for _ in range(STEPS):
        side.do(work.next())
    side.close()


RECORDS = 150
RECORD_BYTES = 37


def append_records(path, writer):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in range(RECORDS):
        os.write(fd, b"%d %d " % (writer, number) + b"." * (RECORD_BYTES - len(b"%d %d " % (writer, number))))
    os.close(fd)


class Appends(TreeTest):
    def test_P1_records_that_processes_and_threads_append_are_all_on_the_replica_once_and_whole(self):
        cluster = self.cluster()
        path = cluster.mounted("log")
        appenders = [FORKED.Process(target=append_records, args=(path, i)) for i in range(3)]
        for appender in appenders:
            appender.start()
        appenders += [threading.Thread(target=append_records, args=(path, i)) for i in range(3, 6)]
        for appender in appenders[3:]:
            appender.start()
        for appender in appenders:
            appender.join()
        with open(cluster.backing(cluster.replica, "log"), "rb") as file:
            text = file.read()
        self.assertEqual(len(text), len(appenders) * RECORDS * RECORD_BYTES)
        found = collections.Counter(tuple(map(int, text[at:at + RECORD_BYTES].split()[:2])) for at in range(0, len(text), RECORD_BYTES))
        self.assertEqual(found, collections.Counter((i, number) for i in range(len(appenders)) for number in range(RECORDS)))
        self.assert_equal(cluster)


class Suites(TreeTest):
    """The cases of tests/unit/fs, which run there with a recorder in place of replication, on the mount of a cluster."""

    def run_suite(self, program, tests):
        cluster = self.cluster()
        run = subprocess.run([os.path.join(BUILD, "bin", program), f"--gtest_filter={tests}"], capture_output=True, text=True,
                             timeout=240, check=False, env={**os.environ, "PMIRROR_TEST_MOUNT": cluster.mounted(""), "PMIRROR_TEST_DIR": "/tmp"})
        self.assertEqual(run.returncode, 0, run.stdout[-4000:] + run.stderr[-2000:])
        self.assertNotEqual(os.listdir(cluster.backing(cluster.replica)), [".pmirror"])
        self.assert_equal(cluster)

    def test_P1_every_case_of_the_posix_suite_passes_and_is_on_the_replica(self):
        self.run_suite("fs_posix_test", "Posix/PosixTest.*")

    def test_P1_the_random_work_on_files_matches_its_copy_in_memory_and_is_on_the_replica(self):
        self.run_suite("fs_exerciser_test", "FileExerciserTest.*")


class FullDisk(TreeTest):
    """A node whose backing directory is on a small memory file system, beside a ballast that leaves no room."""

    def small_cluster(self, node, domain="file", **options):
        shared = tempfile.mkdtemp(dir="/dev/shm", prefix="pmc")
        self.addCleanup(shutil.rmtree, shared, ignore_errors=True)
        cluster = self.cluster(backing_root=shared, domain=domain, **options)
        backing = cluster.backing(cluster.primary if node == "primary" else cluster.replica)
        self.room = os.path.dirname(os.path.normpath(backing))
        cluster.pmirror("sandbox", "down", cluster.directory)  # it was there to tell its paths, which depend on the directory alone
        os.makedirs(self.room)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m,nr_inodes=400", "pmirror-test", self.room], check=True)
        self.addCleanup(subprocess.run, ["umount", "-l", self.room], check=True)
        return cluster.up()

    def take_all_room(self):
        os.mkdir(os.path.join(self.room, "ballast"))
        try:
            with open(os.path.join(self.room, "ballast", "bytes"), "wb", buffering=0) as file:
                while True:
                    file.write(bytes(PAGE))
        except OSError as error:
            self.assertEqual(error.errno, errno.ENOSPC)
        with self.assertRaises(OSError):
            for number in itertools.count():
                os.mkdir(os.path.join(self.room, "ballast", str(number)))

    def make_room(self):
        shutil.rmtree(os.path.join(self.room, "ballast"))

    def assert_no_room(self, function, *arguments, errors=(errno.ENOSPC,)):
        with self.assertRaises(OSError) as failed:
            function(*arguments)
        self.assertIn(failed.exception.errno, errors, failed.exception)

    def agent_with_mapping(self, cluster, path):
        agent = Agent(cluster)
        self.addCleanup(agent.close)
        agent.do(f"m = Map({path!r})")
        return agent

    def test_Trap9_a_full_replica_refuses_and_lives_and_everything_converges_when_there_is_room(self):
        for domain in ("file", "pmem"):  # the one writes, the other stores to a mapping
            with self.subTest(domain):
                self.fill_the_replica(self.small_cluster("replica", domain))

    def fill_the_replica(self, cluster):
        replica = cluster.node(cluster.replica)
        for name in ("written", "mapped"):
            with open(cluster.mounted(name), "wb") as file:
                file.truncate(1 << 20)
        agent = self.agent_with_mapping(cluster, cluster.mounted("mapped"))
        agent.do("m.store(0, b'fits'); m.msync()")
        self.take_all_room()
        with self.assertRaises(Refused) as refused:
            agent.do("m.store(9 * PAGE, b'no room'); m.msync()")
        self.assertEqual(str(refused.exception), "EIO")
        self.assertRaises(Refused, agent.do, "m.msync()")
        self.wait_until_status_tells_it(cluster)
        fd = os.open(cluster.mounted("written"), os.O_RDWR)
        self.addCleanup(os.close, fd)
        self.assert_no_room(os.pwrite, fd, b"w" * PAGE, 5 * PAGE)
        self.assert_no_room(os.mkdir, cluster.mounted("directory"))
        self.assert_no_room(os.mkdir, cluster.mounted("another"))
        self.wait_until_status_tells_it(cluster)
        self.assertTrue(is_alive(replica.pid))
        self.make_room()
        cluster.wait_in_sync()
        agent.do("m.msync()")
        os.mkdir(cluster.mounted("later"))
        wait(lambda: cluster.replica_status(cluster.replica)["dirty_bytes"] == 0, "nothing is dirty")
        self.assert_equal(cluster)
        self.assertTrue(os.path.isdir(cluster.backing(cluster.replica, "directory")))

    def test_Trap9_P6_a_full_replica_that_trails_is_told_and_gets_everything_when_there_is_room(self):
        for on_loss in ("suspend", "proceed"):
            with self.subTest(on_loss):
                cluster = self.small_cluster("replica", rpo="50ms", on_lag="proceed", on_loss=on_loss, deadline="500ms")
                wait(lambda: "trail" in cluster.replica_status(cluster.replica), "it trails")
                path = cluster.mounted("file")
                with open(path, "wb") as file:
                    file.truncate(1 << 20)
                agent = self.agent_with_mapping(cluster, path)
                self.assertEqual(cluster.verify(), [])
                self.take_all_room()
                agent.do("m.store(9 * PAGE, b'no room'); m.msync()")
                os.mkdir(cluster.mounted("directory"))
                self.wait_until_status_tells_it(cluster)
                self.make_room()
                cluster.wait_in_sync(seconds=60)
                wait(lambda: "trail" in cluster.replica_status(cluster.replica), "it trails again")
                agent.do("m.store(3 * PAGE, b'room'); m.msync()")
                self.assertEqual(cluster.verify(), [])
                self.assert_equal(cluster)
                agent.close()
                cluster.down()

    def test_Trap9_P6_under_proceed_a_full_replica_is_left_behind_and_brought_back_when_there_is_room(self):
        for who in ("mapped", "written", "tree"):  # meets it first
            with self.subTest(who):
                cluster = self.small_cluster("replica", on_loss="proceed", deadline="500ms")
                path = cluster.mounted("file")
                with open(path, "wb") as file:
                    file.truncate(1 << 20)
                agent = self.agent_with_mapping(cluster, path)
                self.take_all_room()
                fd = os.open(path, os.O_RDWR)
                self.addCleanup(os.close, fd)
                if who == "mapped":
                    agent.do("m.store(9 * PAGE, b'no room'); m.msync()")
                elif who == "written":
                    os.pwrite(fd, b"w" * PAGE, 5 * PAGE)
                    os.fsync(fd)
                else:
                    os.mkdir(cluster.mounted("directory"))
                self.wait_until_status_tells_it(cluster)
                os.mkdir(cluster.mounted("another"))
                agent.do("m.store(7 * PAGE, b'more'); m.msync()")
                self.make_room()
                cluster.wait_in_sync()
                self.assert_equal(cluster)
                agent.close()

    @staticmethod
    def wait_until_status_tells_it(cluster):
        status = {}

        def told():
            status.update(cluster.replica_status(cluster.replica))
            return status["state"] == "failed" and "No space left" in status["reason"]
        wait(told, lambda: f"told by status: {status}")

    def test_Trap9_a_full_primary_refuses_as_any_full_file_system_and_goes_on_when_there_is_room(self):
        cluster = self.small_cluster("primary")
        with open(cluster.mounted("f"), "wb") as file:
            file.truncate(1 << 20)
        agent = self.agent_with_mapping(cluster, cluster.mounted("f"))
        agent.do("m.store(0, b'here'); m.msync()")
        self.take_all_room()
        self.assert_no_room(os.mkdir, cluster.mounted("directory"))
        self.assert_no_room(os.mknod, cluster.mounted("file"))
        fd = os.open(cluster.mounted("f"), os.O_RDWR)
        self.addCleanup(os.close, fd)
        self.assert_no_room(os.pwrite, fd, b"w" * PAGE, 5 * PAGE)
        self.assert_no_room(os.posix_fallocate, fd, 0, 1 << 20)
        agent.do("m.store(8, b'a page that is there'); m.msync()")
        self.assertTrue(is_alive(cluster.node(cluster.primary).pid))
        self.assertEqual(cluster.replica_status(cluster.replica)["state"], "in-sync")
        self.assert_equal(cluster)
        self.make_room()
        os.mkdir(cluster.mounted("directory"))
        os.pwrite(fd, b"w" * PAGE, 5 * PAGE)
        self.assert_equal(cluster)


if __name__ == "__main__":
    main()
