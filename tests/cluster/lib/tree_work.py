# SPDX-License-Identifier: BSD-3-Clause
"""Random changes of a tree, from a seed: what to do next does not depend on what was answered, so that the same work can be done on a mount and
on a plain directory, call by call, and the answers compared.

    step = Work(seed).next()        a call and its arguments, with names relative to the tree
    Side(directory).do(step)        makes the call there; its value, or the OSError's name
"""

import ctypes
import errno
import fcntl
import os
import random
import stat

_libc = ctypes.CDLL(None, use_errno=True)
_LONG = ctypes.c_long

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
FALLOCATE_MODES = (0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE)

NAMES = [prefix + name for prefix in ("", "d1/", "d2/", "d1/s/") for name in ("a", "b", "c", "d1", "d2", "s")]
SLOTS = 4  # open files of a side
LARGEST = 200_000


def _checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def renameat2(old, new, flags):
    return _checked(_libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags))


def fallocate(fd, mode, offset, length):
    return _checked(_libc.fallocate(fd, mode, _LONG(offset), _LONG(length)))


class Side:
    """A directory in which steps are made, with the files that they hold open."""

    def __init__(self, directory):
        self._directory = directory
        self._open = {}
        self.lost = False  # the daemon behind the directory is gone: the last step may or may not have happened
        self.written = 0  # bytes of the last write or append that were acknowledged

    def do(self, step):
        name, *arguments = step
        try:
            return getattr(self, "_" + name)(*arguments)
        except OSError as error:
            self.lost = self.lost or error.errno in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO)
            return errno.errorcode[error.errno]

    def close(self):
        for slot in list(self._open):
            try:
                self._close(slot)
            except OSError:
                pass  # the mount may be gone

    def place_of_append(self, slot):
        """The offset at which the next one writes."""
        if slot not in self._open:
            return 0
        appends = fcntl.fcntl(self._open[slot], fcntl.F_GETFL) & os.O_APPEND
        return os.fstat(self._open[slot]).st_size if appends else os.lseek(self._open[slot], 0, os.SEEK_CUR)

    def _at(self, name):
        return os.path.join(self._directory, name)

    def _fd(self, slot):
        if slot not in self._open:
            raise OSError(errno.EBADF, "not open")
        return self._open[slot]

    def _keep(self, slot, fd):
        self._close(slot)
        self._open[slot] = fd

    # Names.

    def _mkdir(self, name, mode):
        os.mkdir(self._at(name), mode)

    def _mknod(self, name, mode, device):
        os.mknod(self._at(name), mode, device)

    def _symlink(self, value, name):
        os.symlink(value, self._at(name))

    def _link(self, name, new):
        os.link(self._at(name), self._at(new), follow_symlinks=False)

    def _unlink(self, name):
        os.unlink(self._at(name))

    def _rmdir(self, name):
        os.rmdir(self._at(name))

    def _rename(self, name, new, flags):
        renameat2(self._at(name), self._at(new), flags)

    # Attributes.

    def _chmod(self, name, mode):
        os.chmod(self._at(name), mode)

    def _chown(self, name, uid, gid):
        os.chown(self._at(name), uid, gid, follow_symlinks=False)

    def _utimens(self, name, ns):
        os.utime(self._at(name), ns=(ns, ns), follow_symlinks=False)

    def _setxattr(self, name, attribute, value):
        os.setxattr(self._at(name), attribute, value, follow_symlinks=False)

    def _removexattr(self, name, attribute):
        os.removexattr(self._at(name), attribute, follow_symlinks=False)

    def _truncate(self, name, size):
        if not stat.S_ISREG(os.lstat(self._at(name)).st_mode):
            raise OSError(errno.EINVAL, "no file")
        os.truncate(self._at(name), size)

    # Open files.

    def _open_file(self, slot, name, flags):
        try:
            if not stat.S_ISREG(os.lstat(self._at(name)).st_mode):
                raise OSError(errno.EINVAL, "no file")  # an open of a pipe or a device would be another test
        except FileNotFoundError:
            pass
        self._keep(slot, os.open(self._at(name), flags | os.O_NONBLOCK | os.O_NOFOLLOW, 0o644))

    def _tmpfile(self, slot, name):
        self._keep(slot, os.open(self._at(name), os.O_TMPFILE | os.O_RDWR, 0o600))

    def _link_open(self, slot, name):
        os.link(f"/proc/self/fd/{self._fd(slot)}", self._at(name), follow_symlinks=True)

    def _write(self, slot, data, offset):
        return self._all(data, lambda rest, done: os.pwrite(self._fd(slot), rest, offset + done))

    def _append(self, slot, data):
        return self._all(data, lambda rest, _: os.write(self._fd(slot), rest))

    def _all(self, data, write):
        """As programs do: what a call left over goes into the next."""
        self.written = 0
        while self.written < len(data):
            self.written += write(data[self.written:], self.written)
        return self.written

    def _read(self, slot, length, offset):
        return os.pread(self._fd(slot), length, offset)

    def _ftruncate(self, slot, size):
        os.ftruncate(self._fd(slot), size)

    def _fallocate(self, slot, mode, offset, length):
        fallocate(self._fd(slot), mode, offset, length)

    def _copy(self, slot, other, length, offset, to):
        self.written = 0
        while True:
            more = os.copy_file_range(self._fd(slot), self._fd(other), length - self.written, offset + self.written, to + self.written)
            self.written += more
            if more == 0 or self.written == length:
                return self.written

    def _fchmod(self, slot, mode):
        os.fchmod(self._fd(slot), mode)

    def _fsync(self, slot):
        os.fsync(self._fd(slot))

    def _close(self, slot):
        if slot in self._open:
            os.close(self._open.pop(slot))


class Work:
    """An endless sequence of steps."""

    def __init__(self, seed):
        self._random = random.Random(seed)
        self._count = 0

    def next(self):
        self._count += 1
        pick = self._random
        name, other = pick.choice(NAMES), pick.choice(NAMES)
        slot, offset, length = pick.randrange(SLOTS), pick.randrange(LARGEST), pick.choice((1, 100, 5000, 70_000))
        data = self._count.to_bytes(4, "little") * (length // 4 + 1)
        steps = {  # how often: step
            "open": (12, ("open_file", slot, name, os.O_RDWR | os.O_CREAT | pick.choice((0, 0, os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_SYNC)))),
            "write": (10, ("write", slot, data, offset)),
            "append": (3, ("append", slot, data)),
            "read": (3, ("read", slot, length, offset)),
            "mkdir": (8, ("mkdir", name, pick.choice((0o755, 0o700, 0o2775)))),
            "unlink": (6, ("unlink", name)),
            "rmdir": (3, ("rmdir", name)),
            "rename": (6, ("rename", name, other, pick.choice((0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE)))),
            "link": (4, ("link", name, other)),
            "symlink": (3, ("symlink", other, name)),
            "fifo": (1, ("mknod", name, stat.S_IFIFO | 0o640, 0)),
            "device": (1, ("mknod", name, stat.S_IFCHR | 0o640, os.makedev(1, pick.randrange(3, 9)))),
            "tmpfile": (3, ("tmpfile", slot, pick.choice((".", "d1", "d2")))),
            "link_open": (4, ("link_open", slot, name)),
            "chmod": (3, ("chmod", name, pick.randrange(0o10000))),
            "fchmod": (2, ("fchmod", slot, pick.randrange(0o1000))),
            "chown": (3, ("chown", name, pick.randrange(3), pick.randrange(3))),
            "utimens": (2, ("utimens", name, pick.randrange(1 << 60))),
            "setxattr": (3, ("setxattr", name, f"user.{pick.randrange(3)}", data[:300])),
            "trusted": (1, ("setxattr", name, "trusted.x", data[:20])),
            "removexattr": (2, ("removexattr", name, f"user.{pick.randrange(3)}")),
            "truncate": (3, ("truncate", name, offset)),
            "ftruncate": (3, ("ftruncate", slot, offset)),
            "fallocate": (6, ("fallocate", slot, pick.choice(FALLOCATE_MODES), offset, length)),
            "copy": (4, ("copy", slot, pick.randrange(SLOTS), length, offset // 2, pick.randrange(LARGEST))),
            "fsync": (1, ("fsync", slot)),
            "close": (4, ("close", slot)),
        }
        weights, choices = zip(*steps.values())
        return pick.choices(choices, weights)[0]


def split(step, at):
    """A write, append or copy of the first `at` bytes, and the rest of it."""
    if step[0] == "copy":
        name, slot, other, length, offset, to = step
        return (name, slot, other, at, offset, to), (name, slot, other, length - at, offset + at, to + at)
    name, slot, data, *offset = step
    return (name, slot, data[:at], *offset), (name, slot, data[at:], *(where + at for where in offset))


def show(step):
    """A step for people: data is shortened."""
    return tuple(f"{word[:8]!r}... ({len(word)})" if isinstance(word, bytes) and len(word) > 16 else word for word in step)
