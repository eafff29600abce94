#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The man pages and the public header. Usage: man_test.py SOURCE_DIRECTORY C_COMPILER C++_COMPILER [unittest ...]"""

import os
import re
import subprocess
import sys
import tempfile
import unittest

SOURCE, C_COMPILER, CXX_COMPILER = sys.argv[1:4]
MAN = os.path.join(SOURCE, "man")
HEADER = os.path.join(SOURCE, "interpose", "pmirror.h")


def read(*path):
    with open(os.path.join(*path), encoding="utf-8") as file:
        return file.read()


def exported():
    return set(re.findall(r"^\s+(pmirror_\w+);", read(SOURCE, "interpose", "libpmirror.map"), re.MULTILINE))


def pages():
    """Paths below man/, as man3/pmirror_map.3."""
    found = [os.path.join(section, page) for section in sorted(os.listdir(MAN)) if section.startswith("man")
             for page in sorted(os.listdir(os.path.join(MAN, section)))]
    assert found
    return found


def resolved(page):
    """The page itself, or the one that it is an alias of."""
    alias = re.fullmatch(r"\.so (\S+)\n", read(MAN, page))
    return alias.group(1) if alias else page


class Man(unittest.TestCase):
    def test_every_exported_function_has_a_page_that_names_and_declares_it(self):
        self.assertGreater(len(exported()), 10)
        for function in sorted(exported()):
            with self.subTest(function):
                text = read(MAN, resolved(f"man3/{function}.3"))
                name = text[text.index(".SH NAME"):text.index(".SH LIBRARY")]
                self.assertIn(function, re.split(r"[\s,]+", name))
                self.assertRegex(text[text.index(".SH SYNOPSIS"):text.index(".SH DESCRIPTION")], rf"\b{function}\(")

    def test_every_page_of_section_3_is_of_an_exported_function(self):
        of_functions = {os.path.basename(page)[:-2] for page in pages() if page.startswith("man3/")}
        self.assertEqual(of_functions, exported())

    def test_the_header_declares_what_is_exported(self):
        declared = set(re.findall(r"\b(pmirror_\w+)\(", re.sub(r"/\*.*?\*/", "", read(HEADER), flags=re.DOTALL)))
        self.assertEqual(declared, exported())

    def test_the_overview_names_every_function_or_its_page(self):
        overview = read(MAN, "man7", "libpmirror.7")
        for function in sorted(exported()):
            page = os.path.basename(resolved(f"man3/{function}.3"))[:-2]
            self.assertTrue(function in overview or page in overview, function)

    def test_every_page_renders_without_warnings(self):
        for page in pages():
            with self.subTest(page):
                # The 78 columns of a terminal, whatever this one has.
                run = subprocess.run(["man", "--warnings", "--local-file", "--encoding=UTF-8", "--troff-device=utf8", "--ditroff", page],
                                     cwd=MAN, env={**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8"}, capture_output=True, check=False)
                self.assertEqual((run.returncode, run.stderr.decode()), (0, ""))
                self.assertGreater(len(run.stdout), 500)

    def test_every_page_that_is_referred_to_is_there(self):
        ours = {re.fullmatch(r"(.+)\.(\d)", os.path.basename(page)).groups() for page in pages()}
        for page in pages():
            for name, section in re.findall(r"\b(l?i?b?pmirror[\w\\.-]*?)(?:\\fP)? ?\((\d)\)", read(MAN, page)):
                with self.subTest(page):
                    self.assertIn((name.replace("\\-", "-"), section), ours)

    def test_the_header_compiles_by_itself_as_c_and_cxx(self):
        flags = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only", f"-I{os.path.dirname(HEADER)}"]
        for compiler, standard, suffix in ((C_COMPILER, "c99", "c"), (C_COMPILER, "c11", "c"), (CXX_COMPILER, "c++11", "cc"),
                                           (CXX_COMPILER, "c++20", "cc")):
            with self.subTest(standard), tempfile.TemporaryDirectory() as scratch:
                program = os.path.join(scratch, "program." + suffix)
                with open(program, "w", encoding="utf-8") as file:
                    file.write("#include <pmirror.h>\n#include <pmirror.h>\nint main(void) { return pmirror_error(0); }\n")
                run = subprocess.run([compiler, f"-std={standard}", *flags, program], capture_output=True, text=True, check=False)
                self.assertEqual((run.returncode, run.stderr), (0, ""))


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[4:]])
