# SPDX-License-Identifier: BSD-3-Clause
"""Volumes and copies that come and go while programs run (docs/internals/volumes.md): nothing acknowledged is lost (P3), no sync waits for a copy that
has never been whole (P6), a copy counts only when it is equal (P5)."""

import copy
import os
import signal
import subprocess

from lib.cluster import ClusterTest, CommandFailed, main, wait


class VolumesTest(ClusterTest):
    def command(self, cluster, group, action, *words):
        return cluster.pmirror(group, action, "--sandbox", cluster.directory, *words, seconds=150)

    def create(self, cluster, name, *options, action="create"):
        """Also lets the library know where the volume is: as v0, under its own name."""
        self.command(cluster, "volume", action, name, *options)
        state = copy.deepcopy(cluster.volumes["v0"])
        state["volume"] = name
        for node in state["nodes"]:
            for place in ("backing", "mount"):
                node[place] = node[place].replace("/v0/", f"/{name}/")
        cluster.volumes[name] = state

    def replicas_of(self, cluster, volume):
        return {replica["node"]: replica["state"] for replica in cluster.status(volume)["replicas"]}

    def nodes_of(self, cluster, volume):
        return sorted(self.replicas_of(cluster, volume))

    def wait_in_sync(self, cluster, volume):
        def all_in_sync():
            try:
                return set(self.replicas_of(cluster, volume).values()) == {"in-sync"}
            except (CommandFailed, StopIteration):  # a daemon may be starting
                return False

        wait(all_in_sync, lambda: f"{volume} is in sync", 60)

    def load(self, cluster, volume, name="mapped"):
        return cluster.writer("mmap_writer", name, "--sync", "all", volume=volume)

    def assert_whole(self, cluster, volume, node, writer, name="mapped"):
        writer.kill()
        cluster.check("mmap_writer", node, name, writer.acknowledged(), volume=volume)
        wait(lambda: not cluster.differences("n1", node, volume), lambda: f"{node} is equal: {cluster.differences('n1', node, volume)}", 20)


class Copies(VolumesTest):
    def test_P3_P5_a_copy_is_added_under_load_counts_when_it_is_whole_and_survives_restarts(self):
        cluster = self.cluster(nodes=3, on_loss="suspend")
        self.create(cluster, "v1", "--nodes", "n1,n2")
        for i in range(20):
            with open(cluster.mounted(f"old{i}", "v1"), "wb") as file:
                file.write(os.urandom(50_000))
        writer = self.load(cluster, "v1")
        self.command(cluster, "replica", "add", "v1", "n3")
        self.assertEqual(self.nodes_of(cluster, "v1"), ["n2", "n3"])
        self.assertEqual(len(cluster.events("n1", "replica_filled", node="n3")), 1)
        wait(lambda: writer.acknowledged()[0] > 50, "the writer goes on")
        # It counts: without it no sync returns any more.
        cluster.kill("n3")
        wait(lambda: cluster.status("v1")["suspended_syncs"] > 0, "syncs wait for it")
        cluster.start("n3")
        self.wait_in_sync(cluster, "v1")
        self.assert_whole(cluster, "v1", "n3", writer)
        self.assertEqual(cluster.verify("v1"), [])
        # The primary's daemon, and then that of the new node, know of it after a restart.
        for node in ("n1", "n3"):
            cluster.stop(node)
            cluster.start(node)
            self.wait_in_sync(cluster, "v1")
            self.assertEqual(self.nodes_of(cluster, "v1"), ["n2", "n3"])

    def stop_in_the_middle_of_a_copy(self, cluster, volume, node):
        """SIGSTOP of a node that is being filled, and does not count yet."""
        for attempt in range(10):
            for i in range(64):
                with open(cluster.mounted(f"old{i}", volume), "wb") as file:
                    file.write(os.urandom(1 << 20))
            self.command(cluster, "replica", "add", volume, node, "--no-wait")
            cluster.signal(node, signal.SIGSTOP)
            wait(lambda: self.replicas_of(cluster, volume)[node] not in ("resyncing", "in-sync"), "it is seen that the node does not answer")
            if len(cluster.events("n1", "replica_filled", node=node)) == attempt:
                return
            cluster.signal(node, signal.SIGCONT)  # it was too quick
            self.command(cluster, "replica", "remove", volume, node)
        self.fail(f"{node} was filled before it could be stopped, ten times")

    def test_P6_no_sync_waits_for_a_copy_that_has_never_been_whole(self):
        cluster = self.cluster(nodes=3, on_loss="fail", deadline="2s")
        self.create(cluster, "v1", "--nodes", "n1,n2", "--on-loss", "fail", "--deadline", "2s")
        writer = self.load(cluster, "v1")
        self.stop_in_the_middle_of_a_copy(cluster, "v1", "n3")
        try:
            seen = writer.acknowledged()[0]
            wait(lambda: writer.acknowledged()[0] > seen + 200, "syncs succeed without the node that does not answer")
            # Killed in the middle: the next mount still fills it, and still waits for nobody.
            cluster.kill("n1")
            cluster.start("n1")
            cluster.wait_state("n2", "in-sync", volume="v1", seconds=60)
            again = cluster.writer("mmap_writer", "again", "--sync", "all", volume="v1")
            wait(lambda: again.acknowledged()[0] > 20, "syncs succeed after the restart, too")
        finally:
            cluster.signal("n3", signal.SIGCONT)
        self.wait_in_sync(cluster, "v1")
        again.kill()
        cluster.check("mmap_writer", "n3", "again", again.acknowledged(), volume="v1")
        self.assertEqual(cluster.verify("v1"), [])

    def test_P3_a_replica_is_removed_and_comes_back(self):
        cluster = self.cluster(nodes=3, on_loss="suspend")
        writer = self.load(cluster, "v0")
        self.command(cluster, "replica", "remove", "v0", "n3")
        self.assertEqual(self.nodes_of(cluster, "v0"), ["n2"])
        self.assertEqual(len(cluster.events("n3", "copy_dropped", volume="v0")), 1)
        seen = writer.acknowledged()[0]
        cluster.kill("n3")
        wait(lambda: writer.acknowledged()[0] > seen + 50, "nobody waits for it")
        with self.assertRaises(CommandFailed) as refused:
            self.command(cluster, "replica", "remove", "v0", "n2")
        self.assertIn("no other copy of volume v0 is in sync", str(refused.exception))
        cluster.start("n3")
        os.rename(cluster.mounted("mapped"), cluster.mounted("moved"))
        self.command(cluster, "replica", "add", "v0", "n3")
        writer.kill()
        cluster.check("mmap_writer", "n3", "moved", writer.acknowledged())
        self.assertEqual(cluster.verify(), [])
        # Once more, while all daemons go on.
        self.command(cluster, "replica", "remove", "v0", "n3")
        os.rename(cluster.mounted("moved"), cluster.mounted("again"))
        self.command(cluster, "replica", "add", "v0", "n3")
        self.assertEqual(cluster.verify(), [])

    def test_P3_a_blank_node_takes_the_place_of_a_dead_one(self):
        cluster = self.cluster(nodes=3, on_loss="proceed", deadline="500ms")
        self.create(cluster, "v1", "--nodes", "n1,n2", "--on-loss", "proceed", "--deadline", "500ms")
        writer = self.load(cluster, "v1")
        wait(lambda: writer.acknowledged()[0] > 20, "syncs")
        cluster.kill("n2")
        self.command(cluster, "replica", "replace", "v1", "n2", "n3")
        self.assertEqual(self.nodes_of(cluster, "v1"), ["n3"])
        self.assert_whole(cluster, "v1", "n3", writer)

    def test_P3_a_spare_is_drafted_when_a_replica_is_gone_for_too_long(self):
        cluster = self.cluster(nodes=3, on_loss="proceed", deadline="500ms")
        self.create(cluster, "v1", "--nodes", "n1,n2", "--spares", "n3", "--spare-after", "2s", "--on-loss", "proceed", "--deadline", "500ms")
        writer = self.load(cluster, "v1")
        wait(lambda: writer.acknowledged()[0] > 20, "syncs")
        cluster.kill("n2")
        wait(lambda: cluster.events("n1", "replica_replaced", node="n3", old="n2", reason='""'), "the spare took its place", 60)
        self.assertEqual(self.nodes_of(cluster, "v1"), ["n3"])
        cluster.start("n2")
        # The one that was gone is the spare now.
        cluster.kill("n3")
        wait(lambda: cluster.events("n1", "replica_replaced", node="n2", old="n3", reason='""'), "and back", 60)
        self.assert_whole(cluster, "v1", "n2", writer)

    def test_P9_what_cannot_be_is_refused_and_changes_nothing(self):
        cluster = self.cluster(nodes=3)
        self.create(cluster, "v1", "--nodes", "n1,n2")
        os.makedirs(cluster.backing("n3", "", "v1"))
        with open(cluster.backing("n3", "stranger", "v1"), "w", encoding="utf-8"):
            pass
        for words, sentence in ((("add", "v1", "n2"), "has a copy on n2 already"), (("add", "v1", "n9"), "no node 'n9'"),
                                (("add", "v9", "n3"), "no volume 'v9'"), (("remove", "v1", "n3"), "has no replica on n3"),
                                (("add", "v1", "n3"), "is not empty")):
            with self.subTest(words=words), self.assertRaises(CommandFailed) as refused:
                self.command(cluster, "replica", *words)
            self.assertIn(sentence, str(refused.exception))
        self.assertEqual(self.nodes_of(cluster, "v1"), ["n2"])
        for words, sentence in ((("create", "v1", "--nodes", "n1,n2"), "names a second [[volume]]"), (("adopt", "v2"), "there is nothing to adopt"),
                                (("create", "v2", "--nodes", "n1,n9"), "no node 'n9'"), (("create", "v2", "--rpo", "soon"), "rpo")):
            with self.subTest(words=words), self.assertRaises(CommandFailed) as refused:
                self.command(cluster, "volume", *words)
            self.assertIn(sentence, str(refused.exception))


class Volumes(VolumesTest):
    def test_P9_a_volume_that_a_node_cannot_hold_is_not_made_and_leaves_nothing_in_the_way(self):
        cluster = self.cluster(nodes=3)
        cluster.kill("n3")
        with self.assertRaises(CommandFailed) as refused:
            self.command(cluster, "volume", "create", "v1", "--nodes", "n1,n2,n3")
        self.assertIn("n3", str(refused.exception))
        self.assertNotIn("v1", cluster.pmirror("status", "--sandbox", cluster.directory))
        cluster.start("n3")
        self.create(cluster, "v1", "--nodes", "n1,n2,n3")
        self.wait_in_sync(cluster, "v1")

    def test_P3_existing_data_is_adopted_and_copied(self):
        cluster = self.cluster(nodes=2)
        backing = cluster.backing("n1").replace("/v0/", "/v7/")
        os.makedirs(os.path.join(backing, "folder"))
        content = {f"folder/f{i}": os.urandom(70_000) for i in range(8)}
        for name, data in content.items():
            with open(os.path.join(backing, name), "wb") as file:
                file.write(data)
        self.create(cluster, "v7", "--nodes", "n1,n2", action="adopt")
        self.wait_in_sync(cluster, "v7")
        for name, data in content.items():
            with open(cluster.mounted(name, "v7"), "rb") as file:
                self.assertEqual(file.read(), data)
            with open(cluster.backing("n2", name, "v7"), "rb") as file:
                self.assertEqual(file.read(), data)
        writer = self.load(cluster, "v7")
        wait(lambda: writer.acknowledged()[0] > 20, "programs work on it")
        self.assert_whole(cluster, "v7", "n2", writer)
        self.assertEqual(cluster.verify("v7"), [])

    def test_a_moved_backing_directory_is_recognised(self):
        cluster = self.cluster(nodes=2)
        with open(cluster.mounted("file"), "w", encoding="utf-8") as file:
            file.write("kept")
        cluster.stop("n1")
        old = cluster.backing("n1").rstrip("/")
        moved = old + "-moved"
        os.rename(old, moved)
        config = os.path.join(cluster.directory, "n1", "pmirrord.toml")
        daemon = os.path.join(cluster.build, "bin", "pmirrord")
        namespace = cluster.node("n1").netns
        prefix = ["ip", "netns", "exec", namespace] if namespace else []
        started = subprocess.run([*prefix, daemon, "--config", config], capture_output=True, text=True, timeout=60)
        self.assertEqual(started.returncode, 1)
        self.assertIn(f"{moved} is a copy of this volume", started.stderr)
        with open(config, encoding="utf-8") as file:
            text = file.read()
        with open(config, "w", encoding="utf-8") as file:
            file.write(text.replace(f'"{old}"', f'"{moved}"'))
        cluster.start("n1")
        cluster.wait_in_sync(seconds=60)
        with open(cluster.mounted("file"), encoding="utf-8") as file:
            self.assertEqual(file.read(), "kept")
        self.assertEqual(cluster.events("n2", "resync_began"), [])


if __name__ == "__main__":
    main()
