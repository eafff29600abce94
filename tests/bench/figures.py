#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The figures of the main job, each a ratio of medians taken in one run, against a blocking TCP ping-pong of the same message sizes between
the same two network namespaces. Backing directories are on tmpfs, so that the network is what is measured. Both ends are on CPUs of their own, as they
would be on two machines; the bare ping-pong sleeps in its reads, the library spins for a moment first, and the CPU time of that is printed.

    tests/bench/figures.py [FIGURE ...]        after ./quickstart.sh --build-only; needs root. Prints a table; asserts nothing.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
BUILD = os.environ.get("PMIRROR_BUILD_DIR", os.path.join(ROOT, "build"))
PMIRROR = os.path.join(BUILD, "bin", "pmirror")
PROGRAM = os.path.join(BUILD, "bin", "figures_program")
PORT = "7999"
SECONDS = 300
FORCE_PMEM = {"PMEM_IS_PMEM_FORCE": "1"}
STAGING_KIB = 8 * 1024
GLUSTER_NS = 650_000  # of the same operation, at a 64 B round trip of GLUSTER_ROUND_TRIP_NS (measured before)
GLUSTER_ROUND_TRIP_NS = 21_000


class Bench:
    def __init__(self, directory):
        self.directory = os.path.join(directory, "s")
        out = subprocess.run([PMIRROR, "sandbox", "up", self.directory, "--nodes", "2", "--netns"], capture_output=True, text=True, check=True,
                             timeout=SECONDS).stdout
        state = json.JSONDecoder().raw_decode(out)[0]
        self.primary, self.replica = state["nodes"]
        self.mount = self.primary["mount"]
        with open(os.path.join(self.directory, self.replica["name"], "pmirrord.toml"), encoding="utf-8") as file:
            self.host = re.search(r'^data *= *\[ *"([0-9.]+):', file.read(), re.MULTILINE).group(1)
        self.echo = subprocess.Popen(["ip", "netns", "exec", self.replica["netns"], PROGRAM, "echo", self.host, PORT],
                                     stdout=subprocess.PIPE, text=True)
        self.echo.stdout.readline()
        self.values = {}

    def end(self):
        self.echo.kill()
        self.echo.wait()
        subprocess.run([PMIRROR, "sandbox", "down", self.directory], check=False, timeout=SECONDS)

    def run(self, *arguments, preload=True, env=None):
        command = [PROGRAM, *arguments]
        inside = [PMIRROR, "run", "--sandbox", self.directory, "--"] if preload else ["ip", "netns", "exec", self.primary["netns"]]
        run = subprocess.run([*inside, *command], capture_output=True, text=True, timeout=SECONDS, check=False, env={**os.environ, **(env or {})})
        if run.returncode != 0:
            sys.exit(f"{' '.join(command)}: exit {run.returncode}: {run.stderr}")
        for line in run.stdout.splitlines():
            name, *numbers = line.split()
            self.values[name] = [int(number) for number in numbers]


def row(name, what, value, limit, unit):
    verdict = "" if limit is None else "met" if value <= limit else "NOT MET"
    target = "" if limit is None else f"{limit:.2f}"
    print(f"{name:<28} {what:<58} {value:>9.2f} {unit:<3} {target:>8} {verdict}")


def report(bench, figures):
    values = bench.values
    us = 1000.0

    def both(name):
        operation, base, cpu = values[name]
        return operation / us, base / us, cpu / us

    print(f"{'figure':<28} {'how':<58} {'value':>9} {'':<3} {'limit':>8}")
    if "persist" in figures:
        operation, base, cpu = both("persist_64")
        row("pmem_persist 64 B", f"{operation:.1f} us, bare round trip {base:.1f} us, CPU {cpu:.1f} us", operation / base, 1.3, "x")
    if "page" in figures:
        operation, base, cpu = both("msync_page")
        row("msync of one page", f"{operation:.1f} us, bare round trip {base:.1f} us, CPU {cpu:.1f} us", operation / base, 1.6, "x")
        operation, base, cpu = both("msync_whole_one_page")
        scan = values["scan_one"][0] / us
        row("msync of 1 GiB, 1 page", f"{operation:.0f} us, bare {base:.1f} us, raw scan {scan:.0f} us", operation, 1.6 * base + scan, "us")
        operation, base, cpu = both("msync_whole_thousand")
        scan = values["scan_thousand"][0] / us
        row("msync of 1 GiB, 1000 pages", f"{operation:.0f} us, bare {base:.0f} us, raw scan {scan:.0f} us", operation, 2 * base + scan, "us")
    if "memory" in figures:
        operation, base, _ = both("load_store")
        row("loads and stores", f"{operation:.0f} us, plain mapping {base:.0f} us", operation / base, 1.02, "x")
    if "plain" in figures:
        operation, base, _ = both("plain_store_fdatasync")
        limit = GLUSTER_NS / us * (base * us / GLUSTER_ROUND_TRIP_NS) / 3
        row("plain 4 KiB + fdatasync", f"bare round trip {base:.1f} us", operation, limit, "us")
    if "open" in figures:
        row("open + mmap, first", "", values["open_first"][0] / 1e6, 3.0, "ms")
        row("open + mmap, later", "", values["open_later"][0] / 1e6, 0.3, "ms")
    if "resident" in figures:
        row("memory of the library", "resident beside the data, less a run without it", bench.library_kib / 1024, 4 + STAGING_KIB / 1024, "MiB")


def measure(bench, figures):
    file = os.path.join(bench.mount, "figures")
    if "persist" in figures:
        bench.run("persist", file + "-persist", bench.host, PORT, str(bench.replica["pid"]), env=FORCE_PMEM)
    if "page" in figures:
        bench.run("page", file + "-page", bench.host, PORT, str(bench.replica["pid"]))
    if "memory" in figures:
        bench.run("memory", file + "-memory", os.path.join(bench.primary["backing"], "figures-memory"))
    if "plain" in figures:
        bench.run("plain", file + "-plain", bench.host, PORT, str(bench.replica["pid"]), preload=False)
    if "open" in figures:
        bench.run("open", file + "-open")
    if "resident" in figures:
        bench.run("resident", file + "-resident", preload=False)
        without = bench.values["resident_kib"][0]
        bench.run("resident", file + "-resident2")
        bench.library_kib = bench.values["resident_kib"][0] - without


def main():
    figures = sys.argv[1:] or ["persist", "page", "memory", "plain", "open", "resident"]
    directory = tempfile.mkdtemp(prefix="pmb", dir="/dev/shm")
    bench = None
    try:
        bench = Bench(directory)
        measure(bench, figures)
        report(bench, figures)
    finally:
        if bench is not None:
            bench.end()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
