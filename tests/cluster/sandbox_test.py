# SPDX-License-Identifier: BSD-3-Clause
"""The test bed itself, and the daemon's life in it: up, kill, start, cut, mend, down, and what goes wrong in between (P9)."""

import json
import os
import signal
import subprocess

from lib.cluster import Cluster, ClusterTest, CommandFailed, main, wait
from lib.leftovers import is_alive


class SandboxTest(ClusterTest):
    def refused(self, cluster, *words):
        """The command is refused with exit 1; what it says."""
        with self.assertRaises(CommandFailed) as failed:
            cluster.pmirror(*words)
        self.assertEqual(failed.exception.status, 1, failed.exception)
        return failed.exception.errors

    def unmade(self, **options):
        cluster = Cluster(**options)
        self.addCleanup(self._take_down, cluster)
        return cluster


class Life(SandboxTest):
    def test_primaries_of_two_volumes_cross_and_both_are_in_sync(self):
        cluster = self.cluster(volumes=2)
        self.assertEqual([cluster.volumes[name]["primary"] for name in ("v0", "v1")], ["n1", "n2"])
        self.assertEqual(cluster.replica_status("n2", "v0")["state"], "in-sync")
        self.assertEqual(cluster.replica_status("n1", "v1")["state"], "in-sync")

    def test_up_returns_although_its_output_is_a_pipe_and_daemons_go_on(self):
        cluster = self.cluster(netns=False)  # the library reads the output to its end
        for node in cluster.volumes["v0"]["nodes"]:
            self.assertTrue(is_alive(node["pid"]))

    def test_down_twice_and_down_of_nothing_succeed(self):
        cluster = self.cluster()
        cluster.pmirror("sandbox", "down", cluster.directory)
        cluster.pmirror("sandbox", "down", cluster.directory)
        self.assertFalse(os.path.exists(cluster.directory))
        cluster.up()

    def test_down_removes_what_an_up_that_was_killed_had_made(self):
        cluster = self.unmade(nodes=3)
        up = subprocess.Popen([os.path.join(cluster.build, "bin", "pmirror"), "sandbox", "up", cluster.directory, "--nodes", "3", "--netns"],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait(lambda: os.path.exists(os.path.join(cluster.directory, "n1", "pmirrord.log")), "the first daemon's log")
        up.send_signal(signal.SIGKILL)
        up.wait()
        cluster.pmirror("sandbox", "down", cluster.directory)

    def test_a_second_up_in_the_same_directory_is_refused_and_harms_nothing(self):
        cluster = self.cluster()
        self.assertIn("sandbox down", self.refused(cluster, "sandbox", "up", cluster.directory))
        self.assertEqual(cluster.replica_status("n2")["state"], "in-sync")

    def test_what_this_version_lacks_is_refused_and_leaves_nothing(self):
        cluster = self.unmade()
        for words, sentence in ((("--rpo", "soon"), "--rpo soon"),
                                (("--arbiter", "etcd"), "use manual"), (("--deadline", "soon"), "volume.deadline: 'soon' is no duration")):
            self.assertIn(sentence, self.refused(cluster, "sandbox", "up", cluster.directory, *words))
            self.assertFalse(os.path.exists(cluster.directory), words)


class Nodes(SandboxTest):
    def test_kill_ends_the_daemon_and_what_runs_on_its_node_and_nothing_else(self):
        for netns in (True, False):
            with self.subTest(netns=netns):
                cluster = self.cluster(netns=netns)
                programs = {node: subprocess.Popen(cluster.run_command("sleep", "1000")[:-3] + ["--node", node, "--", "sleep", "1000"])
                            for node in ("n1", "n2")}
                daemon = cluster.node("n2").pid
                wait(lambda: os.readlink(f"/proc/{programs['n2'].pid}/exe").endswith("/sleep"), "the program runs")
                cluster.kill("n2")
                self.assertEqual(programs["n2"].wait(10), -signal.SIGKILL)
                self.assertFalse(is_alive(daemon))
                self.assertIsNone(programs["n1"].poll())
                programs["n1"].kill()
                programs["n1"].wait()

    def test_a_replica_that_was_killed_is_told_as_lost_and_starts_again(self):
        cluster = self.cluster()
        cluster.kill("n2")
        cluster.kill("n2")
        cluster.wait_state("n2", "disconnected", "stale", "failed")
        cluster.start("n2")
        self.assertIn("running already", self.refused(cluster, "sandbox", "start", cluster.directory, "n2"))

    def test_a_node_that_is_not_running_takes_no_program(self):
        cluster = self.cluster()
        cluster.kill("n1")
        run = cluster.run("true")
        self.assertEqual(run.returncode, 1)
        self.assertIn("sandbox start", run.stderr)

    def test_names_that_are_none_are_refused_with_those_that_are(self):
        cluster = self.cluster()
        self.assertIn("n1, n2", self.refused(cluster, "sandbox", "kill", cluster.directory, "n9"))
        self.assertIn("same node", self.refused(cluster, "sandbox", "partition", cluster.directory, "n1", "n1"))
        self.assertIn("there are v0", self.refused(cluster, "verify", "--sandbox", cluster.directory, "v9"))

    def test_a_second_daemon_on_one_state_directory_is_refused(self):
        cluster = self.cluster(netns=False)
        config = os.path.join(cluster.directory, "n2", "pmirrord.toml")
        second = subprocess.run([os.path.join(cluster.build, "bin", "pmirrord"), "--config", config], capture_output=True, text=True,
                                timeout=30, check=False)
        self.assertEqual(second.returncode, 1)
        self.assertIn(f"pid {cluster.node('n2').pid}", second.stderr)
        self.assertEqual(cluster.replica_status("n2")["state"], "in-sync")

    def test_a_dead_mount_is_detached_by_the_next_daemon(self):
        cluster = self.cluster(netns=False)
        pid = cluster.node("n1").pid
        os.kill(pid, signal.SIGKILL)  # not `sandbox kill`, which detaches the mount itself
        wait(lambda: not is_alive(pid), "the daemon is gone")
        with self.assertRaises(OSError):
            os.listdir(cluster.node("n1").mount)
        cluster.start("n1")
        os.listdir(cluster.node("n1").mount)


class Network(SandboxTest):
    def ping(self, cluster, node):
        return json.loads(cluster.pmirror("ping", node, "--sandbox", cluster.directory, "--json"))

    def test_ping_tells_the_round_trip_of_each_path(self):
        answer = self.ping(self.cluster(), "n2")
        self.assertEqual(answer["volume"], "v0")
        for path in ("control_ns", "data_ns", "durable_ns"):
            self.assertGreater(answer[path], 0, path)

    def test_a_cut_is_seen_and_mended_by_both_kinds_of_network(self):
        for netns in (True, False):
            with self.subTest(netns=netns):
                cluster = self.cluster(netns=netns, nodes=3)
                cluster.partition("n1", "n2")
                cluster.partition("n1", "n2")
                self.refused(cluster, "ping", "n2", "--sandbox", cluster.directory)
                self.assertGreater(self.ping(cluster, "n3")["control_ns"], 0)
                cluster.heal("n1", "n2")
                cluster.heal("n1", "n2")
                wait(lambda: self.reachable(cluster), "n2 answers again")

    def reachable(self, cluster):
        try:
            return self.ping(cluster, "n2")["control_ns"] > 0
        except CommandFailed:
            return False


if __name__ == "__main__":
    main()
