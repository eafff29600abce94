# SPDX-License-Identifier: BSD-3-Clause
"""Who may know whom: the table of docs/internals/architecture.md against #include lines and target_link_libraries."""

import posixpath
import re

from cmake_targets import linked_from, read_targets
from tree import CPP_SUFFIXES, PRODUCT_FOLDERS, folder_of, is_test

ARCHITECTURE = "docs/internals/architecture.md"
# See everything.
COMPOSITION_ROOT = ("server/main.cc", "server/daemon.h", "server/daemon.cc", "server/daemon_change.h", "server/daemon_copies.cc",
                    "server/daemon_replacing.cc", "server/daemon_volumes.cc")

_ROW = re.compile(r"^(\w+)/ .*\bknows (.+)$", re.MULTILINE)

# What must not get into an application's process (promise P7).
_FOREIGN_IN_APPLICATIONS = re.compile(r"^(absl|grpc|grpcpp|google|spdlog|fmt|nlohmann|toml\+\+)/|^toml\.hpp$|\.pb\.h$")
_GRPC = re.compile(r"^(grpc|grpcpp|grpc\+\+)/|\.grpc\.pb\.h$")
_FUSE = re.compile(r"^(fuse3?/|fuse(_lowlevel|_opt|_common)?\.h$)")
_VERBS = "infiniband/verbs.h"


def allowed_arrows(tree):
    """folder -> the set of folders that it may know."""
    text = tree.text(ARCHITECTURE) if ARCHITECTURE in tree.paths else ""
    return {folder: {name for name in PRODUCT_FOLDERS if re.search(rf"\b{name}\b", knows)}
            for folder, knows in _ROW.findall(text) if folder in PRODUCT_FOLDERS}


def check_table(tree):
    """The table of the architecture page has a row for every folder of the product."""
    table = allowed_arrows(tree)
    return [f"{ARCHITECTURE}: no row says whom {folder}/ knows" for folder in PRODUCT_FOLDERS if folder not in table]


def check_includes(tree):
    """An #include follows the arrows, and no product file includes a test's."""
    allowed = allowed_arrows(tree)
    errors = []
    for path in tree.with_suffix(*CPP_SUFFIXES):
        folder = folder_of(path)
        if folder not in PRODUCT_FOLDERS or path in COMPOSITION_ROOT:
            continue
        for line, name in tree.includes(path):
            known = folder_of(name)
            if is_test(name) or (known in PRODUCT_FOLDERS and known != folder and known not in allowed.get(folder, ())):
                errors.append(f"{path}:{line}: {folder}/ may not know {known}/ ({name})")
    return errors


def check_links(tree):
    """A target links only targets of folders that its own may know, except the one made of the composition root."""
    allowed, targets = allowed_arrows(tree), read_targets(tree)
    errors = []
    for target in targets.values():
        folder = folder_of(target.folder + "/")
        if folder not in PRODUCT_FOLDERS or any(root in target.sources for root in COMPOSITION_ROOT):
            continue
        for name in target.links:
            known = folder_of(targets[name].folder + "/") if name in targets else None
            if known not in (None, folder) and known not in allowed.get(folder, ()):
                errors.append(f"{target.folder}/CMakeLists.txt: {target.name} may not link {name} of {known}/")
    return errors


def check_verbs(tree):
    """At most one file includes the verbs header."""
    users = [path for path in tree.with_suffix(*CPP_SUFFIXES) if any(name == _VERBS for _, name in tree.includes(path))]
    return [f"{path}: only one file includes <{_VERBS}>, and {users[0]} does" for path in users[1:]]


def check_adapters(tree):
    """gRPC headers only in adapters (server/, fs/, cli/, proto/; named *grpc* or control_*), FUSE headers only in fs/."""
    errors = []
    for path in tree.with_suffix(*CPP_SUFFIXES):
        if is_test(path):
            continue
        base = posixpath.basename(path)
        grpc_adapter = folder_of(path) in ("server", "fs", "cli", "proto") and ("grpc" in base or base.startswith("control_"))
        for line, name in tree.includes(path):
            if _GRPC.search(name) and not grpc_adapter:
                errors.append(f"{path}:{line}: only files named *grpc* or control_* in server/, fs/, cli/, proto/ include <{name}>")
            if _FUSE.search(name) and folder_of(path) != "fs":
                errors.append(f"{path}:{line}: only fs/ includes <{name}>")
    return errors


def check_application_side(tree):
    """What is loaded into applications, interpose/ and all that it links and includes, uses no foreign library."""
    targets = read_targets(tree)
    own = [target.name for target in targets.values() if folder_of(target.folder + "/") == "interpose"]
    queue = [source for name in linked_from(targets, own) for source in targets[name].sources]
    queue += [path for path in tree.with_suffix(*CPP_SUFFIXES) if folder_of(path) == "interpose"]
    seen, errors = set(), []
    while queue:
        path = queue.pop()
        if path in seen or path not in tree.paths:
            continue
        seen.add(path)
        for line, name in tree.includes(path):
            if _FOREIGN_IN_APPLICATIONS.search(name):
                errors.append(f"{path}:{line}: is loaded into applications and may not include <{name}>")
            queue.append(name)
    return errors


CHECKS = (check_table, check_includes, check_links, check_verbs, check_adapters, check_application_side)
