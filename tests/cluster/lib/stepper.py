# SPDX-License-Identifier: BSD-3-Clause
"""Driving tests/apps/stepwise.py: one call at a time, which may take as long as the test wants, and what came of it."""

import json
import os
import signal
import subprocess
import tempfile
import threading
from dataclasses import dataclass

HANG_SECONDS = 30  # an answer that comes later counts as none


@dataclass
class Outcome:
    errno: int
    seconds: float


class Stepper:
    """The program, and at most one request under way."""

    def __init__(self, command):
        self.command = [str(word) for word in command]
        self._errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
                                        start_new_session=True)
        self._answers = []
        self._at_end = False  # its output is closed
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        opened = self.outcome()
        if opened.errno != 0:
            raise AssertionError(f"{self.command}: {opened}")

    def _read(self):
        for line in self.process.stdout:
            if not line.endswith(b"\n"):
                break
            with self._changed:
                self._answers.append(Outcome(**json.loads(line)))
                self._changed.notify_all()
        with self._changed:
            self._at_end = True
            self._changed.notify_all()

    def begin(self, action, *arguments):
        """Tells it to do `action`, and does not wait. See tests/apps/stepwise.py for what there is."""
        self.process.stdin.write(json.dumps([action, *arguments]).encode() + b"\n")
        self.process.stdin.flush()

    def outcome(self, seconds=HANG_SECONDS):
        """What came of the request under way; AssertionError when nothing did within `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: self._answers or self._at_end, seconds)
            if not self._answers:
                raise AssertionError(f"{self.command}: no answer within {seconds} s, or it ended: {self.errors()}")
            return self._answers.pop(0)

    def do(self, action, *arguments):
        """Both in one; the errno."""
        self.begin(action, *arguments)
        return self.outcome().errno

    def busy(self):
        """Has the request under way not been answered?"""
        with self._changed:
            return not self._answers and not self._at_end

    def system_call(self):
        """The number of the system call in which it waits; 0 when it runs."""
        with open(f"/proc/{self.process.pid}/syscall", encoding="ascii") as file:
            word = file.read().split()[0]
        return int(word) if word.isdigit() else 0

    def errors(self):
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")

    def kill(self, seconds=HANG_SECONDS):
        """SIGKILL, and the wait for its end. Harmless when it has ended."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(seconds)

    def close(self):
        self.kill()
        self._reader.join(HANG_SECONDS)
        self.process.stdin.close()
        self.process.stdout.close()
        self._errors.close()
