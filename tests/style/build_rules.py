# SPDX-License-Identifier: BSD-3-Clause
"""What the build must know: every source and test is listed, every header is used, every file is formatted."""

import os
import posixpath
import shutil
import subprocess

from cmake_targets import commands
from tree import CPP_SUFFIXES


def check_dead_sources(tree):
    """A source is named in a CMakeLists.txt of its own folder or of one above."""
    named = set()
    for path in tree.paths:
        if posixpath.basename(path) != "CMakeLists.txt":
            continue
        folder = posixpath.dirname(path)
        for _, words in commands(tree.text(path)):
            for word in words:
                for prefix in ("${CMAKE_CURRENT_SOURCE_DIR}/", "${PROJECT_SOURCE_DIR}/"):
                    if word.startswith(prefix):
                        base = folder if "CURRENT" in prefix else ""
                        named.add(posixpath.normpath(posixpath.join(base, word[len(prefix):])))
                named.add(posixpath.normpath(posixpath.join(folder, word)))
    sources = tree.with_suffix(".cc", ".c", ".S", ".proto", "_test.py")
    return [f"{path}: no CMakeLists.txt names it" for path in sources if path not in named]


def check_dead_headers(tree):
    """A header is included by another file."""
    used = {name for path in tree.with_suffix(*CPP_SUFFIXES, ".S") for _, name in tree.includes(path) if name != path}
    return [f"{path}: nobody includes it" for path in tree.with_suffix(".h") if path not in used]


def check_format(tree):
    """clang-format, with the tree's own .clang-format, would change nothing."""
    formatter = shutil.which("clang-format")
    if formatter is None:
        return ["clang-format is not installed: see deploy/packages.txt"]
    paths = tree.with_suffix(*CPP_SUFFIXES)
    if not paths:
        return []
    run = subprocess.run([formatter, "--dry-run", "-Werror", "--style=file", *paths],
                         cwd=tree.root, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}, check=False)
    if run.returncode == 0:
        return []
    first = {}  # path -> its first place; a file that was never formatted has hundreds
    for line in run.stderr.splitlines():
        if ": error: " in line:
            first.setdefault(line.split(":", 1)[0], line)
    return list(first.values()) or [f"clang-format failed: {run.stderr.strip()}"]


CHECKS = (check_dead_sources, check_dead_headers, check_format)
