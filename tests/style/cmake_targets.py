# SPDX-License-Identifier: BSD-3-Clause
"""The targets of the tree's CMakeLists.txt files: in which folder each is defined, from which sources, and what it links.

Reads the commands that this project uses (add_library, add_executable, target_sources, target_link_libraries, pmirror_library,
pmirror_test) and expands no variables: sources and links are written out in this project.
"""

import posixpath
import re
from dataclasses import dataclass, field

_COMMENT = re.compile(r"#[^\n]*")
_COMMAND = re.compile(r"(\w+)\s*\(([^()]*(?:\([^()]*\)[^()]*)*)\)", re.DOTALL)
_WORD = re.compile(r'"[^"]*"|[^\s;]+')
_NOT_NAMES = {"PUBLIC", "PRIVATE", "INTERFACE", "STATIC", "SHARED", "MODULE", "OBJECT", "EXCLUDE_FROM_ALL"}


@dataclass
class Target:
    name: str
    folder: str  # where its CMakeLists.txt is, relative to the root
    sources: list = field(default_factory=list)  # relative to the root
    links: list = field(default_factory=list)


def commands(text):
    """(name, words) of each command, in order."""
    text = _COMMENT.sub("", text)
    for match in _COMMAND.finditer(text):
        yield match.group(1).lower(), [word.strip('"') for word in _WORD.findall(match.group(2))]


def _sections(words, keywords):
    """Splits the arguments of a pmirror_* function at its keywords."""
    sections, current = {}, None
    for word in words:
        if word in keywords:
            current = sections.setdefault(word, [])
        elif current is not None:
            current.append(word)
    return sections


def _add(target, sources, links):
    source = lambda name: posixpath.normpath(posixpath.join(target.folder, name.replace("${CMAKE_CURRENT_SOURCE_DIR}/", "")))
    from_root = lambda name: name.replace("${PROJECT_SOURCE_DIR}/", "")
    target.sources += [from_root(s) if s.startswith("${PROJECT_SOURCE_DIR}/") else source(s) for s in sources]
    target.links += links


def read_targets(tree):
    """name -> Target for the whole tree."""
    targets = {}
    for path in tree.paths:
        if posixpath.basename(path) != "CMakeLists.txt":
            continue
        folder = posixpath.dirname(path)
        for command, words in commands(tree.text(path)):
            if not words:
                continue
            name, rest = words[0], words[1:]
            if command in ("add_library", "add_executable", "pmirror_library", "pmirror_test"):
                target = targets.setdefault(name, Target(name, folder))
            else:
                target = targets.get(name)
            if target is None:
                continue
            if command in ("pmirror_library", "pmirror_test"):
                parts = _sections(rest, ("SOURCES", "LINKS", "LABELS", "TIMEOUT"))
                _add(target, parts.get("SOURCES", []), parts.get("LINKS", []))
            elif command in ("add_library", "add_executable", "target_sources"):
                _add(target, [word for word in rest if word not in _NOT_NAMES], [])
            elif command == "target_link_libraries":
                _add(target, [], [word for word in rest if word not in _NOT_NAMES])
    return targets


def linked_from(targets, names):
    """The targets in `names` and all that they link, directly or not, as far as the tree defines them."""
    seen, queue = set(), list(names)
    while queue:
        name = queue.pop()
        if name in targets and name not in seen:
            seen.add(name)
            queue += targets[name].links
    return seen
