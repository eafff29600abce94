# SPDX-License-Identifier: BSD-3-Clause
"""Running the example programs of tests/apps, here or through another command, and knowing which commits they acknowledged."""

import os
import signal
import subprocess
import tempfile
import threading
import time

FORCE_PMEM = {"PMEM_IS_PMEM_FORCE": "1", "PMEM2_FORCE_GRANULARITY": "CACHE_LINE"}

# name -> (program, options of write, writers, environment)
CASES = {
    "lmdb": ("lmdb_writer", [], 1, {}),
    "lmdb_writemap": ("lmdb_writer", ["--writemap"], 1, {}),
    "sqlite": ("sqlite_writer", [], 1, {}),
    "pmemobj": ("pmemobj_writer", [], 1, FORCE_PMEM),
    "pmem_all_ways": ("pmem_writer", [], 1, FORCE_PMEM),
    "pmem_page_cache": ("pmem_writer", [], 1, {"PMEM_IS_PMEM_FORCE": "0"}),
    "pmem2": ("pmem2_writer", [], 1, FORCE_PMEM),
    "pmem2_page_cache": ("pmem2_writer", ["--private-fd"], 1, {}),
    "mmap_all_ways": ("mmap_writer", ["--sync", "all"], 1, {}),
    "mmap_threads": ("mmap_writer", ["--writers", "4", "--sync", "all"], 4, {}),
    "mmap_fork": ("mmap_writer", ["--writers", "3", "--fork", "--sync", "all"], 3, {}),
    "mmap_exec": ("mmap_writer", ["--exec-every", "7", "--close-fd"], 1, {}),
    "api": ("api_writer", [], 1, {}),
    "raw_static": ("raw_static", [], 1, {}),
}


class Writer:
    """A program in its `write` mode. Its lines are read by a thread, so that all that it printed before a kill is known.

    `command` is the full command line: the program's own, or one that runs it (`pmirror run ... --`).
    """

    def __init__(self, command, env=None):
        self.command = [str(word) for word in command]
        self._errors = tempfile.TemporaryFile()
        self._acknowledged = {}  # writer -> newest number; guarded by _changed
        self._at_end = False  # its output is closed: nothing more will be acknowledged
        self._changed = threading.Condition()
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._errors,
                                        env={**os.environ, **(env or {})}, start_new_session=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            if not line.endswith(b"\n"):
                break  # killed in the middle of a line: the number is not known to be whole
            words = line.split()
            writer = int(words[0]) if len(words) == 2 else 0
            with self._changed:
                self._acknowledged[writer] = max(self._acknowledged.get(writer, 0), int(words[-1]))
                self._changed.notify_all()
        with self._changed:
            self._at_end = True
            self._changed.notify_all()

    def acknowledged(self, writers=1):
        """The newest acknowledged commit of each writer, as the arguments of `check`."""
        with self._changed:
            return [self._acknowledged.get(writer, 0) for writer in range(writers)]

    def errors(self):
        """What the program wrote to its standard error."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")

    def wait_for(self, number, writers=1, seconds=60):
        """Waits until every writer has acknowledged `number`; AssertionError when it ends or the time passes before."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while min(self._acknowledged.get(writer, 0) for writer in range(writers)) < number:
                if self._at_end:
                    raise AssertionError(f"{self.command} ended at {self._acknowledged}, before {number}: {self.errors()}")
                if not self._changed.wait(max(0.0, deadline - time.monotonic())) and time.monotonic() >= deadline:
                    raise AssertionError(f"{self.command} is at {self._acknowledged} after {seconds} s, not at {number}")

    def finish(self, seconds=60):
        """Waits for the end of the program and of its output; its exit status, negative for a signal."""
        status = self.process.wait(seconds)
        self._reader.join(seconds)
        return status

    def kill(self, seconds=60):
        """SIGKILLs the program with its children, and waits until all that it printed is read. Harmless when it has ended."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.finish(seconds)

    def close(self):
        self.kill()
        self.process.stdout.close()
        self._errors.close()


def check(program, path, acknowledged, env=None, seconds=60):
    """Runs the program's checker; AssertionError with what it said when a commit is missing."""
    command = [str(program), "check", str(path), *map(str, acknowledged)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env={**os.environ, **(env or {})}, check=False)
    if run.returncode != 0:
        raise AssertionError(f"{command} exited with {run.returncode}: {run.stderr.strip()}")
