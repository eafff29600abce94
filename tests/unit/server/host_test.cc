// SPDX-License-Identifier: BSD-3-Clause
// The state directory's lock, the kernel's mount table, and directories that cannot be used.
#include "server/host.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

namespace pmirror::server {
namespace {

using ::testing::HasSubstr;

class StateDirectoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (std::filesystem::temp_directory_path() / "pmirror-state-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    directory_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::filesystem::path directory_;
};

TEST_F(StateDirectoryTest, IsMadeForTheOwnerAlone) {
  const std::filesystem::path fresh = directory_ / "a" / "state";
  ASSERT_TRUE(LockStateDirectory(fresh).ok());
  struct stat attributes {};
  ASSERT_EQ(::stat(fresh.c_str(), &attributes), 0);
  EXPECT_EQ(attributes.st_mode & 0777, 0700u);
}

TEST_F(StateDirectoryTest, P9_ASecondDaemonIsRefusedAndToldWhoHoldsIt) {
  absl::StatusOr<UniqueFd> first = LockStateDirectory(directory_);
  ASSERT_TRUE(first.ok()) << first.status();
  const absl::Status second = LockStateDirectory(directory_).status();
  EXPECT_EQ(second.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(second.message()), HasSubstr("pid " + std::to_string(::getpid())));
  first->Reset();
  EXPECT_TRUE(LockStateDirectory(directory_).ok());
}

TEST_F(StateDirectoryTest, P9_AFileInPlaceOfTheDirectoryIsNamed) {
  std::ofstream(directory_ / "file") << "x";
  EXPECT_THAT(std::string(LockStateDirectory(directory_ / "file").status().message()), HasSubstr("file"));
  EXPECT_EQ(CheckDirectory(directory_ / "file", "mount point").code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(CheckDirectory(directory_ / "none", "mount point").code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(CheckDirectory(directory_, "mount point").ok());
}

TEST(MountTableTest, TheTopmostMountAtExactlyThePathCounts) {
  const std::string table =
      "20 1 0:30 / /m rw - ext4 /dev/x rw\n"
      "21 20 0:31 / /m rw shared:1 master:2 - fuse.pmirror pmirror:/s rw\n"
      "22 20 0:32 / /m/below rw - tmpfs tmpfs rw\n"
      "23 20 0:32 / /a\\040b rw - fuse.pmirror pmirror:/s rw\n";
  EXPECT_EQ(MountTypeAt("/m", table), "fuse.pmirror");
  EXPECT_EQ(MountTypeAt("/m/below", table), "tmpfs");
  EXPECT_EQ(MountTypeAt("/a b", table), "fuse.pmirror");
  EXPECT_EQ(MountTypeAt("/", table), "");
}

TEST(MountTableTest, WhereNothingOfOursIsMountedNothingIsDetached) {
  const absl::StatusOr<int> detached = DetachStaleMounts("/proc");
  ASSERT_TRUE(detached.ok()) << detached.status();
  EXPECT_EQ(*detached, 0);
  EXPECT_TRUE(std::filesystem::exists("/proc/self"));
}

}  // namespace
}  // namespace pmirror::server
