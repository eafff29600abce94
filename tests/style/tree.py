# SPDX-License-Identifier: BSD-3-Clause
"""The source tree as the style checks see it: its files, their text, and their code without comments and literals."""

import os
import re
import subprocess
from functools import lru_cache

CPP_SUFFIXES = (".h", ".cc", ".c")
SOURCE_SUFFIXES = CPP_SUFFIXES + (".S", ".proto")
PRODUCT_FOLDERS = ("proto", "replication", "recovery", "interpose", "server", "fs", "cli")

_COMMENTS_AND_LITERALS = re.compile(
    r'R"(?P<mark>[^(\s]*)\(.*?\)(?P=mark)"'
    r'|//[^\n]*'
    r'|/\*.*?\*/'
    r'|"(?:\\.|[^"\\\n])*"'
    r"|(?<![0-9a-fA-F])'(?:\\.|[^'\\\n])*'",
    re.DOTALL,
)
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(?:<([^>\n]+)>|"([^"\n]+)")', re.MULTILINE)


class Tree:
    """A directory of sources. Paths are relative to its root, with '/'. In a git work tree: what git tracks or would add."""

    def __init__(self, root):
        self.root = os.path.abspath(root)
        self.paths = sorted(self._list())

    def _list(self):
        if os.path.isdir(os.path.join(self.root, ".git")):
            listing = subprocess.run(
                ["git", "-C", self.root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                capture_output=True, text=True, check=False)
            if listing.returncode == 0:
                names = set(filter(None, listing.stdout.split("\0")))
                return [name for name in names if os.path.isfile(os.path.join(self.root, name))]
        found = []
        for folder, folders, names in os.walk(self.root):
            folders[:] = [f for f in folders if f not in (".git", ".cache", "__pycache__") and not f.startswith("build")]
            found += [os.path.relpath(os.path.join(folder, name), self.root) for name in names]
        return found

    def with_suffix(self, *suffixes):
        return [path for path in self.paths if path.endswith(suffixes)]

    @lru_cache(maxsize=None)
    def text(self, path):
        """The file's text; empty for a file that is no text."""
        with open(os.path.join(self.root, path), "rb") as file:
            data = file.read()
        return "" if b"\0" in data else data.decode("utf-8", errors="replace")

    @lru_cache(maxsize=None)
    def code(self, path):
        """The text of a C or C++ file with comments and literals blanked; line numbers stay as they are."""
        return _COMMENTS_AND_LITERALS.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), self.text(path))

    @lru_cache(maxsize=None)
    def includes(self, path):
        """(line, name) of every #include of a file."""
        text = self.text(path)
        return [(line_of(text, match.start()), match.group(1) or match.group(2)) for match in _INCLUDE.finditer(text)]


def line_of(text, offset):
    return text.count("\n", 0, offset) + 1


def folder_of(path):
    return path.split("/", 1)[0] if "/" in path else ""


def is_test(path):
    return path.startswith("tests/")
