# SPDX-License-Identifier: BSD-3-Clause
"""Are two backing trees equal? Looks at the files themselves and shares no code with pmirror, so that it can judge `pmirror verify`.

Compared: names, types, sizes, modes, owners, device numbers, symlink targets, which names are one object, extended attributes (without
trusted.pmirror.*), data. Not compared: times, inode numbers, and /.pmirror of either root, which belongs to the copy and not to the volume.
"""

import os
import stat

_OWN_FOLDER = b".pmirror"
_OWN_XATTRS = "trusted.pmirror."
_CHUNK = 1 << 20


def _walk(root):
    """path relative to root -> lstat result, for everything below root and root itself (b".")."""
    found = {b".": os.lstat(root)}
    folders = [b""]
    while folders:
        folder = folders.pop()
        for name in os.listdir(os.path.join(root, folder)):
            if folder == b"" and name == _OWN_FOLDER:
                continue
            path = os.path.join(folder, name)
            found[path] = os.lstat(os.path.join(root, path))
            if stat.S_ISDIR(found[path].st_mode):
                folders.append(path)
    return found


def _xattrs(path):
    names = [name for name in os.listxattr(path, follow_symlinks=False) if not name.startswith(_OWN_XATTRS)]
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}


def _first_difference(left, right):
    """Offset of the first byte that differs, None when the files are equal. Holes are zeros."""
    with open(left, "rb") as a, open(right, "rb") as b:
        offset = 0
        while True:
            one, other = a.read(_CHUNK), b.read(_CHUNK)
            if one != other:
                shorter = min(len(one), len(other))
                return offset + next((i for i in range(shorter) if one[i] != other[i]), shorter)
            if not one:
                return None
            offset += len(one)


def _names_of_objects(entries):
    """The sets of names that are one object, for objects with more than one name."""
    objects = {}
    for path, status in entries.items():
        if not stat.S_ISDIR(status.st_mode):
            objects.setdefault((status.st_dev, status.st_ino), set()).add(path)
    return {frozenset(names) for names in objects.values() if len(names) > 1}


def _compare_entry(left, right, a, b):
    """What differs between two objects of the same name. a, b: their lstat results."""
    if stat.S_IFMT(a.st_mode) != stat.S_IFMT(b.st_mode):
        return [f"type {stat.S_IFMT(a.st_mode):o} / {stat.S_IFMT(b.st_mode):o}"]
    found = []
    if stat.S_IMODE(a.st_mode) != stat.S_IMODE(b.st_mode):
        found.append(f"mode {stat.S_IMODE(a.st_mode):o} / {stat.S_IMODE(b.st_mode):o}")
    if (a.st_uid, a.st_gid) != (b.st_uid, b.st_gid):
        found.append(f"owner {a.st_uid}:{a.st_gid} / {b.st_uid}:{b.st_gid}")
    if (stat.S_ISCHR(a.st_mode) or stat.S_ISBLK(a.st_mode)) and a.st_rdev != b.st_rdev:
        found.append(f"device {a.st_rdev} / {b.st_rdev}")
    if stat.S_ISLNK(a.st_mode) and os.readlink(left) != os.readlink(right):
        found.append(f"target {os.readlink(left)!r} / {os.readlink(right)!r}")
    if _xattrs(left) != _xattrs(right):
        found.append(f"xattrs {_xattrs(left)} / {_xattrs(right)}")
    if stat.S_ISREG(a.st_mode):
        if a.st_size != b.st_size:
            found.append(f"size {a.st_size} / {b.st_size}")
        elif (offset := _first_difference(left, right)) is not None:
            found.append(f"data from offset {offset}")
    return found


def differences(left_root, right_root):
    """A list of "path: what" for everything in which the two trees differ; empty when they are equal."""
    left_root, right_root = os.fsencode(left_root), os.fsencode(right_root)
    left, right = _walk(left_root), _walk(right_root)
    found = []
    for path in sorted(left.keys() | right.keys()):
        shown = os.fsdecode(path)
        if path not in right:
            found.append(f"{shown}: only in {os.fsdecode(left_root)}")
        elif path not in left:
            found.append(f"{shown}: only in {os.fsdecode(right_root)}")
        else:
            what = _compare_entry(os.path.join(left_root, path), os.path.join(right_root, path), left[path], right[path])
            found += [f"{shown}: {item}" for item in what]
    common = left.keys() & right.keys()
    for names in _names_of_objects(left) ^ _names_of_objects(right):
        if names <= common:
            found.append(f"{', '.join(sorted(map(os.fsdecode, names)))}: one object on one side only")
    return found
