#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The preload library exports what the table of calls says and nothing else, and needs nothing but libc."""

import re
import subprocess
import sys
import unittest

TABLE, MAP, PRELOAD, API = sys.argv[1:5]


def exported(library):
    lines = subprocess.run(["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True).stdout
    return {line.split()[-1].split("@")[0] for line in lines.splitlines() if line.split()[-2] != "A"}


def needed(library):
    lines = subprocess.run(["readelf", "-d", library], check=True, capture_output=True, text=True).stdout
    return set(re.findall(r"\(NEEDED\).*\[(.*)\]", lines))


class Symbols(unittest.TestCase):
    def test_preload_exports_the_table(self):
        with open(TABLE, encoding="utf-8") as table:
            intercepted = set(re.findall(r"^INTERCEPTED\((\w+),", table.read(), re.MULTILINE))
        self.assertGreater(len(intercepted), 50)
        self.assertEqual(exported(PRELOAD), intercepted | {"pmirror_preload_entry"})

    def test_a_call_is_taken_over_or_left_alone(self):
        with open(TABLE, encoding="utf-8") as table:
            names = re.findall(r"^(?:INTERCEPTED|LEFT_ALONE)\((\w+),", table.read(), re.MULTILINE)
        self.assertEqual(len(names), len(set(names)))

    def test_needs_libc_alone(self):
        for library in (PRELOAD, API):
            self.assertLessEqual(needed(library), {"libc.so.6", "ld-linux-x86-64.so.2"}, library)

    def test_api_exports_its_header(self):
        with open(MAP, encoding="utf-8") as names:
            listed = set(re.findall(r"^\s+(pmirror_\w+);", names.read(), re.MULTILINE))
        self.assertEqual(exported(API), listed)  # tests/man compares the header with the list


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
