// SPDX-License-Identifier: BSD-3-Clause
// Lookup counts, lifetime and identity of inodes.
#include "fs/inode_table.h"

#include <gtest/gtest.h>

#include <barrier>
#include <random>
#include <thread>

#include "tests/unit/fs/mounted_volume.h"

namespace pmirror::fs {
namespace {

class InodeTableTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto root = BackingRoot::Open(scratch_.path());
    ASSERT_TRUE(root.ok()) << root.error().doing;
    root_ = std::move(root).value();
    table_ = std::make_unique<InodeTable>(*root_, 1000);
  }

  // Makes a file and answers what a lookup of it would find.
  UniqueFd Find(const std::string& name, struct stat& info) {
    const std::string path = scratch_.path() + "/" + name;
    UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    EXPECT_TRUE(fd.valid());
    auto object = root_->OpenEntry(root_->fd(), name.c_str());
    EXPECT_TRUE(object.ok());
    EXPECT_EQ(::fstat(fd.get(), &info), 0);
    return std::move(object).value();
  }
  std::shared_ptr<Inode> Obtain(FileId id, const std::string& name) {
    struct stat info {};
    UniqueFd fd = Find(name, info);
    auto inode = table_->Obtain(id, info, fd);
    EXPECT_TRUE(inode.ok());
    return inode.ok() ? inode.value() : nullptr;
  }

  ScratchDirectory scratch_;
  std::unique_ptr<BackingRoot> root_;
  std::unique_ptr<InodeTable> table_;
};

TEST_F(InodeTableTest, SameIdIsTheSameInode) {
  const std::shared_ptr<Inode> first = Obtain(FileId{5}, "a");
  EXPECT_EQ(Obtain(FileId{5}, "a"), first);
  EXPECT_EQ(table_->Find(FileId{5}), first);
}

TEST_F(InodeTableTest, InodeDiesWhenForgottenAsOftenAsLookedUp) {
  Obtain(FileId{5}, "a");
  Obtain(FileId{5}, "a");
  table_->Forget(FileId{5}, 1);
  EXPECT_NE(table_->Find(FileId{5}), nullptr);
  table_->Forget(FileId{5}, 1);
  EXPECT_EQ(table_->Find(FileId{5}), nullptr);
  EXPECT_EQ(table_->size(), 0U);
}

TEST_F(InodeTableTest, InodeThatSomebodyHoldsOutlivesTheKernelsInterest) {
  std::shared_ptr<Inode> held = Obtain(FileId{5}, "a");
  table_->Forget(FileId{5}, 100);
  EXPECT_EQ(table_->Find(FileId{5}), held);
  EXPECT_EQ(Obtain(FileId{5}, "a"), held) << "looked up again it is the same object";
  table_->Forget(FileId{5}, 1);
  held.reset();
  EXPECT_EQ(table_->Find(FileId{5}), nullptr);
}

TEST_F(InodeTableTest, ForgetOfAnUnknownIdIsIgnored) {
  table_->Forget(FileId{77}, 3);
  EXPECT_EQ(table_->size(), 0U);
}

TEST_F(InodeTableTest, TwoObjectsWithOneIdAreRefused) {
  Obtain(FileId{5}, "a");
  struct stat info {};
  UniqueFd fd = Find("b", info);
  auto second = table_->Obtain(FileId{5}, info, fd);
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.error().code, EEXIST);
  EXPECT_TRUE(fd.valid()) << "the caller still needs it";
}

TEST_F(InodeTableTest, InodesBeyondThePinLimitAreFoundByHandle) {
  if (!root_->has_handles()) {
    GTEST_SKIP() << "this file system has no handles";
  }
  InodeTable small(*root_, 1);
  struct stat info {};
  UniqueFd fd = Find("a", info);
  const auto pinned = small.Obtain(FileId{5}, info, fd);
  fd = Find("b", info);
  const auto unpinned = small.Obtain(FileId{6}, info, fd);
  EXPECT_TRUE(pinned.value()->pinned());
  EXPECT_FALSE(unpinned.value()->pinned());
  auto path = unpinned.value()->OpenPath();
  ASSERT_TRUE(path.ok()) << std::strerror(path.error().code);
  struct stat found {};
  ASSERT_EQ(::fstatat(path.value().get(), "", &found, AT_EMPTY_PATH), 0);
  EXPECT_EQ(found.st_ino, info.st_ino);
}

TEST_F(InodeTableTest, OrphanDiesForReplicationWithItsLastOpen) {
  const std::shared_ptr<Inode> inode = Obtain(FileId{5}, "a");
  inode->BeginOpen();
  inode->BeginOpen();
  EXPECT_TRUE(inode->LoseLastEntry());
  EXPECT_FALSE(inode->EndOpen());
  EXPECT_FALSE(inode->RetireOrphan()) << "still open once";
  EXPECT_TRUE(inode->EndOpen());
  EXPECT_TRUE(inode->RetireOrphan());
  EXPECT_FALSE(inode->RetireOrphan()) << "only one may tell the replicas";
  EXPECT_EQ(inode->life(), Inode::Life::kGone);
}

TEST_F(InodeTableTest, UnlinkedInodeThatNobodyHasOpenIsGone) {
  const std::shared_ptr<Inode> inode = Obtain(FileId{5}, "a");
  EXPECT_FALSE(inode->LoseLastEntry());
  EXPECT_EQ(inode->life(), Inode::Life::kGone);
}

// Threads look up and forget a few ids as fast as they can; every pair of lookups that overlap must give the
// same object, and nothing may be left at the end.
TEST_F(InodeTableTest, ConcurrentLookupsAndForgetsKeepIdentityAndLeaveNothing) {
  constexpr int kThreads = 8;
  constexpr int kIds = 4;
  for (int i = 0; i < kIds; ++i) {
    struct stat info {};
    Find("f" + std::to_string(i), info);
  }
  std::barrier start(kThreads);
  std::atomic<int> different{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(t);
      start.arrive_and_wait();
      for (int i = 0; i < 2000; ++i) {
        const unsigned pick = random() % kIds;
        const FileId id{100 + pick};
        const std::shared_ptr<Inode> inode = Obtain(id, "f" + std::to_string(pick));
        different += table_->Find(id) == inode ? 0 : 1;
        table_->Forget(id, 1);
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(different, 0);
  EXPECT_EQ(table_->size(), 0U);
}

}  // namespace
}  // namespace pmirror::fs
