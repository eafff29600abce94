# SPDX-License-Identifier: BSD-3-Clause
"""Style is a test: the tree obeys every check, and every check is shown to fail on a sample that breaks its rule."""

import os
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import arrows  # noqa: E402
import build_rules  # noqa: E402
import doc_rules  # noqa: E402
import text_rules  # noqa: E402
from tree import Tree  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CHECKS = arrows.CHECKS + text_rules.CHECKS + build_rules.CHECKS + doc_rules.CHECKS

LICENSE = "// SPDX-License-Identifier: BSD-3-Clause\n"
HEAD = LICENSE + "// A sample with a purpose.\n"
TABLE = {"docs/internals/architecture.md": "".join(
    f"{folder}/   something   knows {knows}\n" for folder, knows in (
        ("proto", "nothing"), ("replication", "nothing but libc"), ("recovery", "replication"), ("interpose", "replication"),
        ("server", "replication, recovery, proto"), ("fs", "replication, recovery, proto"), ("cli", "proto")))}


def library(name, *sources, links=""):
    return f"pmirror_library({name} SOURCES {' '.join(sources)} LINKS {links})\n"


# What each check must report: samples that break its rule, each with the place that the report must name.
BAD = {
    "check_table": [({"docs/internals/architecture.md": "proto/  control  knows nothing\n"}, "replication/")],
    "check_includes": [
        ({**TABLE, "replication/a.cc": HEAD + '#include "server/b.h"\n'}, "replication/a.cc:3"),
        ({**TABLE, "server/a.cc": HEAD + '#include "fs/b.h"\n'}, "server/a.cc:3"),
        ({**TABLE, "cli/a.cc": HEAD + '#include "tests/unit/fake.h"\n'}, "cli/a.cc:3"),
    ],
    "check_links": [
        ({**TABLE, "cli/CMakeLists.txt": library("cli", "a.cc", links="pmirror_fs"),
          "fs/CMakeLists.txt": library("pmirror_fs", "b.cc")}, "cli/CMakeLists.txt"),
        ({**TABLE, "fs/CMakeLists.txt": "add_library(x STATIC a.cc)\ntarget_link_libraries(x PRIVATE cli)\n",
          "cli/CMakeLists.txt": library("cli", "a.cc")}, "fs/CMakeLists.txt"),
    ],
    "check_verbs": [({"replication/a.cc": HEAD + "#include <infiniband/verbs.h>\n",
                      "tests/b.cc": HEAD + "#include <infiniband/verbs.h>\n"}, "tests/b.cc")],
    "check_adapters": [
        ({"server/region.cc": HEAD + "#include <grpcpp/grpcpp.h>\n"}, "server/region.cc:3"),
        ({"recovery/grpc_a.cc": HEAD + '#include "proto/control.grpc.pb.h"\n'}, "recovery/grpc_a.cc:3"),
        ({"server/mount.cc": HEAD + "#include <fuse3/fuse_lowlevel.h>\n"}, "server/mount.cc:3"),
        ({"server/mount.cc": HEAD + "#include <fuse_lowlevel.h>\n"}, "server/mount.cc:3"),
    ],
    "check_application_side": [
        ({"interpose/a.cc": HEAD + "#include <spdlog/spdlog.h>\n"}, "interpose/a.cc:3"),
        ({"interpose/a.cc": HEAD + '#include "replication/b.h"\n',
          "replication/b.h": HEAD + '#include "absl/status/status.h"\n'}, "replication/b.h:3"),
        ({"interpose/CMakeLists.txt": library("i", "a.cc", links="core"),
          "replication/CMakeLists.txt": library("core", "c.cc"),
          "replication/c.cc": HEAD + '#include "proto/control.pb.h"\n'}, "replication/c.cc:3"),
    ],
    "check_license_line": [({"fs/a.cc": "// A sample with a purpose.\nint a;\n"}, "fs/a.cc:1"),
                           ({"a.sh": "#!/bin/sh\necho\n"}, "a.sh:1")],
    "check_purpose": [({"fs/a.h": LICENSE + "#pragma once\n"}, "fs/a.h:2"), ({"fs/a.h": LICENSE + "// a\n"}, "fs/a.h:2")],
    "check_banned_calls": [({"fs/a.cc": HEAD + f"void F() {{ {call}; }}\n"}, "fs/a.cc:3") for call in (
        "strcpy(a, b)", "std::strcat(a, b)", "::sprintf(a, b)", "rand()", "std::system(c)", "gets(a)")],
    "check_sleeps": [
        # Sleep because: these are samples, nothing waits.
        ({"fs/a.cc": HEAD + "void F() { sleep(1); }\n"}, "fs/a.cc:3"),
        ({"tests/a.cc": HEAD + "void F() { std::this_thread::sleep_for(1s); }\n"}, "tests/a.cc:3"),
        # Sleep because: these are samples, nothing waits.
        ({"tests/a.py": "import time\ntime.sleep(1)\n"}, "tests/a.py:2"),
        ({"fs/a.cc": HEAD + "void F() { absl::SleepFor(a); }\n"}, "fs/a.cc:3"),
    ],
    "check_output": [({"fs/a.cc": HEAD + "void F() { std::cout << 1; }\n"}, "fs/a.cc:3")],
    "check_using_namespace": [({"fs/a.h": HEAD + "using namespace std;\n"}, "fs/a.h:3")],
    "check_loose_ends": [({"fs/a.h": HEAD + "// " + word + ": later\n"}, "fs/a.h:3")
                         for word in ("TO" + "DO", "FIX" + "ME", "X" + "XX")],
    "check_length": [({"fs/a.cc": HEAD + "int a;\n" * 500}, "fs/a.cc: 502 lines")],
    "check_machine_names": [
        ({"README.md": "cd /" + "work/main\n"}, "README.md:1"),
        ({"README.md": "\ncd /home/" + "somebody/pmirror\n"}, "README.md:2"),
        ({"README.md": "ninja -C /" + "tmp/build-x\n"}, "README.md:1"),
        ({"deploy/a.txt": "https://deb." + "debian.org/debian\n"}, "deploy/a.txt:1"),
    ],
    "check_dead_sources": [
        ({"fs/CMakeLists.txt": library("fs", "a.cc"), "fs/a.cc": HEAD, "fs/b.cc": HEAD}, "fs/b.cc"),
        ({"fs/CMakeLists.txt": "# a.cc\n", "fs/a.cc": HEAD}, "fs/a.cc"),
        ({"tests/x_test.py": HEAD}, "tests/x_test.py"),
    ],
    "check_dead_headers": [({"fs/a.h": HEAD, "fs/b.cc": HEAD + '#include "fs/c.h"\n'}, "fs/a.h")],
    "check_events": [
        ({"docs/events.md": "| `a` | info |\n", "fs/a.cc": HEAD + 'void F() { Report(Severity::kInfo, "b", {}); }\n'}, "fs/a.cc:3"),
        ({"docs/events.md": "| `a` | info |\n", "fs/a.cc": HEAD + 'void F() { LogEvent(LogLevel::kInfo,\n "b c"); }\n'}, "fs/a.cc:4"),
        ({"docs/events.md": "| `a` | info |\n"}, "docs/events.md:1"),
        ({"server/a.cc": HEAD + 'void F() { spdlog::info("event=b x={}", 1); }\n'}, "server/a.cc:3"),
    ],
    "check_named_tests": [
        ({"docs/errors.md": "\n| `test_a` |\n", "tests/a_test.py": "def test_b(): pass\n"}, "docs/errors.md:2"),
        ({"docs/errors.md": "| `Suite.Case` |\n", "tests/a.cc": "TEST(Suite, Other) {}\n"}, "docs/errors.md:1"),
    ],
    "check_condition_rules": [({"server/event_conditions.cc": HEAD + '    {"b", {"volume"}},\n'}, "server/event_conditions.cc:3")],
    "check_format": [({".clang-format": "BasedOnStyle: Google\n", "fs/a.cc": HEAD + "int  a ;\n"}, "fs/a.cc:3")],
}

# A small tree that breaks no rule, with what looks like a breach and is none.
GOOD = {
    **TABLE,
    ".clang-format": "BasedOnStyle: Google\nColumnLimit: 110\n",
    "fs/CMakeLists.txt": "# SPDX-License-Identifier: BSD-3-Clause\n" + library("fs", "control_fs.cc", links="core"),
    "docs/events.md": "| `started` | info |\nAt `log_level = \"debug\"` the log has `detail` too.\n",
    "docs/errors.md": "| `started` | `test_a` | `Suite.Case`, `EIO` |\n",
    "tests/a_test.py": "# SPDX-License-Identifier: BSD-3-Clause\n# A sample with a purpose.\ndef test_a(): pass\n",
    "tests/a.cc": HEAD + "TEST_F(Suite, Case) {}\n",
    "tests/CMakeLists.txt": "# SPDX-License-Identifier: BSD-3-Clause\nadd_test(NAME a COMMAND a_test.py)\nadd_executable(t a.cc)\n",
    "server/event_conditions.cc": HEAD + 'void F() { LogEvent(LogLevel::kInfo, "started", {{"a", "b"}}); }\nRule r[] = {\n'
                                  '    {"detail", {"volume"}},\n};\nvoid G() { spdlog::debug("event=detail x={}", 1); }\n',
    "replication/CMakeLists.txt": "# SPDX-License-Identifier: BSD-3-Clause\n" + library("core", "a.cc"),
    "server/CMakeLists.txt": "# SPDX-License-Identifier: BSD-3-Clause\n"
                             "add_executable(daemon event_conditions.cc main.cc)\ntarget_link_libraries(daemon PRIVATE fs)\n",
    "server/main.cc": HEAD + '#include "fs/fs.h"\n',
    # Sleep because: the word is in a comment of the sample.
    "fs/fs.h": HEAD + "int file_system(int operand);  // sleep(1), strcpy(a, b) and rand() are words here\n",
    "fs/control_fs.cc": HEAD + '#include <fuse_lowlevel.h>\n#include <grpcpp/grpcpp.h>\n\n#include "fs/fs.h"\n'
                        '#include "replication/a.h"\n',
    "replication/a.h": HEAD + "constexpr int kMany = 1'000'000;\n",
    "replication/a.cc": HEAD + '#include "replication/a.h"\n\n#include <infiniband/verbs.h>\n\n'
                        'const char* text = "using namespace std; system(1)";\n// TO' + 'DO(ada): a loose end with an owner\n'
                        "// Sleep because: the sample needs one.\nvoid F() { sleep(1); }\n",
}


def run_on_sample(check, files):
    with tempfile.TemporaryDirectory() as root:
        for path, text in files.items():
            os.makedirs(os.path.dirname(os.path.join(root, path)), exist_ok=True)
            with open(os.path.join(root, path), "w", encoding="utf-8") as file:
                file.write(text)
        return check(Tree(root))


class TheTree(unittest.TestCase):
    """Obeys every check."""


class EachCheck(unittest.TestCase):
    """Reports what breaks its rule, and only that."""

    def test_has_a_bad_sample(self):
        self.assertEqual({check.__name__ for check in CHECKS}, set(BAD))

    def test_accepts_the_good_sample(self):
        for check in CHECKS:
            with self.subTest(check.__name__):
                self.assertEqual(run_on_sample(check, GOOD), [])


def _tree_test(check):
    def test(self):
        errors = check(Tree(ROOT))
        self.assertFalse(errors, f"{check.__doc__}\n" + "\n".join(errors))
    return test


def _sample_test(check):
    def test(self):
        for files, place in BAD[check.__name__]:
            errors = run_on_sample(check, files)
            self.assertTrue(any(place in error for error in errors), f"{place} was not reported in {errors}")
    return test


for _check in CHECKS:
    _name = _check.__name__.removeprefix("check_")
    setattr(TheTree, f"test_{_name}", _tree_test(_check))
    setattr(EachCheck, f"test_{_name}_reports_a_breach", _sample_test(_check))


if __name__ == "__main__":
    unittest.main(verbosity=2)
