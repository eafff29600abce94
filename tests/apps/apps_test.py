# SPDX-License-Identifier: BSD-3-Clause
"""The example programs and their checkers on a plain directory, without pmirror. Usage: apps_test.py DIRECTORY_OF_PROGRAMS [unittest ...]"""

import os
import shutil
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from writers import CASES, FORCE_PMEM, Writer, check  # noqa: E402

PROGRAMS = None  # the directory, set at the end


class Apps(unittest.TestCase):
    """Each test runs for every case of CASES."""

    def setUp(self):
        self.directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.directory)

    def each(self):
        for name, case in CASES.items():
            with self.subTest(name):
                yield (os.path.join(self.directory, name), *case)

    def write(self, program, options, path, env, count=None):
        counted = [] if count is None else ["--count", count]
        writer = Writer([os.path.join(PROGRAMS, program), "write", *options, *counted, path], env)
        self.addCleanup(writer.close)
        return writer

    def check(self, program, path, acknowledged, env):
        check(os.path.join(PROGRAMS, program), path, acknowledged, env)

    def test_holds_every_commit_after_a_clean_end(self):
        for path, program, options, writers, env in self.each():
            writer = self.write(program, options, path, env, count=90)
            self.assertEqual(writer.finish(), 0, writer.errors())
            self.assertEqual(writer.acknowledged(writers), [90] * writers)
            self.check(program, path, [90] * writers, env)

    def test_holds_every_acknowledged_commit_after_a_kill(self):
        for path, program, options, writers, env in self.each():
            writer = self.write(program, options, path, env)
            writer.wait_for(150, writers)
            writer.kill()
            self.check(program, path, writer.acknowledged(writers), env)

    def test_goes_on_after_the_last_commit(self):
        for path, program, options, writers, env in self.each():
            first = self.write(program, options, path, env)
            first.wait_for(20, writers)
            first.kill()
            before = first.acknowledged(writers)
            second = self.write(program, options, path, env)
            second.wait_for(max(before) + 20, writers)
            second.kill()
            self.check(program, path, second.acknowledged(writers), env)

    def test_checker_reports_a_missing_commit(self):
        for path, program, options, writers, env in self.each():
            writer = self.write(program, options, path, env, count=20)
            self.assertEqual(writer.finish(), 0, writer.errors())
            with self.assertRaisesRegex(AssertionError, "was acknowledged, but"):
                self.check(program, path, [20] * (writers - 1) + [21], env)

    def test_checker_reports_a_damaged_record(self):
        for program in ("pmem_writer", "pmem2_writer", "mmap_writer", "raw_static"):
            with self.subTest(program):
                path = os.path.join(self.directory, program)
                self.assertEqual(self.write(program, [], path, FORCE_PMEM, count=20).finish(), 0)
                with open(path, "r+b") as file:  # commit 15, in the middle of its fourth word
                    file.seek(4096 + 15 * 256 + 28)
                    byte = file.read(1)[0]
                    file.seek(-1, os.SEEK_CUR)
                    file.write(bytes([byte ^ 1]))
                with self.assertRaisesRegex(AssertionError, "commit 15 is lost or damaged"):
                    self.check(program, path, [20], FORCE_PMEM)

    def test_checker_reports_a_torn_word_of_the_record_in_flight(self):
        path = os.path.join(self.directory, "torn")
        self.assertEqual(self.write("mmap_writer", [], path, {}, count=20).finish(), 0)
        with open(path, "r+b") as file:  # half a word of commit 21
            file.seek(4096 + 21 * 256 + 8)
            file.write(b"half")
        with self.assertRaisesRegex(AssertionError, "is torn"):
            self.check("mmap_writer", path, [20], {})

    def test_checker_reports_a_database_page_of_an_older_image(self):
        for name, kept in (("lmdb_writemap", 2 * 4096), ("pmemobj", 4 << 20)):
            program, options, _, env = CASES[name]
            with self.subTest(name):
                path = os.path.join(self.directory, name + ".old_page")
                self.assertEqual(self.write(program, options, path, env, count=1500).finish(), 0)
                with open(path, "rb") as file:
                    old = file.read()
                self.assertEqual(self.write(program, options, path, env, count=1000).finish(), 0)
                # The newest head before the older rest is no state that the program ever had.
                with open(path, "r+b") as file:
                    file.seek(kept)
                    file.write(old[kept:])
                with self.assertRaises(AssertionError):
                    self.check(program, path, [2500], env)


if __name__ == "__main__":
    PROGRAMS = os.path.abspath(sys.argv.pop(1))
    unittest.main(verbosity=2)
