# SPDX-License-Identifier: BSD-3-Clause
"""Programs that do what a test tells them (agent.py), under the preload library or without it."""

import json
import os
import signal
import subprocess
import sys
import tempfile

PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "agent.py")


class Agent:
    """`do(text)` runs a line of Python in the program and hands back its value, or raises Refused with the name of its errno."""

    def __init__(self, cluster, preload=True, run_options=(), env=None):
        self._errors = tempfile.TemporaryFile()
        words = cluster.run_command(sys.executable, PROGRAM) if preload else [sys.executable, PROGRAM]
        if run_options:
            words[words.index("--"):words.index("--")] = run_options
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
                                        env={**os.environ, **(env or {})}, cwd="/")
        self.do("1")  # it runs now

    @property
    def pid(self):
        return self.process.pid

    def begin(self, text):
        self.process.stdin.write(json.dumps(text) + "\n")
        self.process.stdin.flush()

    def end(self):
        line = self.process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise AssertionError(f"the program ended: {self.process.wait(10)} {self._errors.read().decode(errors='replace')}")
        answer = json.loads(line)
        if "errno" in answer:
            raise Refused(answer["errno"])
        return answer["value"]

    def do(self, text):
        self.begin(text)
        return self.end()

    def errors(self):
        """What it wrote to its standard error."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")

    def stop(self):
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def kill(self):
        self.process.kill()
        self.process.wait(10)

    def close(self):
        self.process.kill()
        self.process.communicate()
        self._errors.close()


class Refused(Exception):
    """The call failed; the text is the name of its errno."""
