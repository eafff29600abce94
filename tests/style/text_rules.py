# SPDX-License-Identifier: BSD-3-Clause
"""What a file's text must and must not hold: the head, banned calls, loose ends, length, names of machines."""

import glob
import posixpath
import re

from tree import CPP_SUFFIXES, SOURCE_SUFFIXES, folder_of, is_test, line_of

LICENSE_LINE = "SPDX-License-Identifier: BSD-3-Clause"
LONG_FILE_LINES = 500

_HEADED = SOURCE_SUFFIXES + (".py", ".sh", ".cmake", "CMakeLists.txt", ".ci/run")
_PURPOSED = SOURCE_SUFFIXES + (".py", ".sh", ".ci/run")
_COMMENT_START = re.compile(r'^(//|#|/\*|"""|\*)\s*\S.{14,}')

_BANNED_CALLS = {
    "strcpy": "no bound; copy into a std::string or with a length",
    "strcat": "no bound; append to a std::string",
    "sprintf": "no bound; use fmt or snprintf",
    "vsprintf": "no bound; use vsnprintf",
    "gets": "no bound",
    "rand": "not reproducible; use a seeded generator of <random>",
    "srand": "not reproducible; use a seeded generator of <random>",
    "system": "goes through a shell; use fork and exec with arguments",
}
_SLEEPS = ("sleep", "usleep", "nanosleep", "clock_nanosleep", "sleep_for", "sleep_until", "SleepFor")
_SLEEP_EXCUSE = "Sleep because:"
_LONG_EXCUSE = "Long because:"
_APT_SETTINGS = ("/etc/apt/sources.list", "/etc/apt/sources.list.d/*", "/etc/apt/apt.conf.d/*")
_WELL_KNOWN_HOSTS = (("deb", "debian", "org"), ("security", "debian", "org"), ("registry", "npmjs", "org"),
                     ("pypi", "org"), ("files", "pythonhosted", "org"), ("crates", "io"), ("proxy", "golang", "org"))
_LOOSE_END = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" + "XX")) + r")\b(?!\([\w.@-]+\))")
_MACHINE_PATH = re.compile(r"(?<![\w.$}/-])(/" + r"work|/home/[\w.-]+|/" + r"tmp/build[\w.-]*)(?=/|\b)")


def _call(names):
    return re.compile(r"(?<![\w.>:])(?:::|std::|std::this_thread::|this_thread::|absl::|time\.)?\b(" + "|".join(names) + r")\s*\(")


_BANNED = _call(_BANNED_CALLS)
_SLEEP = _call(_SLEEPS)


def _headed(tree):
    return [path for path in tree.paths if path.endswith(_HEADED) and tree.text(path).strip()]


def check_license_line(tree):
    """The licence is the first line, or the second after #!."""
    errors = []
    for path in _headed(tree):
        lines = tree.text(path).split("\n")
        first = lines[1] if lines[0].startswith("#!") and len(lines) > 1 else lines[0]
        if LICENSE_LINE not in first:
            errors.append(f"{path}:1: the first line is not '{LICENSE_LINE}'")
    return errors


def check_purpose(tree):
    """After the licence a comment says what the file is for."""
    errors = []
    for path in _headed(tree):
        if not path.endswith(_PURPOSED):
            continue
        lines = tree.text(path).split("\n")
        at = next((i for i, line in enumerate(lines[:2]) if LICENSE_LINE in line), 0)
        if at + 1 >= len(lines) or not _COMMENT_START.match(lines[at + 1].strip()):
            errors.append(f"{path}:{at + 2}: no comment says what this file is for")
    return errors


def check_banned_calls(tree):
    """No call that has no bound, is not reproducible, or goes through a shell."""
    errors = []
    for path in tree.with_suffix(*CPP_SUFFIXES):
        code = tree.code(path)
        for match in _BANNED.finditer(code):
            errors.append(f"{path}:{line_of(code, match.start())}: {match.group(1)}(): {_BANNED_CALLS[match.group(1)]}")
    return errors


def check_sleeps(tree):
    """No sleep in place of a condition. One that is meant says why: a comment "Sleep because:" on its line or one of the two above."""
    errors = []
    for path in tree.with_suffix(*CPP_SUFFIXES, ".py"):
        code = tree.text(path) if path.endswith(".py") else tree.code(path)
        lines = tree.text(path).split("\n")
        for match in _SLEEP.finditer(code):
            line = line_of(code, match.start())
            if not any(_SLEEP_EXCUSE in text for text in lines[max(0, line - 3):line]):
                errors.append(f"{path}:{line}: {match.group(1)}(): wait for a condition, or say '{_SLEEP_EXCUSE} ...'")
    return errors


def check_output(tree):
    """Libraries log or return; only cli/, main.cc files and tests write to standard output."""
    errors = []
    for path in tree.with_suffix(*CPP_SUFFIXES):
        if is_test(path) or folder_of(path) == "cli" or posixpath.basename(path) == "main.cc":
            continue
        code = tree.code(path)
        for match in re.finditer(r"\bstd::(cout|cerr|clog)\b", code):
            errors.append(f"{path}:{line_of(code, match.start())}: std::{match.group(1)} in a library")
    return errors


def check_using_namespace(tree):
    """No using-directive in a header."""
    errors = []
    for path in tree.with_suffix(".h"):
        code = tree.code(path)
        for match in re.finditer(r"\busing\s+namespace\b", code):
            errors.append(f"{path}:{line_of(code, match.start())}: using namespace in a header")
    return errors


def check_loose_ends(tree):
    """What is left to do has an owner: the word, then a name in parentheses."""
    errors = []
    for path in tree.with_suffix(*_HEADED, ".md", ".json", ".txt", ".toml"):
        text = tree.text(path)
        for match in _LOOSE_END.finditer(text):
            errors.append(f"{path}:{line_of(text, match.start())}: {match.group(1)} without an owner")
    return errors


def check_length(tree):
    """A file of more than 500 lines says why it must be so long."""
    errors = []
    for path in tree.with_suffix(*SOURCE_SUFFIXES, ".py", ".sh"):
        lines = tree.text(path).count("\n")
        if lines > LONG_FILE_LINES and _LONG_EXCUSE not in tree.text(path):
            errors.append(f"{path}: {lines} lines; split it, or say '{_LONG_EXCUSE} ...' at its top")
    return errors


def registry_hosts():
    """Hosts that packages come from: well-known ones, and those that this machine is set up with."""
    dot = "."
    hosts = {dot.join(parts) for parts in _WELL_KNOWN_HOSTS}
    for path in [path for pattern in _APT_SETTINGS for path in glob.glob(pattern)]:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                hosts |= set(re.findall(r"https?://(?:[^/@\s\"']*@)?([\w-]+(?:\.[\w-]+)+)", file.read()))
        except OSError:
            continue  # not readable for this user: the well-known names remain
    return {host for host in hosts if not re.fullmatch(r"[\d.]+", host)}


def check_machine_names(tree):
    """Nothing names a path of somebody's machine or the host of a package registry."""
    hosts = re.compile("|".join(re.escape(host) for host in sorted(registry_hosts())))
    errors = []
    for path in tree.paths:
        text = tree.text(path)
        for pattern, what in ((_MACHINE_PATH, "path of a machine"), (hosts, "host of a package registry")):
            for match in pattern.finditer(text):
                errors.append(f"{path}:{line_of(text, match.start())}: {what}: {match.group()}")
    return errors


CHECKS = (check_license_line, check_purpose, check_banned_calls, check_sleeps, check_output, check_using_namespace,
          check_loose_ends, check_length, check_machine_names)
