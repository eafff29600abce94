# SPDX-License-Identifier: BSD-3-Clause
"""Finds and ends what a sandbox may leave on this machine: mounts below its directory, processes that name it, its network namespaces.

Only what belongs to the sandbox is touched: processes by pid, and only when their command line, working directory or an open file names its
directory, which is unique.
"""

import os
import signal
import subprocess
import time

_END_SECONDS = 10


class Leftovers:
    def __init__(self, directory):
        self._directory = os.path.realpath(directory)
        self._namespaces = set()

    def expect(self, nodes):
        """Remembers the namespaces of the nodes that `sandbox up` described."""
        self._namespaces |= {node["netns"] for node in nodes if node.get("netns")}

    def end(self):
        """Ends all; a text for each thing that was still there."""
        found = []
        for pid in self._processes():
            found.append(f"process {pid} ({_command(pid)})")
            _kill(pid)
        for point in self._mounts():
            found.append(f"mount {point}")
            # A FUSE mount whose daemon is gone answers nothing: detach it without asking it.
            subprocess.run(["umount", "-l", point], capture_output=True, timeout=_END_SECONDS, check=False)
        for name in self._living_namespaces():
            found.append(f"network namespace {name}")
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, timeout=_END_SECONDS, check=False)
        return found

    def _inside(self, path):
        return path == self._directory or path.startswith(self._directory + "/")

    def _mounts(self):
        """Mount points below the directory, the deepest first."""
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            points = [line.split()[4].encode().decode("unicode_escape") for line in file]
        return sorted(filter(self._inside, points), key=len, reverse=True)

    def _living_namespaces(self):
        names = {os.path.basename(name) for name in self._namespaces}
        return sorted(name for name in names if os.path.exists(os.path.join("/run/netns", name)))

    def _processes(self):
        own = {os.getpid(), os.getppid()}
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if pid not in own and self._names_us(pid)]

    def _names_us(self, pid):
        if any(self._directory in word for word in _words(pid)):
            return True
        links = [f"/proc/{pid}/cwd"]
        try:
            links += [f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd")]
        except OSError:
            pass  # it is gone
        return any(self._inside(_target(link)) for link in links)


def _target(link):
    try:
        return os.readlink(link)
    except OSError:
        return ""


def _words(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return [os.fsdecode(word) for word in file.read().split(b"\0")]
    except OSError:
        return []


def _command(pid):
    return " ".join(_words(pid)).strip()


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rsplit(b")", 1)[1].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def _kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    deadline = time.monotonic() + _END_SECONDS
    while is_alive(pid) and time.monotonic() < deadline:
        # Sleep because: the process is not our child, its end can only be polled for.
        time.sleep(0.01)
