# SPDX-License-Identifier: BSD-3-Clause
"""What a sync costs without redundancy, how fast a copy is brought back, and what programs notice of that. Figures, no assertions.

    PMIRROR_BUILD_DIR=build python3 tests/bench/resync_figures.py [MEBIBYTES]

Two nodes in namespaces, backing directories on tmpfs, policy proceed; the msync is of one page, each figure the median of its interval.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
BUILD = os.environ.get("PMIRROR_BUILD_DIR", os.path.join(ROOT, "build"))
PMIRROR = os.path.join(BUILD, "bin", "pmirror")
PROGRAM = os.path.join(BUILD, "bin", "sync_cost")
SECONDS = 300
INTERVAL_MS = 300


class Cluster:
    def __init__(self, directory):
        self.directory = os.path.join(directory, "s")
        out = self.pmirror("sandbox", "up", self.directory, "--nodes", "2", "--netns", "--on-loss", "proceed", "--deadline", "500ms")
        state = json.JSONDecoder().raw_decode(out)[0]
        self.primary, self.replica = (node["name"] for node in state["nodes"])
        self.mount = state["nodes"][0]["mount"]
        self.backing = state["nodes"][1]["backing"]

    def pmirror(self, *words):
        return subprocess.run([PMIRROR, *words], capture_output=True, text=True, check=True, timeout=SECONDS).stdout

    def state(self):
        status = json.loads(self.pmirror("status", "--sandbox", self.directory, "--json"))
        return status["volumes"][0]["replicas"][0]["state"]

    def wait(self, *states):
        while self.state() not in states:
            time.sleep(0.05)  # Sleep because: the interval of a poll

    def restored(self):
        """The fields of the last event of a resync that ended."""
        events = self.pmirror("events", "--sandbox", self.directory, "--json").splitlines()
        return [event for event in map(json.loads, events) if event["event"] == "redundancy_restored"][-1]["fields"]

    def syncs(self, lines, preload=True, path=None):
        command = [PROGRAM, path or os.path.join(self.mount, "syncs"), str(INTERVAL_MS), str(lines)]
        inside = [PMIRROR, "run", "--sandbox", self.directory, "--"] if preload else []
        return subprocess.Popen([*inside, *command], stdout=subprocess.PIPE, text=True)


def median_us(lines):
    values = sorted(int(line.split()[0]) for line in lines)
    return values[len(values) // 2] / 1000


def main():
    mebibytes = int(sys.argv[1]) if len(sys.argv) > 1 else 512
    directory = tempfile.mkdtemp(prefix="pmr", dir="/dev/shm")
    cluster = None
    try:
        cluster = Cluster(directory)
        bare = median_us(cluster.syncs(5, preload=False, path=os.path.join(directory, "bare")).communicate()[0].splitlines())
        in_sync = median_us(cluster.syncs(5).communicate()[0].splitlines())
        cluster.pmirror("sandbox", "kill", cluster.directory, cluster.replica)
        cluster.wait("disconnected")
        alone = median_us(cluster.syncs(5).communicate()[0].splitlines())
        with open(os.path.join(cluster.mount, "large"), "wb") as file:
            for _ in range(mebibytes):
                file.write(os.urandom(1 << 20))
        writer = cluster.syncs(1000)
        before = [writer.stdout.readline() for _ in range(3)]
        begun = time.monotonic()
        cluster.pmirror("sandbox", "start", cluster.directory, cluster.replica)
        cluster.wait("resyncing")
        during = []
        while cluster.state() == "resyncing":
            during.append(writer.stdout.readline())
        took = time.monotonic() - begun
        writer.kill()
        writer.wait()
        cluster.wait("in-sync")
        fields = cluster.restored()
        print(f"msync of a page, no pmirror            {bare:8.1f} us")
        print(f"msync of a page, in sync               {in_sync:8.1f} us")
        print(f"msync of a page, without the replica   {alone:8.1f} us   ({alone - bare:+.1f} us; limit +2)")
        print(f"                 before the resync     {median_us(before):8.1f} us")
        print(f"                 during the resync     {median_us(during):8.1f} us   ({len(during)} intervals of {INTERVAL_MS} ms; "
              f"{in_sync / median_us(during):.2f} of the speed in sync; limit 0.5)")
        print(f"resync of {mebibytes} MiB under that load     {took:8.1f} s    {mebibytes / took:.0f} MiB/s, "
              f"{int(fields['bytes_sent']) / (mebibytes << 20):.3f} of the bytes that differ sent")
    finally:
        if cluster is not None:
            subprocess.run([PMIRROR, "sandbox", "down", cluster.directory], check=False, timeout=SECONDS, capture_output=True)
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
