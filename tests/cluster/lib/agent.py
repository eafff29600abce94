# SPDX-License-Identifier: BSD-3-Clause
"""A program that does what a test tells it, line by line: `python3 agent.py`. For each line of standard input, Python, it prints one line, JSON:
{"value": ...} or {"errno": "EBUSY"}. What it maps and syncs goes through libc, and so through the preload library when it runs under it.
"""

import ctypes
import errno
import json
import os
import sys
import threading

PAGE = 4096
PROT_READ, PROT_WRITE = 1, 2
MAP_SHARED = 1
MS_SYNC = 4
MREMAP_MAYMOVE = 1
MADV_DONTNEED, MADV_REMOVE = 4, 9

libc = ctypes.CDLL(None, use_errno=True)
for name in ("mmap", "mremap"):
    getattr(libc, name).restype = ctypes.c_void_p
for name, types in (("mmap", "PNIIIL"), ("msync", "PNI"), ("munmap", "PN"), ("madvise", "PNI"), ("mprotect", "PNI"), ("mremap", "PNNI"), ("fallocate", "IILL"),
                    ("syncfs", "I"), ("sync", "")):
    getattr(libc, name).argtypes = [{"P": ctypes.c_void_p, "N": ctypes.c_size_t, "I": ctypes.c_int, "L": ctypes.c_long}[t] for t in types]


def call(function, *arguments):
    """A call of libc, with OSError where it fails."""
    result = getattr(libc, function)(*arguments)
    if result == -1 or result == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), function)
    return result


class Map:
    """A shared mapping of a file."""

    def __init__(self, path, length=0, access=os.O_RDWR, protection=PROT_READ | PROT_WRITE):
        self.fd = os.open(path, access)
        self.length = length or os.fstat(self.fd).st_size
        self.address = call("mmap", None, self.length, protection, MAP_SHARED, self.fd, 0)

    def store(self, offset, data):
        ctypes.memmove(self.address + offset, data, len(data))

    def load(self, offset, length):
        return ctypes.string_at(self.address + offset, length).decode()

    def msync(self, offset=0, length=0):
        call("msync", self.address + offset, length or self.length - offset, MS_SYNC)

    def fsync(self):
        os.fsync(self.fd)

    def unmap(self):
        call("munmap", self.address, self.length)

    def remap(self, length):
        self.address = call("mremap", self.address, self.length, length, MREMAP_MAYMOVE)
        self.length = length

    def protect(self, protection):
        call("mprotect", self.address, self.length, protection)

    def advise(self, offset, length, advice):
        call("madvise", self.address + offset, length, advice)


def in_threads(count, function):
    """Runs function(0) ... function(count - 1) at the same time; raises what one of them raised."""
    failed = []

    def run(index):
        try:
            function(index)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def main():
    scope = globals()
    for line in sys.stdin:
        text = json.loads(line)
        try:
            try:
                code = compile(text, "line", "eval")
            except SyntaxError:
                code = compile(text, "line", "exec")
            answer = {"value": eval(code, scope)}
            json.dumps(answer)
        except OSError as error:
            answer = {"errno": errno.errorcode[error.errno]}
        except TypeError:
            answer = {"value": None}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
