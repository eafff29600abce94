# SPDX-License-Identifier: BSD-3-Clause
"""Several programs on one file, under the preload library and without it, and what happens to a file while it is mapped (P1, traps 1 to 8)."""

import os
import random
import shutil
import tempfile

from lib.agents import Agent, Refused
from lib.cluster import ClusterTest, main, wait

PAGE = 4096
PAGES = 8


class SharingTest(ClusterTest):
    def setUp(self):
        self.sandbox = self.cluster()

    def agent(self, preload=True, **options):
        agent = Agent(self.sandbox, preload, **options)
        self.addCleanup(agent.close)
        return agent

    def make(self, name="f", size=PAGES * PAGE):
        """A file of zeros; its path on the mount."""
        path = self.sandbox.mounted(name)
        with open(path, "wb") as file:
            file.truncate(size)
        return path

    def mapper(self, path, **options):
        """A preloaded program that has the file mapped as `m`."""
        agent = self.agent(**options)
        agent.do(f"m = Map({path!r})")
        return agent

    def plain(self):
        return self.agent(preload=False)

    def on_replica(self, offset, length, name="f"):
        with open(self.sandbox.backing(self.sandbox.replica, name), "rb") as file:
            return os.pread(file.fileno(), length, offset)

    def assert_on_replica(self, offset, data, name="f"):
        self.assertEqual(self.on_replica(offset, len(data), name), data)

    def assert_equal(self):
        self.assertEqual(self.sandbox.differences(self.sandbox.primary, self.sandbox.replica), [])
        self.assertEqual(self.sandbox.verify(), [])

    def refused(self, agent, text):
        with self.assertRaises(Refused) as failed:
            agent.do(text)
        return str(failed.exception)


class Processes(SharingTest):
    def test_Trap1_two_programs_that_sync_overlapping_pages_leave_the_newest_bytes(self):
        path = self.make()
        both = [self.mapper(path), self.mapper(path)]
        for i, agent in enumerate(both):
            agent.begin(f"for n in range(150): m.store((n % 7) * PAGE + {i * 8}, n.to_bytes(8, 'little')); m.msync((n % 7) * PAGE, 2 * PAGE)")
        for agent in both:
            agent.end()
        for page in range(7):
            newest = max(n for n in range(150) if n % 7 == page).to_bytes(8, "little")
            self.assert_on_replica(page * PAGE, newest + newest)
        self.assert_equal()

    def test_Trap4_a_sync_covers_the_stores_of_a_program_that_is_stopped(self):
        path = self.make()
        a, b = self.mapper(path), self.mapper(path)
        for n, sync in enumerate(("m.msync()", "m.fsync()", "call('syncfs', m.fd)", "call('sync')", f"m.msync({PAGE}, {PAGE})")):
            text = b"stopped %d" % n
            a.do(f"m.store({PAGE}, {text!r})")
            a.stop()
            b.do(sync)
            self.assert_on_replica(PAGE, text)
            a.go_on()
        self.assert_equal()

    def test_Trap4_a_sync_covers_the_stores_of_a_program_that_was_killed_just_before(self):
        path = self.make()
        b = self.mapper(path)
        for n in range(8):
            a = self.mapper(path)
            text = b"killed %d" % n
            a.do(f"m.store({n * PAGE}, {text!r})")
            a.process.kill()  # it is not waited for: it may be dying still
            b.do("m.fsync()" if n % 2 else f"m.msync({n * PAGE}, PAGE)")
            self.assert_on_replica(n * PAGE, text)
        self.assert_equal()

    def test_Trap4_a_sync_covers_the_stores_of_a_program_that_has_just_unmapped(self):
        path = self.make()
        b = self.mapper(path)
        for n in range(8):
            a = self.mapper(path)
            text = b"unmapped %d" % n
            a.do(f"m.store({n * PAGE}, {text!r}); m.unmap()")
            b.do("m.fsync()" if n % 2 else f"m.msync({n * PAGE}, PAGE)")
            self.assert_on_replica(n * PAGE, text)
        self.assert_equal()

    def test_Trap4_a_sync_of_a_mapping_that_is_only_read_covers_the_stores_of_others(self):
        path = self.make()
        a, b, c = self.mapper(path), self.agent(), self.agent()
        b.do(f"m = Map({path!r}, access=os.O_RDONLY, protection=PROT_READ)")
        c.do(f"m = Map({path!r}, protection=PROT_READ)")
        for n, reader in enumerate((b, c)):
            text = b"read by %d" % n
            a.do(f"m.store({n * PAGE}, {text!r})")
            self.assertEqual(reader.do(f"m.load({n * PAGE}, {len(text)})"), text.decode())
            reader.do("m.msync()")
            self.assert_on_replica(n * PAGE, text)
        self.assert_equal()

    def test_Trap4_sync_and_syncfs_cover_the_stores_of_plain_programs_to_other_files(self):
        path, other = self.make(), self.make("other")
        a, plain = self.mapper(path), self.plain()
        plain.do(f"m = Map({other!r})")
        for n in range(20):
            plain.do(f"for page in range({PAGES}): m.store(page * PAGE, b'plain {n}')")
            a.do(f"m.store(0, b'mine {n}')")
            if n % 3 == 0:
                os.sync()  # now the kernel has pages on their way that are not dirty any more
            a.do("call('syncfs', m.fd)" if n % 2 else "call('sync')")
            for page in range(PAGES):
                self.assert_on_replica(page * PAGE, b"plain %d" % n, "other")
            self.assert_on_replica(0, b"mine %d" % n)
        self.assert_equal()

    def test_Trap7_what_a_killed_program_had_stored_and_not_synced_reaches_the_replica_without_anybody_asking(self):
        path = self.make()
        a = self.mapper(path)
        a.do("m.store(0, b'never synced')")
        a.kill()
        wait(lambda: self.on_replica(0, 12) == b"never synced", "the bytes are on the replica")
        self.assert_equal()


class Threads(SharingTest):
    def test_Trap2_threads_that_sync_the_same_and_different_ranges_return_with_their_stores_on_the_replica(self):
        path = self.make(size=16 * PAGE)
        agent = self.agent()
        replica = self.sandbox.backing(self.sandbox.replica, "f")
        agent.do(f"m, replica = Map({path!r}), os.open({replica!r}, os.O_RDONLY)")
        agent.do("""
def work(i):
    for n in range(1, 80):
        page = (n * (i // 2 + 1)) % 16  # threads 2k and 2k+1 go the same way
        at, data = page * PAGE + i * 16, (n * 8 + i).to_bytes(8, "little")
        m.store(at, data)
        if n % 3 == 0: m.fsync()
        elif n % 3 == 1: m.msync(page * PAGE, PAGE)
        else: m.msync(0, 16 * PAGE)
        found = os.pread(replica, 8, at)
        if found != data: raise OSError(errno.EILSEQ, f"thread {i} step {n}")
""")
        agent.do("in_threads(8, work)")
        self.assert_equal()


class Plain(SharingTest):
    def test_Trap5_the_fsync_of_a_plain_program_covers_the_stores_of_mappers(self):
        path = self.make()
        a, plain = self.mapper(path), self.plain()
        for n in range(6):
            text = b"mapped %d" % n
            a.do(f"m.store({n * PAGE}, {text!r})")
            plain.do(f"fd = os.open({path!r}, os.O_RDWR); os.pwrite(fd, b'plain {n}', {n * PAGE + 100})")
            plain.do("os.fsync(fd)" if n % 2 else "os.fdatasync(fd)")
            plain.do("os.close(fd)")
            self.assert_on_replica(n * PAGE, text)
            self.assert_on_replica(n * PAGE + 100, b"plain %d" % n)
            self.assertEqual(a.do(f"m.load({n * PAGE + 100}, 7)"), f"plain {n}")
        self.assert_equal()

    def test_Trap5_reads_and_writes_of_a_plain_program_are_coherent_with_a_mapping(self):
        path = self.make()
        a, plain = self.mapper(path), self.plain()
        plain.do(f"fd = os.open({path!r}, os.O_RDWR)")
        for n in range(50):
            a.do(f"m.store(0, b'{n:08}')")
            self.assertEqual(plain.do("os.pread(fd, 8, 0).decode()"), f"{n:08}")
            plain.do(f"os.pwrite(fd, b'{n:08}', 8)")
            self.assertEqual(a.do("m.load(8, 8)"), f"{n:08}")

    def test_Trap5_a_plain_shared_mapping_is_refused_while_a_mapper_exists_and_possible_after(self):
        path = self.make()
        a, plain = self.mapper(path), self.plain()
        self.assertEqual(self.refused(plain, f"p = Map({path!r})"), "ENODEV")
        a.do("m.store(0, b'mine')")
        a.do("m.msync(); m.unmap(); os.close(m.fd)")
        a.close()

        def possible():
            try:
                return plain.do(f"p = Map({path!r}); p.store(4, b'plain'); p.msync()") is None
            except Refused:
                return False  # the daemon learns of the program's end after we do
        wait(possible, "a plain program can map the file")
        self.assert_on_replica(0, b"mineplain")

    def test_Trap5_msync_with_nothing_dirty_succeeds_after_another_program_wrote(self):
        path = self.make()
        a, plain = self.mapper(path), self.plain()
        a.do("m.msync()")
        plain.do(f"fd = os.open({path!r}, os.O_RDWR); os.pwrite(fd, b'written', 10)")
        a.do("m.msync()")
        self.assert_on_replica(10, b"written")
        self.assertEqual(a.do("m.load(10, 7)"), "written")
        self.assert_equal()

    def test_P9_a_mapping_of_a_file_that_a_plain_program_has_open_is_refused_and_the_log_names_it(self):
        path = self.make()
        plain = self.plain()
        plain.do(f"fd = os.open({path!r}, os.O_RDONLY)")
        a = self.agent(env={"PMIRROR_LOG_LEVEL": "error"})
        self.assertEqual(self.refused(a, f"m = Map({path!r})"), "EBUSY")
        self.assertIn(str(plain.pid), a.errors())
        with open(os.path.join(self.sandbox.directory, self.sandbox.primary, "pmirrord.log"), encoding="utf-8") as log:
            self.assertRegex(log.read(), rf"process {plain.pid} \(python3")
        plain.do("os.close(fd)")
        a.do(f"m = Map({path!r})")

    def test_P9_run_with_wait_maps_as_soon_as_the_plain_program_has_closed_the_file(self):
        path = self.make()
        plain = self.plain()
        plain.do(f"fd = os.open({path!r}, os.O_RDWR)")
        a = self.agent(run_options=["--wait"], env={"PMIRROR_LOG_LEVEL": "warning"})
        a.begin(f"m = Map({path!r})")
        wait(lambda: "waits for other programs" in a.errors(), "it waits")
        plain.do("os.pwrite(fd, b'last', 0); os.close(fd)")
        a.end()
        a.do("m.store(4, b'first'); m.msync()")
        self.assert_on_replica(0, b"lastfirst")

    def test_P6_a_wait_for_plain_programs_ends_by_itself_and_by_a_signal(self):
        path = self.make()
        plain = self.plain()
        plain.do(f"fd = os.open({path!r}, os.O_RDWR)")
        bounded = self.agent(run_options=["--wait=1"])
        self.assertEqual(self.refused(bounded, f"m = Map({path!r})"), "EBUSY")
        a = self.agent(run_options=["--wait=600"], env={"PMIRROR_LOG_LEVEL": "warning"})
        a.do("import signal; signal.signal(signal.SIGTERM, signal.SIG_DFL)")
        a.begin(f"m = Map({path!r})")
        wait(lambda: "waits for other programs" in a.errors(), "it waits")
        a.process.terminate()
        self.assertEqual(a.process.wait(30), -15)


class WhileMapped(SharingTest):
    def test_Trap8_the_file_is_truncated_and_grows_while_it_is_mapped(self):
        path = self.make()
        a, b, plain = self.mapper(path), self.mapper(path), self.plain()
        plain.do(f"fd = os.open({path!r}, os.O_RDWR)")
        for shrink in ("os.ftruncate(m.fd, 2 * PAGE + 100)", None):
            a.do(f"for page in range({PAGES}): m.store(page * PAGE, b'a' * PAGE)")
            a.do("m.msync()")
            a.do("m.store(0, b'not synced')")
            (a.do(shrink) if shrink else plain.do("os.ftruncate(fd, 2 * 4096 + 100)"))
            a.do("m.msync(0, 2 * PAGE)")
            self.assert_on_replica(0, b"not synced")
            self.assertEqual(os.stat(self.sandbox.backing(self.sandbox.replica, "f")).st_size, 2 * PAGE + 100)
            plain.do(f"os.ftruncate(fd, {PAGES} * 4096)")
            b.do("m.store(5 * PAGE, b'grown'); m.msync()")
            self.assert_on_replica(5 * PAGE, b"grown")
            self.assertEqual(self.on_replica(2 * PAGE + 100, PAGE), bytes(PAGE))
        self.assert_equal()

    def test_Trap8_bytes_stored_behind_the_end_do_not_come_back_when_the_file_grows(self):
        path = self.make(size=PAGE + 10)
        a = self.agent()
        a.do(f"m = Map({path!r}, 2 * PAGE)")
        a.do("m.store(PAGE + 5, b'across the end'); m.msync()")
        a.do("os.ftruncate(m.fd, 2 * PAGE); m.msync()")
        self.assert_equal()
        a.do("os.pwrite(m.fd, b'x', 3 * PAGE); m.fsync()")
        self.assert_equal()

    def test_Trap8_holes_are_punched_while_it_is_mapped(self):
        path = self.make()
        a, plain = self.mapper(path), self.plain()
        plain.do(f"fd = os.open({path!r}, os.O_RDWR)")
        for mode in (3, 16 | 1):  # PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE | KEEP_SIZE
            a.do(f"for page in range({PAGES}): m.store(page * PAGE, b'b' * PAGE)")
            plain.do(f"call('fallocate', fd, {mode}, 100, 3 * 4096)")
            a.do("m.store(PAGE, b'after'); m.msync()")
            self.assertEqual(self.on_replica(0, 4 * PAGE),
                             b"b" * 100 + bytes(PAGE - 100) + b"after" + bytes(2 * PAGE - 5 + 100) + b"b" * (PAGE - 100))
        self.assert_equal()

    def test_Trap8_the_file_is_renamed_replaced_and_unlinked_while_it_is_mapped(self):
        path = self.make()
        a = self.mapper(path)
        a.do("m.store(0, b'before')")
        other = self.sandbox.mounted("renamed")
        os.rename(path, other)
        a.do("m.store(PAGE, b'renamed'); m.msync()")
        self.assert_on_replica(0, b"before", "renamed")
        self.assert_on_replica(PAGE, b"renamed", "renamed")
        self.make()
        os.rename(path, other)  # replaces it
        a.do("m.store(0, b'orphan'); m.msync(); m.fsync()")
        self.assertEqual(self.on_replica(0, 6, "renamed"), bytes(6))
        a.do(f"m = Map({other!r}); m.store(0, b'second')")
        os.unlink(other)
        a.do("m.msync(); m.unmap(); os.close(m.fd)")
        self.assertFalse(os.path.exists(self.sandbox.backing(self.sandbox.replica, "renamed")))
        self.assert_equal()

    def test_Trap8_a_mapping_becomes_writable(self):
        path = self.make()
        a = self.agent()
        a.do(f"m = Map({path!r}, protection=PROT_READ); m.protect(PROT_READ | PROT_WRITE)")
        a.do("m.store(PAGE, b'allowed now'); m.msync()")
        self.assert_on_replica(PAGE, b"allowed now")
        a.do("m.store(2 * PAGE, b'the last'); m.protect(PROT_READ); m.msync()")
        self.assert_on_replica(2 * PAGE, b"the last")
        self.assert_equal()

    def test_Trap8_sizes_and_holes_change_all_the_time_while_threads_sync(self):
        path = self.make(size=32 * PAGE)
        replica = self.sandbox.backing(self.sandbox.replica, "f")
        a, b, plain = self.agent(), self.agent(), self.plain()
        work = """
def work(i):
    for n in range(1, 120):
        at, data = (n % 8) * PAGE + (i + 4 * base) * 16, (n * 8 + i).to_bytes(8, "little")
        m.store(at, data)
        m.fsync() if n % 2 else m.msync((n % 8) * PAGE, 4 * PAGE)
        if os.pread(replica, 8, at) != data: raise OSError(errno.EILSEQ, f"thread {i} step {n}")
"""
        for base, agent in enumerate((a, b)):
            agent.do(f"m, replica, base = Map({path!r}), os.open({replica!r}, os.O_RDONLY), {base}")
            agent.do(work)
            agent.begin("in_threads(4, work)")
        seed = random.randrange(1 << 30)
        plain.do(f"import random; pick = random.Random({seed}); fd = os.open({path!r}, os.O_RDWR)")
        plain.do("""
for _ in range(150):
    kind, page = pick.randrange(4), 8 + pick.randrange(24)
    if kind == 0: os.ftruncate(fd, page * PAGE + pick.randrange(PAGE))
    elif kind == 1: call("fallocate", fd, 3, page * PAGE + 100, 3 * PAGE)
    elif kind == 2: call("fallocate", fd, 0, page * PAGE, 2 * PAGE)
    else: os.pwrite(fd, pick.randbytes(3000), page * PAGE + pick.randrange(PAGE))
""")
        for agent in (a, b):
            agent.end()
        self.assert_equal()

    def test_Trap8_the_mapping_is_moved_and_grown(self):
        path = self.make()
        a = self.mapper(path)
        a.do("m.store(PAGE, b'before the move')")
        a.do(f"os.ftruncate(m.fd, 64 * PAGE); m.remap(64 * PAGE)")
        a.do("m.store(40 * PAGE, b'grown'); m.msync()")
        self.assert_on_replica(PAGE, b"before the move")
        self.assert_on_replica(40 * PAGE, b"grown")
        a.do("m.store(0, b'shrunk'); m.store(30 * PAGE, b'gone from here'); m.remap(PAGE); m.fsync()")
        self.assert_on_replica(0, b"shrunk")
        self.assert_on_replica(30 * PAGE, b"gone from here")
        self.assert_equal()

    def test_Trap8_pages_are_dropped_and_removed_with_madvise(self):
        path = self.make()
        a = self.mapper(path)
        a.do("m.store(0, b'dropped'); m.advise(0, PAGE, MADV_DONTNEED); m.msync()")
        self.assert_on_replica(0, b"dropped")
        a.do("m.store(PAGE, b'x' * 3 * PAGE); m.msync(); m.advise(2 * PAGE, PAGE, MADV_REMOVE); m.msync()")
        self.assertEqual(self.on_replica(PAGE, 3 * PAGE), b"x" * PAGE + bytes(PAGE) + b"x" * PAGE)
        a.do("m.store(2 * PAGE, b'again'); m.msync()")
        self.assert_on_replica(2 * PAGE, b"again")
        self.assert_equal()


class Programs(ClusterTest):
    def run_fio(self, preload, *options):
        cluster = self.cluster()
        run = cluster.run("fio", "--name=job", f"--directory={cluster.mounted('')}", "--ioengine=mmap", "--rw=randrw", "--bs=4k", "--size=3m",
                          "--numjobs=2", "--verify=crc32c", "--verify_state_save=0", "--fsync=8", "--output-format=terse", *options,
                          preload=preload)
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
        self.assertEqual(cluster.differences(cluster.primary, cluster.replica), [])
        self.assertEqual(cluster.verify(), [])
        self.assertEqual(len([name for name in os.listdir(cluster.backing(cluster.replica)) if name.startswith("job")]), 2)

    def test_P1_the_mmap_engine_of_fio_verifies_and_leaves_equal_copies_when_it_is_preloaded(self):
        self.run_fio(True)
        self.run_fio(True, "--thread")

    def test_P1_the_mmap_engine_of_fio_verifies_and_leaves_equal_copies_when_it_is_plain(self):
        self.run_fio(False)


class Large(ClusterTest):
    def test_P1_one_msync_of_a_file_of_1_GiB_passes_the_smallest_credit_and_counts_once(self):
        shared = tempfile.mkdtemp(dir="/dev/shm", prefix="pmc")
        self.addCleanup(shutil.rmtree, shared, ignore_errors=True)
        cluster = self.cluster(backing_root=shared, credit="64KiB")
        with open(cluster.mounted("large"), "wb") as file:
            file.truncate(1 << 30)
        agent = Agent(cluster)
        self.addCleanup(agent.close)
        agent.do(f"m = Map({cluster.mounted('large')!r})")
        before = cluster.replica_status(cluster.replica)["durable_seq"]
        agent.do("[m.store(at, bytes([at >> 20 & 255, 1]) * (1 << 19)) for at in range(0, 1 << 30, 1 << 20)] and m.msync()")
        self.assertEqual(cluster.replica_status(cluster.replica)["durable_seq"], before + 1)
        self.assertEqual(cluster.differences(cluster.primary, cluster.replica), [])


if __name__ == "__main__":
    main()
