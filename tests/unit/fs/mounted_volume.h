// SPDX-License-Identifier: BSD-3-Clause
// A volume mounted for a test: a fresh backing directory on a tmpfs, the file system over it, and a recorder
// in place of replication. Needs root and /dev/fuse.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/types.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <set>
#include <string>

#include "fs/file_system.h"
#include "fs/fuse_session.h"
#include "tests/unit/fs/recording_replicator.h"

namespace pmirror::fs {

class FakeOracle : public OpenOracle {
 public:
  bool AnyAnnounced() const override { return announced_ != 0; }
  bool IsAnnounced(pid_t tgid) const override { return tgid != 0 && tgid == announced_; }
  void Announce(pid_t tgid) { announced_ = tgid; }

 private:
  std::atomic<pid_t> announced_{0};
};

// Directory for test trees: where PMIRROR_TEST_DIR says (to try another file system), else memory.
inline std::string ScratchParent() {
  const char* chosen = std::getenv("PMIRROR_TEST_DIR");
  return chosen != nullptr ? chosen : "/dev/shm";
}

class ScratchDirectory {
 public:
  ScratchDirectory() : path_(ScratchParent() + "/pmirror-fs-XXXXXX") {
    EXPECT_NE(::mkdtemp(path_.data()), nullptr);
    EXPECT_EQ(::chmod(path_.c_str(), 0755), 0);
  }
  ~ScratchDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

class MountedVolume : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(::mkdir(backing().c_str(), 0755), 0);
    ASSERT_EQ(::mkdir(mount().c_str(), 0755), 0);
    PrepareBacking();
    Remount();
  }
  // For tests that need a backing directory of a special kind.
  virtual void PrepareBacking() {}
  void TearDown() override {
    if (session_ != nullptr) {
      EXPECT_TRUE(session_->Unmount(Deadline::After(std::chrono::seconds(10))))
          << "somebody still uses the mount";
    }
  }
  void Remount() {
    session_.reset();
    fs_.reset();
    auto root = BackingRoot::Open(backing());
    ASSERT_TRUE(root.ok()) << root.error().doing << ": " << std::strerror(root.error().code);
    root_ = std::move(root).value();
    fs_ = std::make_unique<FileSystem>(*root_, replicator_, oracle_, pin_limit_);
    auto session =
        FuseSession::Mount(*fs_, *root_, {.mount_point = mount(), .socket = "/run/test/pmirror.sock"});
    ASSERT_TRUE(session.ok()) << session.error().doing << ": " << std::strerror(session.error().code);
    session_ = std::move(session).value();
  }

  std::string backing() const { return scratch_.path() + "/backing"; }
  std::string mount() const { return mount_.empty() ? scratch_.path() + "/mount" : mount_; }
  std::string At(const std::string& name) const { return mount() + "/" + name; }
  std::string Behind(const std::string& name) const { return backing() + "/" + name; }

  ScratchDirectory scratch_;
  std::string mount_;  // when it is none of ours
  size_t pin_limit_ = 1 << 16;
  FakeOracle oracle_;
  RecordingReplicator replicator_;
  std::unique_ptr<BackingRoot> root_;
  std::unique_ptr<FileSystem> fs_;
  std::unique_ptr<FuseSession> session_;
};

}  // namespace pmirror::fs
