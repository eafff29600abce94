// SPDX-License-Identifier: BSD-3-Clause
// A directory of anybody's becomes one of a volume.
#include "recovery/give_ids.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <set>

#include "recovery/inventory.h"
#include "recovery/object_id.h"
#include "replication/unique_fd.h"
#include "tests/unit/server/temp_directory.h"

namespace pmirror::recovery {
namespace {

namespace stdfs = std::filesystem;

class GiveIdsTest : public testing::Test {
 protected:
  void SetUp() override {
    stdfs::create_directories(root_ + "/a/b");
    for (const char* name : {"/f", "/a/g", "/a/b/h"}) {
      std::ofstream(root_ + name) << name;
    }
    stdfs::create_hard_link(root_ + "/f", root_ + "/a/f2");
    stdfs::create_symlink("f", root_ + "/link");
    ASSERT_EQ(::mkfifo((root_ + "/fifo").c_str(), 0600), 0);
    fd_.Reset(::open(root_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  }
  std::map<std::string, FileId> Ids() {
    std::map<std::string, FileId> ids;
    const absl::StatusOr<Inventory> inventory = TakeInventory(fd_.get());
    EXPECT_TRUE(inventory.ok()) << inventory.status();
    for (const TreeItem& item : *inventory) {
      ids[item.path] = item.id;
    }
    return ids;
  }

  server::TempDirectory directory_;
  const std::string root_ = directory_.path();
  UniqueFd fd_;
};

TEST_F(GiveIdsTest, EveryObjectGetsOneOfItsOwnWhateverItsNames) {
  EXPECT_EQ(GiveIds(fd_.get()).value(), 7u);
  std::map<std::string, FileId> ids = Ids();
  EXPECT_EQ(ids["f"], ids["a/f2"]);
  ids.erase("a/f2");
  std::set<FileId> different;
  for (const auto& [path, id] : ids) {
    EXPECT_NE(id, FileId::kNone) << path;
    EXPECT_EQ(MountOf(id), 0u) << path;
    different.insert(id);
  }
  EXPECT_EQ(different.size(), ids.size());
}

TEST_F(GiveIdsTest, AnAttemptThatDidNotEndIsCompleted) {
  ASSERT_TRUE(GiveIds(fd_.get()).ok());
  std::map<std::string, FileId> before = Ids();
  ASSERT_EQ(::removexattr((root_ + "/a/g").c_str(), kIdXattr), 0);
  EXPECT_EQ(GiveIds(fd_.get()).value(), 1u);
  std::map<std::string, FileId> after = Ids();
  const FileId fresh = after["a/g"];
  for (const auto& [path, id] : before) {
    EXPECT_TRUE(path == "a/g" || after[path] == id) << path;
    EXPECT_NE(id, fresh) << path;
  }
}

TEST_F(GiveIdsTest, P9WhatBelongsToAnotherVolumeIsNamedAndNothingIsChanged) {
  const uint64_t other = Raw(ObjectId(3, 9));
  ASSERT_EQ(::setxattr((root_ + "/a/g").c_str(), kIdXattr, &other, sizeof(other), 0), 0);
  const absl::Status status = GiveIds(fd_.get()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("a/g"));
  EXPECT_EQ(Ids()["f"], FileId::kNone);
}

}  // namespace
}  // namespace pmirror::recovery
