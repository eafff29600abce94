# SPDX-License-Identifier: BSD-3-Clause
"""What a sync costs with an RPO, against one of an unreplicated file and one at RPO 0. Figures, no assertions.

    PMIRROR_BUILD_DIR=build python3 tests/bench/rpo_figures.py [RPO]

Two nodes in namespaces, backing directories on tmpfs; the msync is of one page, each figure the median of its interval.
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
INTERVAL_MS = 300
LINES = 10


def pmirror(*words):
    return subprocess.run([PMIRROR, *words], capture_output=True, text=True, check=True, timeout=300).stdout


def median_us(path, inside=()):
    out = subprocess.run([*inside, PROGRAM, path, str(INTERVAL_MS), str(LINES)], capture_output=True, text=True, check=True, timeout=300)
    values = sorted(int(line.split()[0]) for line in out.stdout.splitlines())
    return values[len(values) // 2] / 1000


def replica(sandbox):
    return json.loads(pmirror("status", "--sandbox", sandbox, "--json"))["volumes"][0]["replicas"][0]


def measured(directory, rpo):
    """The cost of a sync in microseconds, and the replica's status after it."""
    sandbox = os.path.join(directory, "s")
    state = json.JSONDecoder().raw_decode(pmirror("sandbox", "up", sandbox, "--nodes", "2", "--netns", "--rpo", rpo))[0]
    try:
        while replica(sandbox)["state"] != "in-sync" or (rpo != "0" and "trail" not in replica(sandbox)):
            time.sleep(0.05)  # Sleep because: the interval of a poll
        cost = median_us(os.path.join(state["nodes"][0]["mount"], "syncs"), [PMIRROR, "run", "--sandbox", sandbox, "--"])
        return cost, replica(sandbox)
    finally:
        pmirror("sandbox", "down", sandbox)


def main():
    rpo = sys.argv[1] if len(sys.argv) > 1 else "50ms"
    directory = tempfile.mkdtemp(prefix="pmr", dir="/dev/shm")
    try:
        bare = median_us(os.path.join(directory, "bare"))
        in_sync, _ = measured(directory, "0")
        trailing, status = measured(directory, rpo)
        trail = status["trail"]
        print(f"msync of a page, unreplicated       {bare:8.2f} us")
        print(f"                 RPO 0              {in_sync:8.2f} us")
        print(f"                 RPO {rpo:<10}     {trailing:8.2f} us  (limit of the issue: unreplicated + 3)")
        print(f"captured {trail['captured_bytes']} bytes, shipped {trail['batch_bytes']} in {trail['batches']} batches; "
              f"beyond the RPO for {trail['breach_ns'] / 1e6:.0f} ms")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
