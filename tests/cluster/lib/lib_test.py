# SPDX-License-Identifier: BSD-3-Clause
"""The library of the cluster tests, without any daemon: the comparison of trees sees each kind of difference, and a cluster is driven and
cleaned up, with a stand-in for the command `pmirror`."""

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from cluster import Cluster, ClusterTest, CommandFailed, parse_states, wait  # noqa: E402
from leftovers import is_alive  # noqa: E402
from trees import differences  # noqa: E402

STAND_IN = '''#!/usr/bin/env python3
import json, os, shutil, signal, subprocess, sys
words = sys.argv[1:]
state = lambda directory: os.path.join(directory, "state.json")
if words[:2] == ["sandbox", "up"]:
    directory = words[2]
    nodes = []
    for name in ("n1", "n2"):
        for kind in ("backing", "mount"):
            os.makedirs(os.path.join(directory, name, kind))
        daemon = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()", directory], stdin=subprocess.DEVNULL,
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        nodes.append({"name": name, "pid": daemon.pid, "control": "c", "backing": os.path.join(directory, name, "backing"),
                      "mount": os.path.join(directory, "n1", "mount") if name == "n1" else None, "netns": ""})
    text = json.dumps({"volume": "v0", "primary": "n1", "nodes": nodes})
    open(state(directory), "w").write(text)
    print(text)
elif words[:2] == ["sandbox", "down"]:
    if not os.path.exists(os.path.join(words[2], "forgetful")):
        for node in json.load(open(state(words[2])))["nodes"]:
            os.kill(node["pid"], signal.SIGKILL)
        shutil.rmtree(words[2])
elif words[0] == "status":
    count = os.path.join(words[2], "asked")
    asked = len(open(count).read()) if os.path.exists(count) else 0
    open(count, "a").write("x")
    print(json.dumps({"volumes": [{"name": "v0", "replicas": [{"node": "n2", "state": "in-sync" if asked > 2 else "disconnected"}]}]}))
elif words[0] == "run":
    command = words[words.index("--") + 1:]
    os.execvp(command[0], command)
elif words[0] == "verify":
    sys.stderr.write("file: data\\n")
    sys.exit(1)
else:
    sys.stderr.write("no such command\\n")
    sys.exit(2)
'''


class TreesTest(unittest.TestCase):
    """differences() of two small trees that are equal but for one thing."""

    def setUp(self):
        self.root = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.root)
        self.left, self.right = os.path.join(self.root, "left"), os.path.join(self.root, "right")
        for side in (self.left, self.right):
            os.makedirs(os.path.join(side, "folder/below"))
            with open(os.path.join(side, "folder/file"), "wb") as file:
                file.write(b"a" * 3_000_000)
            os.symlink("file", os.path.join(side, "folder/link"))
            os.link(os.path.join(side, "folder/file"), os.path.join(side, "second name"))
            os.mkfifo(os.path.join(side, "fifo"))
        self.file, self.one = os.path.join(self.right, "folder/file"), os.path.join(self.right, "folder")

    def assert_differs(self, text):
        found = differences(self.left, self.right)
        self.assertTrue(any(text in line for line in found), f"{text} is not in {found}")

    def test_equal_trees_have_no_difference(self):
        self.assertEqual(differences(self.left, self.right), [])

    def test_own_folder_and_own_xattrs_are_ignored(self):
        os.mkdir(os.path.join(self.left, ".pmirror"))
        try:
            os.setxattr(self.file, "trusted.pmirror.id", b"1")
        except OSError as error:
            self.skipTest(f"no trusted xattrs here: {error}")
        self.assertEqual(differences(self.left, self.right), [])

    def test_own_folder_counts_below_the_root(self):
        os.mkdir(os.path.join(self.left, "folder/.pmirror"))
        self.assert_differs("folder/.pmirror: only in")

    def test_missing_name_is_found(self):
        os.rmdir(os.path.join(self.right, "folder/below"))
        self.assert_differs("folder/below: only in")

    def test_other_type_is_found(self):
        os.rmdir(os.path.join(self.right, "folder/below"))
        open(os.path.join(self.right, "folder/below"), "wb").close()
        self.assert_differs("folder/below: type")

    def test_other_size_is_found(self):
        os.truncate(self.file, 2_999_999)
        self.assert_differs("folder/file: size 3000000 / 2999999")

    def test_other_byte_is_found(self):
        with open(self.file, "r+b") as file:
            file.seek(2_500_000)
            file.write(b"b")
        self.assert_differs("folder/file: data from offset 2500000")

    def test_other_mode_is_found(self):
        os.chmod(self.one, stat.S_IMODE(os.stat(self.one).st_mode) ^ 0o001)
        self.assert_differs("folder: mode")

    def test_other_mode_of_the_root_is_found(self):
        os.chmod(self.right, 0o700 if stat.S_IMODE(os.stat(self.left).st_mode) != 0o700 else 0o750)
        self.assert_differs(".: mode")

    @unittest.skipIf(os.getuid() != 0, "only root can give files away")
    def test_other_owner_is_found(self):
        os.chown(self.file, 12, 34)
        self.assert_differs("folder/file: owner")

    @unittest.skipIf(os.getuid() != 0, "only root can make device nodes")
    def test_other_device_is_found(self):
        os.mknod(os.path.join(self.left, "node"), 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        os.mknod(os.path.join(self.right, "node"), 0o600 | stat.S_IFCHR, os.makedev(1, 5))
        self.assert_differs("node: device")

    def test_other_target_is_found(self):
        os.remove(os.path.join(self.right, "folder/link"))
        os.symlink("elsewhere", os.path.join(self.right, "folder/link"))
        self.assert_differs("folder/link: target")

    def test_other_xattr_is_found(self):
        try:
            os.setxattr(self.file, "user.a", b"1")
        except OSError as error:
            self.skipTest(f"no user xattrs here: {error}")
        self.assert_differs("folder/file: xattrs")

    def test_second_name_that_is_a_copy_is_found(self):
        os.remove(os.path.join(self.right, "second name"))
        shutil.copy2(self.file, os.path.join(self.right, "second name"))
        self.assert_differs("one object on one side only")

    def test_socket_is_compared_by_type(self):
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(os.path.join(self.left, "s"))
        os.mkfifo(os.path.join(self.right, "s"))
        self.assert_differs("s: type")


class DriverTest(ClusterTest):
    """Cluster against the stand-in command."""

    def setUp(self):
        self.build = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.build)
        os.mkdir(os.path.join(self.build, "bin"))
        with open(os.path.join(self.build, "bin/pmirror"), "w", encoding="utf-8") as file:
            file.write(STAND_IN)
        os.chmod(file.name, 0o755)

    def test_knows_who_is_who_once_it_is_up(self):
        cluster = self.cluster(build=self.build)
        self.assertEqual((cluster.primary, cluster.replica), ("n1", "n2"))
        self.assertEqual(cluster.mounted("file"), os.path.join(cluster.directory, "n1/mount/file"))
        self.assertEqual(cluster.backing("n2", "a"), os.path.join(cluster.directory, "n2/backing/a"))
        self.assertEqual(cluster.node("n2").mount, "")

    def test_waits_for_a_state_until_status_shows_it(self):
        cluster = self.cluster(build=self.build)
        self.assertEqual(cluster.replica_status("n2")["state"], "disconnected")
        cluster.wait_in_sync()

    def test_waiting_ends_at_its_deadline_and_says_what_was_seen(self):
        cluster = self.cluster(build=self.build)
        with self.assertRaisesRegex(AssertionError, "n2 lagging.*in-sync"):
            cluster.wait_state("n2", "lagging", seconds=1)

    def test_failing_command_raises_with_its_words(self):
        cluster = self.cluster(build=self.build)
        with self.assertRaisesRegex(CommandFailed, "exit 2: no such command"):
            cluster.kill("n1")
        self.assertEqual(cluster.verify(), ["file: data"])

    def test_runs_a_program_through_the_command(self):
        cluster = self.cluster(build=self.build)
        self.assertEqual(cluster.run("printf", "%s", "words").stdout, "words")

    def test_compares_the_backing_trees(self):
        cluster = self.cluster(build=self.build)
        open(cluster.backing("n1", "file"), "wb").close()
        self.assertIn("file: only in", cluster.differences("n1", "n2")[0])

    def test_what_down_leaves_behind_is_ended_and_reported(self):
        cluster = Cluster(build=self.build)
        cluster.up()
        pids = [cluster.node(name).pid for name in ("n1", "n2")]
        open(os.path.join(cluster.directory, "forgetful"), "wb").close()
        mounted = os.getuid() == 0 and subprocess.run(
            ["mount", "-t", "tmpfs", "none", cluster.backing("n1")], capture_output=True, check=False).returncode == 0
        left = cluster.down()
        self.assertEqual([any(f"process {pid} " in text for text in left) for pid in pids], [True, True])
        self.assertEqual(any("mount " in text for text in left), mounted)
        self.assertFalse(os.path.exists(cluster.scratch))
        for pid in pids:
            wait(lambda gone=pid: not is_alive(gone), f"end of {pid}")

    def test_clean_down_reports_nothing(self):
        cluster = Cluster(build=self.build)
        cluster.up()
        self.assertEqual(cluster.down(), [])
        self.assertEqual(cluster.down(), [])


class StatesTest(unittest.TestCase):
    """parse_states() takes the forms in which one or more volumes may be printed."""

    def test_reads_one_object_several_objects_and_a_list(self):
        one, other = {"volume": "v0"}, {"volume": "v1"}
        for text in (json.dumps(one) + json.dumps(other, indent=1), f"{json.dumps(one)}\n{json.dumps(other)}\n",
                     json.dumps([one, other])):
            self.assertEqual(parse_states(text), [one, other])

    def test_reads_the_volumes_of_one_object(self):
        one, other = {"volume": "v0"}, {"volume": "v1"}
        self.assertEqual(parse_states(json.dumps({**one, "volumes": [one, other]})), [one, other])


if __name__ == "__main__":
    unittest.main(verbosity=2)
