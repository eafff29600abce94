# SPDX-License-Identifier: BSD-3-Clause
"""A program that does one thing at a time, when it is told to: it reads requests from its standard input, each a JSON list [action, argument
...], and answers each with a JSON object: the errno (0 when it succeeded) and how many seconds the call took. lib/stepper.py drives it.

    stepwise.py FILE BYTES [--map]      opens or makes FILE; with --map through a shared mapping
"""

import json
import mmap
import os
import sys
import time

PAGE = mmap.PAGESIZE


class Program:
    def __init__(self, path, length, mapped):
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if os.fstat(self._fd).st_size < length:
            os.ftruncate(self._fd, length)
            os.fsync(self._fd)
        self._map = mmap.mmap(self._fd, length) if mapped else None

    # The actions.

    def store(self, page, text):
        """Stores `text` at the start of a page of the mapping."""
        self._map[page * PAGE:page * PAGE + len(text)] = text.encode()

    def msync(self, page=None):
        if page is None:
            self._map.flush()
        else:
            self._map.flush(page * PAGE, PAGE)

    def write(self, page, text):
        os.pwrite(self._fd, text.encode(), page * PAGE)

    def fsync(self):
        os.fsync(self._fd)

    @staticmethod
    def mkdir(path):
        os.mkdir(path)

    @staticmethod
    def fsync_directory(path):
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def main():
    program = Program(sys.argv[1], int(sys.argv[2]), "--map" in sys.argv[3:])
    print(json.dumps({"errno": 0, "seconds": 0}), flush=True)
    for line in sys.stdin:
        action, *arguments = json.loads(line)
        begun, error = time.monotonic(), 0
        try:
            getattr(program, action)(*arguments)
        except OSError as failure:
            error = failure.errno
        print(json.dumps({"errno": error, "seconds": time.monotonic() - begun}), flush=True)


if __name__ == "__main__":
    main()
