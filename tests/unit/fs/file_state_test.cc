// SPDX-License-Identifier: BSD-3-Clause
// What the daemon holds dirty of a file, and the flag by which programs learn of it.
#include "fs/file_state.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

namespace pmirror::fs {
namespace {

class FileStateTest : public testing::Test {
 protected:
  FileStateTest() {
    page_ = *VolumePageOwner::Create({.replica_count = 1});
    backing_.Reset(::memfd_create("backing", MFD_CLOEXEC));
    EXPECT_EQ(::ftruncate(backing_.get(), 5000), 0);
    file_ = FileState::Create(FileId{9}, backing_.get(), 14, *page_);
  }
  bool flag() { return (file_->slot().flags.load() & kFileDaemonDirty) != 0; }
  static ExtentSet Set(Extent extent) {
    ExtentSet set;
    set.Add(extent);
    return set;
  }

  std::unique_ptr<VolumePageOwner> page_;
  UniqueFd backing_;
  std::shared_ptr<FileState> file_;
};

TEST_F(FileStateTest, HasAPlaceOnThePageFromTheStart) {
  EXPECT_EQ(file_->size(), 5000U);
  EXPECT_EQ(file_->slot().size_generation.load(), 14U);
  EXPECT_EQ(file_->slot().file.load(), 9U);
  EXPECT_FALSE(flag());
  const uint32_t slot = file_->slot_index();
  file_.reset();
  EXPECT_EQ(page_->slot(slot).file.load(), 0U);
}

TEST_F(FileStateTest, Trap3_ACaptureThatFailsLeavesItsRangesDirty) {
  {
    FileState::Capture capture(*file_, {0, 100}, Set({0, 100}));
    EXPECT_TRUE(flag()) << "under way counts as dirty";
    EXPECT_TRUE(file_->DirtyIn({50, 1}));
    EXPECT_FALSE(file_->dirty());
  }
  EXPECT_TRUE(file_->dirty());
  EXPECT_TRUE(flag());
  {
    FileState::Capture retry(*file_, {0, 4096}, {});
    EXPECT_EQ(retry.extents().extents(), (std::vector<Extent>{{0, 100}}));
    retry.Succeeded();
  }
  EXPECT_FALSE(file_->dirty());
  EXPECT_FALSE(flag());
}

TEST_F(FileStateTest, Trap7_WhatBecomesDoubtfulDuringACaptureIsDoubtfulBehindIt) {
  file_->HoldDoubtful({0, 4096});
  {
    FileState::Capture capture(*file_, {0, 8192}, Set({4096, 100}));
    EXPECT_EQ(capture.doubtful().extents(), (std::vector<Extent>{{0, 4096}}));
    file_->HoldDoubtful({0, 1000});  // another program that had it mapped is killed
    capture.Succeeded();
  }
  FileState::Capture next(*file_, {0, 8192}, {});
  EXPECT_EQ(next.doubtful().extents(), (std::vector<Extent>{{0, 1000}}));
  next.Succeeded();
}

TEST_F(FileStateTest, Trap7_WhatIsSettledIsNotDoubtfulAnyMore) {
  file_->HoldDoubtful({0, 4096});
  { const FileState::Capture fails(*file_, {0, 4096}, {}); }
  {
    FileState::Capture part(*file_, {1000, 1000}, {});
    part.Succeeded();
  }
  FileState::Capture rest(*file_, {0, 4096}, Set({0, 4096}));
  EXPECT_EQ(rest.doubtful().extents(), (std::vector<Extent>{{0, 1000}, {2000, 2096}}));
}

TEST_F(FileStateTest, Trap4_ASyncCapturesWhatAnotherCaptureHasUnderWayInsteadOfWaitingForIt) {
  file_->Hold({4096, 100});
  auto first = std::make_unique<FileState::Capture>(*file_, Extent{0, 8192}, ExtentSet{});
  FileState::Capture second(*file_, {0, 8192}, Set({0, 8}));
  EXPECT_EQ(second.extents().extents(), (std::vector<Extent>{{0, 8}, {4096, 100}}));
  second.Succeeded();
  first.reset();  // it failed: whatever the other brought over, this range is in doubt
  EXPECT_TRUE(file_->DirtyIn({4096, 1}));
}

TEST_F(FileStateTest, WhatIsNotDurableKeepsTheFlagUpUntilABarrierThatBeganLater) {
  file_->NotDurable();
  EXPECT_TRUE(flag());
  const uint64_t mark = file_->durability_mark();
  file_->NotDurable();  // behind the barrier
  file_->Durable(mark);
  EXPECT_TRUE(flag());
  file_->Durable(file_->durability_mark());
  EXPECT_FALSE(flag());
}

TEST_F(FileStateTest, SeveralWritingProcessesShareTheFile) {
  file_->SetWritingMappers(1);
  EXPECT_EQ(file_->slot().flags.load() & kFileShared, 0U);
  file_->SetWritingMappers(2);
  EXPECT_NE(file_->slot().flags.load() & kFileShared, 0U);
  file_->SetWritingMappers(0);
  EXPECT_EQ(file_->slot().flags.load() & kFileShared, 0U);
}

TEST_F(FileStateTest, OrderNumbersOfAFileThatWasForgottenGoOnAbove) {
  const uint64_t before = file_->target().order->next.load();
  file_.reset();
  file_ = FileState::Create(FileId{9}, backing_.get(), 14, *page_);
  EXPECT_GT(file_->target().order->next.load(), before);
}

}  // namespace
}  // namespace pmirror::fs
