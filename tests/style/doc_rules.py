# SPDX-License-Identifier: BSD-3-Clause
"""What the documentation says of the sources: every event is described, every test that is named exists."""

import re

from tree import line_of

EVENTS = "docs/events.md"
ERRORS = "docs/errors.md"

_REPORT = re.compile(r'\b(?:Report|LogEvent|Log|say)\s*\([^;{"]*?(?:Severity|LogLevel)::[^;{"]*?,\s*"([^"]*)"')
_LINE = re.compile(r'"event=(\w+)')
_ROW = re.compile(r"^\| `([^`]+)` \| (?:info|warning|error)", re.MULTILINE)
_DEBUG = re.compile(r"^At `log_level = \"debug\"`.*", re.MULTILINE | re.DOTALL)
_QUOTED = re.compile(r"`([^`\n]+)`")
_RULE = re.compile(r'^    \{"(\w+)", [{"]', re.MULTILINE)
_PYTHON_TEST = re.compile(r"^\s*def (test_\w+)", re.MULTILINE)
_TEST = re.compile(r"^TEST(?:_F|_P)?\(\s*(\w+),\s*(\w+)\)", re.MULTILINE)
_NAMED_TEST = re.compile(r"test_\w+|[A-Z]\w*\.[A-Z]\w+")


def reported_events(tree):
    """name -> "path:line" of every event that the daemon's sources report."""
    found = {}
    for path in tree.with_suffix(".cc"):
        if path.startswith(("server/", "fs/")):
            text = tree.text(path)
            for pattern in (_REPORT, _LINE):
                for match in pattern.finditer(text):
                    found.setdefault(match.group(1), f"{path}:{line_of(text, match.start(1))}")
    return found


def check_events(tree):
    """Every event that the sources report has a name in snake_case and a row in docs/events.md, and every row an event."""
    reported = reported_events(tree)
    if EVENTS not in tree.paths:
        return [f"{place}: {EVENTS} does not list {name}" for name, place in reported.items()]
    text = tree.text(EVENTS)
    described = {match.group(1): line_of(text, match.start()) for match in _ROW.finditer(text)}
    beside = _DEBUG.search(text)
    known = set(described) | set(_QUOTED.findall(beside.group()) if beside else [])
    errors = [f"{place}: the event '{name}' is no word in snake_case" for name, place in reported.items() if not re.fullmatch(r"[a-z][a-z0-9_]*", name)]
    errors += [f"{place}: {EVENTS} does not list {name}" for name, place in reported.items() if name not in known]
    # condition_over is made by the rules themselves.
    return errors + [f"{EVENTS}:{line}: nothing reports {name}" for name, line in described.items()
                     if name not in reported and name != "condition_over"]


def check_named_tests(tree):
    """Every test that docs/errors.md names exists."""
    if ERRORS not in tree.paths:
        return []
    known = set()
    for path in tree.paths:
        if path.startswith("tests/") and path.endswith(".py"):
            known |= set(_PYTHON_TEST.findall(tree.text(path)))
        elif path.startswith("tests/") and path.endswith(".cc"):
            known |= {f"{suite}.{case}" for suite, case in _TEST.findall(tree.text(path))}
    text = tree.text(ERRORS)
    return [f"{ERRORS}:{line_of(text, match.start())}: there is no test {match.group(1)}"
            for match in _QUOTED.finditer(text) if _NAMED_TEST.fullmatch(match.group(1)) and match.group(1) not in known]


def check_condition_rules(tree):
    """Every event that server/event_conditions.cc has a rule for is reported by somebody."""
    rules = "server/event_conditions.cc"
    if rules not in tree.paths:
        return []
    reported = reported_events(tree)
    text = tree.text(rules)
    return [f"{rules}:{line_of(text, match.start(1))}: nothing reports {match.group(1)}"
            for match in _RULE.finditer(text) if match.group(1) not in reported]


CHECKS = (check_events, check_named_tests, check_condition_rules)
