// SPDX-License-Identifier: BSD-3-Clause
// The index of a backing directory: what the walk finds, and what it refuses.
#include "server/backing_index.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/unit/server/temp_directory.h"
#include "tests/unit/server/tree.h"

namespace pmirror::server {
namespace {

namespace fs = std::filesystem;

void GiveId(const std::string& path, uint64_t id) {
  ASSERT_EQ(::lsetxattr(path.c_str(), "trusted.pmirror.id", &id, sizeof id, 0), 0) << path;
}

TEST(BackingIndex, FindsEveryTypeByIdAfterARenameAndNotAfterItsEnd) {
  const TempDirectory directory;
  fs::create_directory(directory / "d");
  std::ofstream(directory / "d/file") << "x";
  fs::create_symlink("nowhere", directory / "d/link");
  ASSERT_EQ(::mkfifo((directory / "d/fifo").c_str(), 0600), 0);
  uint64_t id = 20;
  for (const char* name : {"d", "d/file", "d/link", "d/fifo"}) {
    GiveId(directory / name, id++);
  }
  const auto index = BackingIndex::Build(directory.path());
  ASSERT_TRUE(index.ok()) << index.status();
  EXPECT_EQ((*index)->size(), 4u);
  EXPECT_EQ((*index)->without_id_count(), 0u);
  fs::rename(directory / "d", directory / "moved");
  for (uint64_t each = 20; each < 24; ++each) {
    EXPECT_TRUE((*index)->Open(FileId{each}, O_PATH | O_NOFOLLOW).ok()) << each;
  }
  EXPECT_TRUE((*index)->Open(FileId::kRoot, O_RDONLY | O_DIRECTORY).ok());
  EXPECT_EQ((*index)->Open(FileId{99}, O_PATH).error().code, ENOENT);
  fs::remove(directory / "moved/file");
  EXPECT_EQ((*index)->Open(FileId{21}, O_RDWR).error().code, ENOENT);
}

TEST(BackingIndex, ReportsObjectsWithoutIdAndCountsThem) {
  const TempDirectory directory;
  fs::create_directory(directory / "d");
  for (int i = 0; i < 150; ++i) {
    std::ofstream(directory / ("d/f" + std::to_string(i)));
  }
  const auto index = BackingIndex::Build(directory.path());
  ASSERT_TRUE(index.ok());
  EXPECT_EQ((*index)->without_id_count(), 151u);
  EXPECT_EQ((*index)->without_id().size(), BackingIndex::kMaxReported);
  EXPECT_EQ((*index)->size(), 0u);
}

TEST(BackingIndex, TwoNamesOfOneObjectAreFineAndTwoObjectsOfOneIdAreNot) {
  const TempDirectory directory;
  std::ofstream(directory / "a");
  GiveId(directory / "a", 5);
  fs::create_hard_link(directory / "a", directory / "b");
  EXPECT_TRUE(BackingIndex::Build(directory.path()).ok());
  std::ofstream(directory / "copy");
  GiveId(directory / "copy", 5);
  const auto index = BackingIndex::Build(directory.path());
  ASSERT_FALSE(index.ok());
  EXPECT_EQ(index.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_NE(std::string(index.status().message()).find("id 5"), std::string::npos) << index.status();
}

TEST(BackingIndex, ADirectoryThatIsNotARootIsRefused) {
  const TempDirectory directory;
  GiveId(directory.path(), 17);
  EXPECT_EQ(BackingIndex::Build(directory.path()).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_FALSE(BackingIndex::Build(directory / "missing").ok());
  EXPECT_FALSE(BackingIndex::Build("/proc").ok());
}

TEST(BackingIndex, AnotherFileSystemInsideIsReportedAndNotEntered) {
  const TempDirectory directory;
  fs::create_directory(directory / "mounted");
  GiveId(directory / "mounted", 5);
  if (::mount("tmpfs", (directory / "mounted").c_str(), "tmpfs", 0, "size=64k") != 0) {
    GTEST_SKIP() << "mounting is not allowed here";
  }
  std::ofstream(directory / "mounted/inside");
  const auto index = BackingIndex::Build(directory.path());
  ::umount((directory / "mounted").c_str());
  ASSERT_TRUE(index.ok()) << index.status();
  EXPECT_EQ((*index)->size(), 0u);
  EXPECT_EQ((*index)->without_id_count(), 1u);
}

}  // namespace
}  // namespace pmirror::server
