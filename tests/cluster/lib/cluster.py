# SPDX-License-Identifier: BSD-3-Clause
"""Clusters for tests, made and driven only through the command `pmirror` as its users would: see `pmirror sandbox --help`.

    from lib.cluster import ClusterTest, main

    class MyTest(ClusterTest):
        def test_a_condition_has_a_result(self):
            cluster = self.cluster(on_loss="suspend")
            writer = cluster.writer("mmap_writer", "file")
            writer.wait_for(100)
            cluster.kill(cluster.primary)
            cluster.check("mmap_writer", cluster.replica, "file", writer.acknowledged())

Whatever a test does, its cleanup ends every process, mount and namespace of the sandbox, by what names its unique directory; what
`pmirror sandbox down` had left behind fails the test.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from dataclasses import dataclass

_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [_HERE, os.path.join(_HERE, "..", "..", "apps")]

from leftovers import Leftovers, is_alive  # noqa: E402
from stepper import Stepper  # noqa: E402
from trees import differences  # noqa: E402
from writers import Writer, check  # noqa: E402

BUILD = os.environ.get("PMIRROR_BUILD_DIR", "build")
COMMAND_SECONDS = 60
POLL_SECONDS = 0.02


class CommandFailed(AssertionError):
    """A command of pmirror that ended with another status than 0."""

    def __init__(self, command, status, errors):
        super().__init__(f"{' '.join(command)}: exit {status}: {errors.strip()}")
        self.status = status
        self.errors = errors


@dataclass
class Node:
    """A node as `sandbox up` describes it for one volume. `mount` is empty where the volume is not mounted."""

    name: str
    pid: int
    control: str
    backing: str
    mount: str
    netns: str


def parse_states(text):
    """The volumes' states that `sandbox up` prints: one or several JSON objects, or a list of them; an object may hold all "volumes"."""
    decoder, states, at = json.JSONDecoder(), [], 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        value, at = decoder.raw_decode(text, at)
        states += value if isinstance(value, list) else value.get("volumes", [value])
    return states


def wait(condition, what, seconds=30):
    """Polls `condition` until it is true and returns its value; AssertionError naming `what` after `seconds`.

    `what` is a text, or a function that gives one when the time has passed.
    """
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"after {seconds} s: not {what() if callable(what) else what}")
        # Sleep because: this is the interval of a poll with a deadline, the one place where tests wait for a state.
        time.sleep(POLL_SECONDS)


class Cluster:
    """A sandbox of `pmirror sandbox up`. Every method fails with CommandFailed when the command does."""

    def __init__(self, nodes=2, volumes=1, netns=True, build=None, **options):
        """`options`: further words of `sandbox up`, as on_loss="fail" for --on-loss fail."""
        self.build = os.path.abspath(build or BUILD)
        self.scratch = tempfile.mkdtemp(prefix="pmc")  # short: the path of a UNIX socket has 107 bytes
        os.chmod(self.scratch, 0o755)  # programs of other users reach the mount through it
        self.directory = os.path.join(self.scratch, "s")
        self._options = ["--nodes", str(nodes), "--volumes", str(volumes)] + (["--netns"] if netns else [])
        for name, value in options.items():
            self._options += ["--" + name.replace("_", "-"), str(value)]
        self._writers = []  # and steppers
        self.volumes = {}  # name -> the state that `sandbox up` printed
        self._leftovers = Leftovers(self.directory)

    # Life.

    def up(self):
        states = parse_states(self.pmirror("sandbox", "up", self.directory, *self._options))
        self.volumes = {state["volume"]: state for state in states}
        for state in states:
            self._leftovers.expect(state["nodes"])
        return self

    def down(self):
        """Takes the sandbox down and returns what that left behind (texts), after ending it too. May be called at any time, twice."""
        for writer in self._writers:
            writer.close()
        self._writers = []
        if not os.path.isdir(self.scratch):
            return []
        errors = []
        try:
            if os.path.isdir(self.directory):
                self.pmirror("sandbox", "down", self.directory)
        except (CommandFailed, subprocess.TimeoutExpired, OSError) as error:
            errors.append(str(error))
        errors += self._leftovers.end()
        shutil.rmtree(self.scratch, ignore_errors=True)
        return errors

    # Who is who.

    def node(self, name, volume="v0"):
        described = next(node for node in self.volumes[volume]["nodes"] if node["name"] == name)
        return Node(**{field: described.get(field) or "" for field in Node.__dataclass_fields__})

    @property
    def primary(self):
        """The name of v0's primary when the sandbox came up."""
        return self.volumes["v0"]["primary"]

    @property
    def replicas(self):
        return [node["name"] for node in self.volumes["v0"]["nodes"] if node["name"] != self.primary]

    @property
    def replica(self):
        return self.replicas[0]

    def mounted(self, path, volume="v0"):
        """`path` of the volume as programs of the primary see it."""
        return os.path.join(self.node(self.volumes[volume]["primary"], volume).mount, path)

    def backing(self, node, path="", volume="v0"):
        return os.path.join(self.node(node, volume).backing, path)

    # Commands.

    def pmirror(self, *arguments, seconds=COMMAND_SECONDS):
        """Runs build/bin/pmirror; its standard output."""
        command = [os.path.join(self.build, "bin", "pmirror"), *map(str, arguments)]
        run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False)
        if run.returncode != 0:
            raise CommandFailed(command, run.returncode, run.stderr)
        return run.stdout

    def kill(self, node):
        self.pmirror("sandbox", "kill", self.directory, node)

    def start(self, node):
        self.pmirror("sandbox", "start", self.directory, node)

    def daemon(self, node):
        """The pid of the node's daemon, also after `start`; 0 when it does not run."""
        config = os.path.join(self.directory, node, "pmirrord.toml")
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as file:
                    words = file.read().split("\0")
            except OSError:
                continue  # it is gone
            if words[0].endswith("pmirrord") and config in words and is_alive(int(pid)):
                return int(pid)
        return 0

    def signal(self, node, number):
        """Sends a signal to the node's daemon alone."""
        os.kill(self.daemon(node), number)

    def stop(self, node, seconds=30):
        """Ends the node's daemon cleanly, and waits for that."""
        self.signal(node, signal.SIGTERM)
        wait(lambda: self.daemon(node) == 0, f"the daemon of {node} ended", seconds)

    def events(self, node, name, /, **fields):
        """The lines of the node's log that tell of the event, with these fields."""
        wanted = {f"event={name}"} | {f"{key}={value}" for key, value in fields.items()}
        with open(os.path.join(self.directory, node, "pmirrord.log"), encoding="utf-8", errors="replace") as file:
            return [line for line in file if wanted <= set(line.split())]

    def partition(self, a, b):
        self.pmirror("sandbox", "partition", self.directory, a, b)

    def heal(self, a, b):
        self.pmirror("sandbox", "heal", self.directory, a, b)

    def status(self, volume="v0"):
        """The volume's object of `status --json`."""
        volumes = json.loads(self.pmirror("status", "--sandbox", self.directory, "--json"))["volumes"]
        return next(entry for entry in volumes if entry["name"] == volume)

    def replica_status(self, node, volume="v0"):
        return next(entry for entry in self.status(volume)["replicas"] if entry["node"] == node)

    def verify(self, volume="v0"):
        """The lines of differences that `pmirror verify` lists; empty when the copies are equal."""
        try:
            self.pmirror("verify", "--sandbox", self.directory, volume)
        except CommandFailed as failure:
            if failure.status != 1:
                raise
            return failure.errors.splitlines() or ["verify: exit 1"]
        return []

    # Waiting.

    def wait_state(self, node, *states, volume="v0", seconds=30):
        """Waits until the replica is in one of `states`, by polling status."""
        seen = {}

        def reached():
            try:
                seen.update(self.replica_status(node, volume))
            except CommandFailed as failure:  # the daemon may be starting
                seen.update(state=str(failure))
            return seen["state"] in states

        wait(reached, lambda: f"{node} {'/'.join(states)} (it is {seen})", seconds)

    def wait_in_sync(self, volume="v0", seconds=30):
        for node in self.volumes[volume]["nodes"]:
            if node["name"] != self.volumes[volume]["primary"]:
                self.wait_state(node["name"], "in-sync", volume=volume, seconds=seconds)

    # Programs.

    def app(self, program):
        """The path of one of tests/apps."""
        return os.path.join(self.build, "apps", program)

    def run_command(self, *command, volume=None):
        """The words that run `command` under the preload library on the volume's primary."""
        place = ["--volume", volume] if volume else []
        return [os.path.join(self.build, "bin", "pmirror"), "run", "--sandbox", self.directory, *place, "--", *map(str, command)]

    def run(self, *command, preload=True, seconds=COMMAND_SECONDS, env=None):
        """Runs a program to its end; the CompletedProcess, with text."""
        words = self.run_command(*command) if preload else [str(word) for word in command]
        return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds,
                              env={**os.environ, **(env or {})}, check=False)

    def writer(self, program, path, *options, preload=True, env=None, volume=None):
        """Starts the `write` mode of one of tests/apps on `path` of the volume; a Writer, closed with the cluster."""
        command = [self.app(program), "write", *options, self.mounted(path, volume or "v0")]
        writer = Writer(self.run_command(*command, volume=volume) if preload else command, env)
        self._writers.append(writer)
        return writer

    def stepper(self, path, pages=16, mapped=False, preload=True):
        """Starts tests/apps/stepwise.py on `path` of v0; a Stepper, closed with the cluster."""
        program = os.path.join(_HERE, "..", "..", "apps", "stepwise.py")
        command = [sys.executable, program, self.mounted(path), pages * 4096] + (["--map"] if mapped else [])
        stepper = Stepper(self.run_command(*command) if preload else command)
        self._writers.append(stepper)
        return stepper

    def check(self, program, node, path, acknowledged, env=None, volume="v0"):
        """Runs the program's checker on a copy of what `node` has in its backing directory.

        A copy, with the files whose names go on from that one (-wal, -lock): databases recover what they open.
        """
        folder, base = os.path.split(self.backing(node, path, volume))
        copies = tempfile.mkdtemp(dir=self.scratch)
        for name in os.listdir(folder):
            if name.startswith(base):
                shutil.copy2(os.path.join(folder, name), copies)
        check(self.app(program), os.path.join(copies, base), acknowledged, env)

    def differences(self, a, b, volume="v0"):
        """In what the backing trees of two nodes differ, found without pmirror (trees.py)."""
        return differences(self.backing(a, volume=volume), self.backing(b, volume=volume))


class ClusterTest(unittest.TestCase):
    """A test case whose clusters end with each test, whatever happened in it."""

    def cluster(self, **options):
        cluster = Cluster(**options)
        self.addCleanup(self._take_down, cluster)
        cluster.up()
        return cluster

    def _take_down(self, cluster):
        left = cluster.down()
        if left:
            self.fail("sandbox down left behind: " + "; ".join(left))


def _time_is_up(*_):
    raise AssertionError("the time of this test file is up (TIMEOUT in its CMakeLists.txt)")


def main():
    """For the end of a test file. Ends the test a little before ctest's time limit, which kills without any cleanup."""
    signal.signal(signal.SIGALRM, _time_is_up)
    signal.alarm(int(os.environ.get("PMIRROR_TEST_SECONDS", "0")))
    unittest.main(verbosity=2)
