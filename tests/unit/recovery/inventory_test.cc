// SPDX-License-Identifier: BSD-3-Clause
// Walks of real directories: what an inventory holds, in which order, and finding files by id afterwards.
#include "recovery/inventory.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <vector>

#include "recovery/local_tree.h"
#include "recovery/tree_compare.h"
#include "replication/unique_fd.h"

namespace pmirror::recovery {
namespace {

using ::testing::ElementsAre;

class InventoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (std::filesystem::temp_directory_path() / "pmirror-inventory-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    root_ = name;
    if (::setxattr(name.c_str(), kIdXattr, "12345678", 8, 0) != 0) {
      std::filesystem::remove_all(root_);
      GTEST_SKIP() << "trusted.* attributes cannot be set here";
    }
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  void Write(const std::string& path, const std::string& text) { std::ofstream(root_ / path) << text; }
  void SetId(const std::string& path, uint64_t id) {
    ASSERT_EQ(::setxattr((root_ / path).c_str(), kIdXattr, &id, sizeof(id), 0), 0);
  }
  UniqueFd Open() const { return UniqueFd(::open(root_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)); }
  Inventory Take() const {
    absl::StatusOr<Inventory> inventory = TakeInventory(Open().get());
    EXPECT_TRUE(inventory.ok()) << inventory.status();
    return inventory.ok() ? *std::move(inventory) : Inventory{};
  }
  TreeItem Item(const std::string& path) const {
    for (const TreeItem& item : Take()) {
      if (item.path == path) {
        return item;
      }
    }
    ADD_FAILURE() << "no item " << path;
    return {};
  }

  std::filesystem::path root_;
};

TEST_F(InventoryTest, ListsEveryObjectInOrderWithoutPmirrorsOwnDirectory) {
  std::filesystem::create_directories(root_ / ".pmirror" / "orphans");
  std::filesystem::create_directories(root_ / "b" / ".pmirror");
  Write("b/z", "");
  Write("b/a", "");
  Write("c", "");
  Write("a", "");
  std::vector<std::string> paths;
  for (const TreeItem& item : Take()) {
    paths.push_back(item.path);
  }
  EXPECT_THAT(paths, ElementsAre("", "a", "b", "b/.pmirror", "b/a", "b/z", "c"));
}

TEST_F(InventoryTest, TellsTheAttributesOfEachType) {
  Write("file", "hello");
  SetId("file", 77);
  ASSERT_EQ(::chmod((root_ / "file").c_str(), 0640), 0);
  std::filesystem::create_hard_link(root_ / "file", root_ / "link");
  std::filesystem::create_symlink("nowhere/at all", root_ / "symlink");
  ASSERT_EQ(::mkfifo((root_ / "fifo").c_str(), 0600), 0);
  const TreeItem file = Item("file");
  EXPECT_EQ(file.id, FileId{77});
  EXPECT_EQ(file.mode, static_cast<uint32_t>(S_IFREG | 0640));
  EXPECT_EQ(file.size, 5u);
  EXPECT_EQ(file.links, 2u);
  EXPECT_EQ(Item("link").id, FileId{77});
  EXPECT_EQ(Item("symlink").target, "nowhere/at all");
  EXPECT_TRUE(S_ISFIFO(Item("fifo").mode));
  EXPECT_EQ(Item("").id, FileId::kRoot);
  if (::mknod((root_ / "null").c_str(), S_IFCHR | 0600, makedev(1, 3)) == 0) {
    EXPECT_EQ(Item("null").rdev, makedev(1, 3));
  }
}

TEST_F(InventoryTest, XattrCrcFollowsProgramsAttributesAndIgnoresPmirrorsOwn) {
  Write("file", "");
  const uint32_t none = Item("file").xattr_crc;
  SetId("file", 5);
  EXPECT_EQ(Item("file").xattr_crc, none);
  const std::string path = (root_ / "file").string();
  ASSERT_EQ(::setxattr(path.c_str(), "trusted.colour", "red", 3, 0), 0);
  const uint32_t red = Item("file").xattr_crc;
  EXPECT_NE(red, none);
  ASSERT_EQ(::setxattr(path.c_str(), "trusted.colour", "rex", 3, 0), 0);
  EXPECT_NE(Item("file").xattr_crc, red);
}

TEST_F(InventoryTest, FullDetailBringsXattrsTimesAndOrphansAndTheOtherDoesNot) {
  std::filesystem::create_directories(root_ / kOrphansPath / "0000000000000008");
  Write("file", "");
  SetId("file", 5);
  Write(".pmirror/orphans/0000000000000007", "kept");
  SetId(".pmirror/orphans/0000000000000007", 7);
  Write(".pmirror/orphans/0000000000000008/inside", "");
  const std::string path = (root_ / "file").string();
  ASSERT_EQ(::setxattr(path.c_str(), "trusted.b", "red", 3, 0), 0);
  ASSERT_EQ(::setxattr(path.c_str(), "trusted.a", "", 0, 0), 0);
  const timespec times[2] = {{.tv_sec = 1, .tv_nsec = 2}, {.tv_sec = 3, .tv_nsec = 4}};
  ASSERT_EQ(::utimensat(AT_FDCWD, path.c_str(), times, 0), 0);

  EXPECT_EQ(Take().size(), 2u);
  EXPECT_TRUE(Item("file").xattrs.empty());
  EXPECT_EQ(Item("file").mtime, OpTime{});

  const absl::StatusOr<Inventory> full = TakeInventory(Open().get(), InventoryDetail::kFull);
  ASSERT_TRUE(full.ok()) << full.status();
  ASSERT_EQ(full->size(), 5u);
  const TreeItem& file = (*full)[1];
  EXPECT_EQ(file.xattrs, (Xattrs{{"trusted.a", ""}, {"trusted.b", "red"}}));
  EXPECT_EQ(file.xattr_crc, Item("file").xattr_crc);
  EXPECT_EQ(file.atime, (OpTime{1, 2}));
  EXPECT_EQ(file.mtime, (OpTime{3, 4}));
  EXPECT_FALSE(file.orphan);
  EXPECT_EQ((*full)[2].path, ".pmirror/orphans/0000000000000007");
  EXPECT_EQ((*full)[2].id, FileId{7});
  EXPECT_TRUE((*full)[2].orphan);
  EXPECT_TRUE((*full)[3].orphan);
  EXPECT_EQ((*full)[4].path, ".pmirror/orphans/0000000000000008/inside");
  EXPECT_FALSE((*full)[4].orphan);
}

TEST_F(InventoryTest, AFullInventoryWithoutPmirrorsOwnDirectoryHasNoOrphans) {
  const absl::StatusOr<Inventory> full = TakeInventory(Open().get(), InventoryDetail::kFull);
  ASSERT_TRUE(full.ok()) << full.status();
  EXPECT_EQ(full->size(), 1u);
}

TEST_F(InventoryTest, LocalTreeOfFullDetailReadsOrphansToo) {
  std::filesystem::create_directories(root_ / kOrphansPath);
  Write(".pmirror/orphans/0000000000000007", "kept");
  SetId(".pmirror/orphans/0000000000000007", 7);
  LocalTree tree(Open(), InventoryDetail::kFull);
  const absl::StatusOr<BlockChecksums> sums = tree.Checksums(FileId{7}, {0, 100}, 100);
  ASSERT_TRUE(sums.ok()) << sums.status();
  EXPECT_EQ(sums->size, 4u);
}

TEST_F(InventoryTest, PathsLongerThanPathMaxAreWalkedAndOpened) {
  const std::string name(200, 'd');
  UniqueFd directory = Open();
  for (int depth = 0; depth < 30; ++depth) {
    ASSERT_EQ(::mkdirat(directory.get(), name.c_str(), 0700), 0);
    directory.Reset(::openat(directory.get(), name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    ASSERT_TRUE(directory.valid());
  }
  const UniqueFd file(::openat(directory.get(), "deep", O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  const uint64_t id = 42;
  ASSERT_EQ(::fsetxattr(file.get(), kIdXattr, &id, sizeof(id), 0), 0);
  ASSERT_EQ(::pwrite(file.get(), "abc", 3, 0), 3);

  EXPECT_GT(Take().back().path.size(), 4096u);
  LocalTree tree(Open());
  const absl::StatusOr<BlockChecksums> sums = tree.Checksums(FileId{42}, {0, 4096}, 4096);
  ASSERT_TRUE(sums.ok()) << sums.status();
  EXPECT_EQ(sums->size, 3u);
}

TEST_F(InventoryTest, LocalTreeFindsAFileAgainAfterARenameAndNotAfterItsRemoval) {
  Write("one", "text");
  SetId("one", 9);
  Write("two", "other");
  SetId("two", 10);
  LocalTree tree(Open());
  ASSERT_TRUE(tree.Inventory().ok());
  std::filesystem::rename(root_ / "one", root_ / "three");
  std::filesystem::rename(root_ / "two", root_ / "one");
  const absl::StatusOr<BlockChecksums> sums = tree.Checksums(FileId{9}, {0, 100}, 100);
  ASSERT_TRUE(sums.ok()) << sums.status();
  EXPECT_EQ(sums->size, 4u);
  std::filesystem::remove(root_ / "three");
  EXPECT_EQ(tree.Checksums(FileId{9}, {0, 100}, 100).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace pmirror::recovery
