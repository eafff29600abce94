# SPDX-License-Identifier: BSD-3-Clause
"""`pmirror events`: one fault is one event on each side that meets it, however many programs meet it, and none is lost over restarts."""

import datetime
import errno
import json
import os
import signal
import subprocess
import threading
import time

from lib.cluster import ClusterTest, CommandFailed, main, wait

DEADLINE = "600ms"
PARTITION_SECONDS = 3
WRITERS = 8


class Follower:
    """`pmirror events --follow --json`; its lines are read by a thread."""

    def __init__(self, cluster, *options):
        self.events = []
        self.process = subprocess.Popen([os.path.join(cluster.build, "bin", "pmirror"), "events", "--sandbox", cluster.directory,
                                         "--follow", "--json", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.events.append(json.loads(line))

    def seen(self, name, node=None):
        return [event for event in list(self.events) if event["event"] == name and node in (None, event["node"])]

    def end(self, number=signal.SIGINT):
        """Interrupts it; its exit status."""
        self.process.send_signal(number)
        try:
            status = self.process.wait(10)
        finally:
            self.process.kill()
        self._reader.join(10)
        self.process.stdout.close()
        self.process.stderr.close()
        return status


class EventsTest(ClusterTest):
    def events(self, cluster, *options):
        return [json.loads(line) for line in cluster.pmirror("events", "--sandbox", cluster.directory, "--json", *options).splitlines()]

    def told(self, cluster, node, name, **fields):
        return [event for event in self.events(cluster, "--node", node)
                if event["event"] == name and all(event["fields"].get(key) == value for key, value in fields.items())]

    def follow(self, cluster, *options):
        follower = Follower(cluster, *options)
        self.addCleanup(lambda: follower.process.poll() is not None or follower.end())
        return follower

    def refused(self, cluster, *words):
        with self.assertRaises(CommandFailed) as failed:
            cluster.pmirror("events", *words)
        return failed.exception


class Faults(EventsTest):
    def counts(self, cluster, node):
        """How often each event that is more than life was told since the node was ready."""
        counts = {}
        for event in self.events(cluster, "--node", node):
            name = event["event"] + ("=" + event["fields"]["state"] if event["event"] == "replica_state" else "")
            counts[name] = counts.get(name, 0) + 1
        return counts

    def test_a_partition_under_load_is_one_loss_and_one_return_on_each_side(self):
        cluster = self.cluster(on_loss="suspend", deadline=DEADLINE, suspend="10m")
        primary, replica = cluster.primary, cluster.replica
        writers = [cluster.writer("mmap_writer", f"mapped{number}", "--sync", "all") for number in range(WRITERS)]
        writers += [cluster.writer("raw_static", f"plain{number}", preload=False) for number in range(WRITERS)]
        for writer in writers:
            writer.wait_for(5)
        wait(lambda: self.told(cluster, replica, "peer_reachable"), "both are up")
        before = {node: self.counts(cluster, node) for node in (primary, replica)}
        cluster.partition(primary, replica)
        # Sleep because: the length of the partition is what is tested.
        time.sleep(PARTITION_SECONDS)
        wait(lambda: cluster.status()["suspended_syncs"] == len(writers), lambda: f"all wait: {cluster.status()}")
        wait(lambda: all(self.told(cluster, node, "peer_unreachable") for node in (primary, replica)), "both control paths are lost")
        cluster.heal(primary, replica)
        cluster.wait_in_sync()
        for writer in writers:
            writer.wait_for(writer.acknowledged()[0] + 5)
        wait(lambda: self.told(cluster, primary, "sync_resumed"), "the syncs went on")
        wait(lambda: self.told(cluster, replica, "primary_back"), "the primary is back")
        wait(lambda: all(len(self.told(cluster, node, "peer_reachable")) == before[node].get("peer_reachable", 0) + 1
                         for node in (primary, replica)), "both control paths are back")

        def news(node):
            counts = self.counts(cluster, node)
            return {name: count - before[node].get(name, 0) for name, count in counts.items() if count != before[node].get(name, 0)}

        self.assertEqual(news(primary), {"replica_state=disconnected": 1, "replica_state=in-sync": 1, "sync_suspended": 1, "sync_resumed": 1,
                                         "peer_unreachable": 1, "peer_reachable": 1})
        self.assertEqual(news(replica), {"primary_lost": 1, "primary_back": 1, "peer_unreachable": 1, "peer_reachable": 1})
        resumed = self.told(cluster, primary, "sync_resumed")[0]["fields"]
        self.assertGreaterEqual(int(resumed["syncs"]), len(writers))
        self.assertGreater(int(resumed["lasted_ms"]), 1000)
        self.assertGreater(int(self.told(cluster, primary, "replica_state", state="in-sync")[-1]["fields"]["lasted_ms"]), 1000)

    def test_a_loss_under_fail_is_one_event_and_the_errors_of_programs_are_one(self):
        cluster = self.cluster(on_loss="fail", deadline=DEADLINE)
        mapped = cluster.stepper("mapped", mapped=True)
        plain = cluster.stepper("plain", preload=False)
        self.assertEqual([mapped.do("store", 0, "x"), plain.do("write", 0, "x")], [0, 0])
        cluster.kill(cluster.replica)
        for _ in range(3):
            self.assertEqual([mapped.do("msync", 0), plain.do("fsync")], [errno.EIO, errno.EIO])
        wait(lambda: self.told(cluster, cluster.primary, "replica_state", state="disconnected"), "the loss is told")
        self.assertEqual(len(self.told(cluster, cluster.primary, "replica_state", state="disconnected")), 1)
        self.assertEqual(len(self.told(cluster, cluster.primary, "sync_failed")), 1)
        cluster.start(cluster.replica)
        cluster.wait_in_sync()
        over = wait(lambda: self.told(cluster, cluster.primary, "condition_over", condition="sync_failed"), "its end is told")
        self.assertGreaterEqual(int(over[0]["fields"]["count"]), 3)


class Command(EventsTest):
    def test_events_of_all_nodes_come_in_order_and_are_chosen_by_options(self):
        cluster = self.cluster(volumes=2, netns=False)
        events = self.events(cluster)
        self.assertEqual({event["node"] for event in events}, {"n1", "n2"})
        self.assertEqual([event["time"] for event in events], sorted(event["time"] for event in events))
        datetime.datetime.fromisoformat(events[0]["time"])
        for node in ("n1", "n2"):
            own = [event["seq"] for event in events if event["node"] == node]
            self.assertEqual(own, list(range(1, len(own) + 1)))
            self.assertEqual([event for event in events if event["node"] == node], self.events(cluster, "--node", node))
            self.assertEqual(self.events(cluster, "--node", node, "--since", str(own[-2])), self.events(cluster, "--node", node)[-1:])
        of_volume = self.events(cluster, "--volume", "v1")
        self.assertEqual(of_volume, [event for event in events if event["fields"].get("volume") == "v1"])
        self.assertTrue(of_volume)
        lines = cluster.pmirror("events", "--sandbox", cluster.directory).splitlines()
        self.assertEqual(len(lines), len(events))
        self.assertRegex(lines[0], r"^\S+Z n[12] info starting node=n[12] version=")
        self.assertEqual(cluster.pmirror("events", "--sandbox", cluster.directory, "--volume", "v9"), "")

    def test_P9_wrong_words_are_refused(self):
        cluster = self.cluster(netns=False)
        for words, status, sentence in ((("--sandbox", cluster.directory, "--node", "n9"), 1, "there are n1, n2"),
                                        (("--sandbox", cluster.directory, "--since", "3"), 1, "--node"),
                                        (("--sandbox", cluster.directory, "--since", "x"), 2, "since"),
                                        (("--sandbox", cluster.directory + "9"), 1, "there is no sandbox"),
                                        (("--colour",), 2, "colour")):
            failure = self.refused(cluster, *words)
            self.assertEqual((failure.status, sentence in failure.errors), (status, True), failure)
        self.assertIn("--follow", cluster.pmirror("events", "--help"))
        cluster.kill("n2")
        self.assertEqual({event["node"] for event in self.events(cluster)}, {"n1"})
        cluster.kill("n1")
        self.assertEqual(self.refused(cluster, "--sandbox", cluster.directory).status, 1)


class Follow(EventsTest):
    def assert_each_once(self, events, node):
        numbers = [event["seq"] for event in events if event["node"] == node]
        self.assertEqual(numbers, sorted(set(numbers)))

    def test_follow_goes_on_over_restarts_of_a_daemon_and_loses_and_repeats_nothing(self):
        cluster = self.cluster(netns=False, deadline="20s")
        follower = self.follow(cluster)
        wait(lambda: len(follower.seen("ready")) == 2, "what there is")
        for restart, end in enumerate((cluster.stop, cluster.kill, cluster.stop), 1):
            end(cluster.replica)
            cluster.start(cluster.replica)
            wait(lambda count=restart: len(follower.seen("ready", cluster.replica)) == count + 1, "the daemon is back")
        wait(lambda: len(follower.seen("stopped", cluster.replica)) == 2, "clean ends are told, after the restart")
        self.assertEqual(follower.end(), 0)
        self.assert_each_once(follower.events, cluster.replica)
        self.assert_each_once(follower.events, cluster.primary)
        kept = [event for event in self.events(cluster) if event["node"] == cluster.replica]
        followed = [event for event in follower.events if event["node"] == cluster.replica]
        self.assertEqual(followed, kept[:len(followed)])

    def test_follow_tells_at_once_and_ends_with_0_when_interrupted(self):
        cluster = self.cluster(netns=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            follower = self.follow(cluster, "--volume", "v0")
            wait(lambda one=follower: one.seen("mounted"), "what there is")
            self.assertEqual(follower.end(number), 0)
            self.assertEqual({event["fields"]["volume"] for event in follower.events}, {"v0"})

    def test_P6_a_daemon_with_followers_ends_in_time(self):
        cluster = self.cluster(netns=False)
        followers = [self.follow(cluster) for _ in range(5)]
        for follower in followers:
            wait(lambda one=follower: one.seen("ready"), "it follows")
        cluster.stop(cluster.replica, seconds=10)
        cluster.start(cluster.replica)
        for follower in followers:
            wait(lambda one=follower: len(one.seen("ready", cluster.replica)) == 2, "it follows on")


class Kept(EventsTest):
    def journal(self, cluster, node):
        return os.path.join(cluster.directory, node, "state", "events.jsonl")

    def test_a_damaged_journal_is_told_and_the_rest_is_kept(self):
        cluster = self.cluster(netns=False, deadline="20s")
        before = self.events(cluster, "--node", cluster.replica)
        cluster.kill(cluster.replica)
        with open(self.journal(cluster, cluster.replica), "r+b") as file:
            file.seek(10)
            file.write(b"?")
            file.seek(0, os.SEEK_END)
            file.write(b'{"seq":')
        cluster.start(cluster.replica)
        events = self.events(cluster, "--node", cluster.replica)
        self.assertEqual(events[:len(before) - 1], before[1:])
        self.assertEqual([event["fields"]["lines"] for event in events if event["event"] == "journal_damaged"], ["2"])
        cluster.stop(cluster.replica)
        cluster.start(cluster.replica)
        self.assertEqual(len(self.told(cluster, cluster.replica, "journal_damaged")), 1)

    def test_the_file_holds_the_same_events_one_a_line(self):
        cluster = self.cluster(netns=False)
        kept = self.events(cluster, "--node", cluster.primary)
        wait(lambda: self.lines(cluster)[:len(kept)] == kept, "the file holds them")

    def lines(self, cluster):
        with open(self.journal(cluster, cluster.primary), encoding="utf-8") as file:
            events = [json.loads(line) for line in file]
        for event in events:
            self.assertRegex(event.pop("crc"), "^[0-9a-f]{8}$")
        return events


if __name__ == "__main__":
    main()
