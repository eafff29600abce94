// SPDX-License-Identifier: BSD-3-Clause
// Finding the daemon's socket in the list of mounts.
#include "interpose/mount_info.h"

#include <gtest/gtest.h>

#include <string>

namespace pmirror::interpose {
namespace {

class MountInfo : public ::testing::Test {
 protected:
  bool Find(const std::string& text) {
    return FindSocketInMountInfo(text.c_str(), path_, sizeof(path_), several_);
  }
  char path_[64] = {};
  bool several_ = false;
};

constexpr char kRoot[] = "24 1 254:0 / / rw,relatime - ext4 /dev/root rw\n";

TEST_F(MountInfo, OtherMountsNameNothing) {
  EXPECT_FALSE(Find(kRoot));
  EXPECT_FALSE(Find(""));
  EXPECT_FALSE(Find("30 24 0:44 / /mnt rw - fuse.sshfs pmirror:/run/x rw\n"));
}

TEST_F(MountInfo, SourceOfThePmirrorMountIsTheSocket) {
  ASSERT_TRUE(
      Find(std::string(kRoot) + "31 24 0:45 / /v0 rw shared:5 - fuse.pmirror pmirror:/run/n1.sock rw\n"));
  EXPECT_STREQ(path_, "/run/n1.sock");
  EXPECT_FALSE(several_);
}

TEST_F(MountInfo, EscapedBlanksAreUndone) {
  ASSERT_TRUE(Find("31 24 0:45 / /v0 rw - fuse.pmirror pmirror:/run/a\\040b\\134c rw\n"));
  EXPECT_STREQ(path_, "/run/a b\\c");
}

TEST_F(MountInfo, SecondDaemonIsNoticedAndTheFirstChosen) {
  ASSERT_TRUE(
      Find("31 24 0:45 / /v0 rw - fuse.pmirror pmirror:/run/one rw\n"
           "32 24 0:46 / /v1 rw - fuse.pmirror pmirror:/run/one rw\n"));
  EXPECT_FALSE(several_);
  ASSERT_TRUE(
      Find("31 24 0:45 / /v0 rw - fuse.pmirror pmirror:/run/one rw\n"
           "32 24 0:46 / /v1 rw - fuse.pmirror pmirror:/run/two rw\n"));
  EXPECT_TRUE(several_);
  EXPECT_STREQ(path_, "/run/one");
}

TEST_F(MountInfo, PathThatDoesNotFitIsRefused) {
  EXPECT_FALSE(Find("31 24 0:45 / /v0 rw - fuse.pmirror pmirror:/" + std::string(100, 'x') + " rw\n"));
}

}  // namespace
}  // namespace pmirror::interpose
