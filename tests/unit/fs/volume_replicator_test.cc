// SPDX-License-Identifier: BSD-3-Clause
// The engine of a primary against replicas that do what a script says: order, policies, what failures leave behind.
#include "fs/volume_replicator.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <latch>
#include <string>
#include <thread>

#include "tests/unit/fs/engine_fixture.h"

namespace pmirror::fs {
namespace {

TEST_F(VolumeReplicatorTest, P1_AWriteAndAnOperationAreOnEveryReplicaWhenTheyReturn) {
  Start(OnLoss::kFail, seconds(20), {}, 2);
  ASSERT_EQ(Write(100, "bytes"), 0);
  ASSERT_EQ(Unlink(), 0);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(Replicated(100, 5, i), "bytes");
    EXPECT_EQ(replica(i).frames(FrameKind::kNamespaceOp), 1U);
    EXPECT_EQ(replica(i).faults(), 0U);
  }
}

TEST_F(VolumeReplicatorTest, ALocalChangeThatFailedSendsNothing) {
  Start(OnLoss::kFail, seconds(20));
  EXPECT_EQ(engine_->Change([](NamespaceOp&) { return ENOTEMPTY; }), ENOTEMPTY);
  EXPECT_EQ(log_.last(), 0U);
  EXPECT_EQ(engine_->ChangeSize(*file_, [](NamespaceOp&) { return EFBIG; }), EFBIG);
  EXPECT_EQ(file_->slot().size_generation.load() % 2, 0U);
  EXPECT_FALSE(flag());
}

TEST_F(VolumeReplicatorTest, AWrittenFileKeepsItsFlagUpUntilASyncHasMadeItDurable) {
  Start(OnLoss::kFail, seconds(20));
  ASSERT_EQ(Write(0, "x"), 0);
  EXPECT_TRUE(flag()) << "a program's msync has to ask the daemon for a barrier";
  ASSERT_EQ(Sync(), 0);
  EXPECT_FALSE(flag());
  EXPECT_EQ(engine_->counters().syncs, 1U);
}

TEST_F(VolumeReplicatorTest, Trap3_WhatAFailureLeftDirtyGoesWithTheNextSync) {
  Start(OnLoss::kFail, milliseconds(100));
  replica().SetConnectError(ECONNREFUSED);
  EXPECT_EQ(Write(0, "lost"), EIO);
  EXPECT_EQ(Unlink(), EIO);
  EXPECT_TRUE(file_->dirty());
  EXPECT_TRUE(flag());
  EXPECT_EQ(engine_->dirty_bytes(), 4U);
  EXPECT_EQ(Sync(), EIO) << "no success for free";
  replica().SetConnectError(0);
  ASSERT_EQ(Sync(), 0);
  EXPECT_EQ(Replicated(0, 4), "lost");
  EXPECT_EQ(replica().frames(FrameKind::kNamespaceOp), 1U) << "the operation went before it";
  EXPECT_FALSE(file_->dirty());
}

TEST_F(VolumeReplicatorTest, P3_WhatAFailureLeftDirtyComesOverByItselfWhenTheReplicaIsBack) {
  Start(OnLoss::kFail, milliseconds(100));
  engine_->Start();
  replica().SetConnectError(ECONNREFUSED);
  EXPECT_EQ(Write(0, "later"), EIO);
  replica().SetConnectError(0);
  ASSERT_TRUE(replicas_[0]->session->EnsureConnected(Deadline::After(seconds(20))).ok());
  engine_->Wake();
  EXPECT_TRUE(Eventually([&] { return engine_->dirty_bytes() == 0; }));
  EXPECT_EQ(Replicated(0, 5), "later");
}

TEST_F(VolumeReplicatorTest, P6_SuspendWaitsVisiblyAndGoesOn) {
  Start(OnLoss::kSuspend, milliseconds(20), seconds(60));
  replica().SetConnectError(ECONNREFUSED);
  std::thread writer([&] { EXPECT_EQ(Write(0, "patient"), 0); });
  EXPECT_TRUE(Eventually([&] { return engine_->counters().suspended != 0; }));
  replica().SetConnectError(0);
  writer.join();
  EXPECT_EQ(engine_->counters().suspended, 0U);
  EXPECT_EQ(Replicated(0, 7), "patient");
}

TEST_F(VolumeReplicatorTest, Trap8_ATruncateRaisesTheGenerationAndCapturesTheTailThatGrewIntoTheFile) {
  Start(OnLoss::kFail, seconds(20));
  ASSERT_EQ(Truncate(5000), 0);
  EXPECT_EQ(file_->slot().size_generation.load(), 2U);
  EXPECT_EQ(file_->size(), 5000U);
  // As a mapping can store behind the end: on tmpfs that becomes contents when the file grows.
  char* map =
      static_cast<char*>(::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, backing_.get(), 0));
  ASSERT_NE(map, MAP_FAILED);
  map[5001] = 'T';
  ASSERT_EQ(Truncate(8192), 0);
  EXPECT_EQ(Replicated(5001, 1), "T");
  ::munmap(map, 8192);
}

// R5: a sync with nothing to send is a barrier, and a barrier carries the truncate, too.
TEST_F(VolumeReplicatorTest, P1_ASyncThatBeginsBesideATruncateReturnsBehindIt) {
  Start(OnLoss::kFail, seconds(20));
  std::atomic<uint64_t> truncates_at_barrier{0};
  replica().SetScript([&](const FakeReplica::Frame& frame) {
    if (frame.kind() == FrameKind::kBarrier) {
      truncates_at_barrier = replica().frames(FrameKind::kNamespaceOp);
    }
    return FakeReplica::Answer{};
  });
  std::atomic<bool> returned{false};
  std::thread syncer;
  ASSERT_EQ(engine_->ChangeSize(*file_,
                                [&](NamespaceOp& op) {
                                  EXPECT_EQ(::ftruncate(backing_.get(), 4096), 0);
                                  syncer = std::thread([&] {
                                    EXPECT_EQ(engine_->SyncOthers(*file_, {0, 4096}, stores_.owner), 0);
                                    returned = true;
                                  });
                                  const Deadline deadline = Deadline::After(milliseconds(200));
                                  while (!returned && !deadline.Expired()) {
                                    std::this_thread::yield();
                                  }
                                  EXPECT_FALSE(returned) << "what it has to cover is not in the log yet";
                                  op.kind = OpKind::kTruncate;
                                  op.target = kFile;
                                  op.extent = {4096, 0};
                                  return 0;
                                }),
            0);
  syncer.join();
  EXPECT_EQ(truncates_at_barrier, 1U);
}

TEST_F(VolumeReplicatorTest, Trap5_ASyncTakesOverWhatProgramsStored) {
  Start(OnLoss::kFail, seconds(20));
  ASSERT_EQ(::pwrite(backing_.get(), "mapped", 6, 4096), 6);
  stores_.stored = {4096, 6};
  ASSERT_EQ(Sync(), 0);
  EXPECT_EQ(Replicated(4096, 6), "mapped");
}

TEST_F(VolumeReplicatorTest, Trap4_WhoAsksForOthersStoresSendsItsOwnItself) {
  Start(OnLoss::kFail, seconds(20));
  stores_.stored = {0, 8};
  ASSERT_EQ(engine_->SyncOthers(*file_, {0, 4096}, stores_.owner), 0);
  EXPECT_FALSE(stores_.stored.empty());
  ASSERT_EQ(engine_->SyncOthers(*file_, {0, 4096}, ProcessSerial{8}), 0);
  EXPECT_TRUE(stores_.stored.empty());
}

TEST_F(VolumeReplicatorTest, Trap4_StoresTakenOverByASyncThatFailsStayDirtyHere) {
  Start(OnLoss::kFail, milliseconds(50));
  replica().SetConnectError(ECONNREFUSED);
  stores_.stored = {0, 8};
  EXPECT_EQ(engine_->SyncOthers(*file_, {0, 4096}, ProcessSerial::kNone), EIO);
  EXPECT_TRUE(engine_->Dirty(*file_, {0, 8}));
  EXPECT_TRUE(flag());
}

TEST_F(VolumeReplicatorTest, AFrozenVolumeTakesNoWriteAndNoChange) {
  Start(OnLoss::kFail, seconds(20));
  ASSERT_TRUE(engine_->gate().Freeze(seconds(20)));
  std::atomic<int> passed = 0;
  std::latch begun(2);
  std::thread writer([&] {
    begun.count_down();
    EXPECT_EQ(Write(0, "w"), 0);
    ++passed;
  });
  std::thread changer([&] {
    begun.count_down();
    EXPECT_EQ(Unlink(), 0);
    ++passed;
  });
  begun.wait();
  EXPECT_EQ(Sync(), 0) << "syncs go on";
  EXPECT_EQ(passed, 0);
  EXPECT_EQ(log_.last(), 0U);
  engine_->gate().Thaw();
  writer.join();
  changer.join();
  EXPECT_EQ(passed, 2);
}

TEST_F(VolumeReplicatorTest, AFileThatLeftTheVolumeLeavesNothingDirtyBehind) {
  Start(OnLoss::kFail, milliseconds(50));
  replica().SetConnectError(ECONNREFUSED);
  EXPECT_EQ(Write(0, "x"), EIO);
  EXPECT_NE(engine_->dirty_bytes(), 0U);
  EXPECT_EQ(engine_->Change([](NamespaceOp& op) {  // a memfd has no name: as after the last unlink
    op.kind = OpKind::kForgetOrphan;
    op.target = kFile;
    return 0;
  }),
            EIO);
  EXPECT_EQ(engine_->dirty_bytes(), 0U);
}

TEST_F(VolumeReplicatorTest, ACaptureThatFailsAfterItsFileLeftTheVolumeBringsNothingBack) {
  Start(OnLoss::kFail, milliseconds(400));
  replica().SetConnectError(ECONNREFUSED);
  std::thread writer([&] { EXPECT_EQ(Write(0, "x"), 0) << "nothing of it is missing anywhere"; });
  EXPECT_TRUE(Eventually([&] { return file_->DirtyIn({0, 1}); }));
  EXPECT_EQ(engine_->Change([](NamespaceOp& op) {
    op.kind = OpKind::kForgetOrphan;
    op.target = kFile;
    return 0;
  }),
            EIO);
  writer.join();
  EXPECT_FALSE(file_->DirtyIn({0, 1}));
  EXPECT_EQ(engine_->dirty_bytes(), 0U);
}

TEST_F(VolumeReplicatorTest, Trap8_TheTailOfAGrowthThatFailedIsKeptBeyondTheLastHandle) {
  Start(OnLoss::kFail, milliseconds(100));
  engine_->Start();
  ASSERT_EQ(Truncate(5000), 0);
  char* map =
      static_cast<char*>(::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, backing_.get(), 0));
  ASSERT_NE(map, MAP_FAILED);
  map[5001] = 'T';
  replica().SetConnectError(ECONNREFUSED);
  replica().CutNow();
  EXPECT_TRUE(Eventually([&] { return Truncate(8192) == EIO; }));  // once the cut is noticed
  file_.reset();
  EXPECT_NE(engine_->dirty_bytes(), 0U);
  replica().SetConnectError(0);
  ASSERT_TRUE(replicas_[0]->session->EnsureConnected(Deadline::After(seconds(20))).ok());
  EXPECT_TRUE(Eventually([&] { return engine_->dirty_bytes() == 0; }));
  EXPECT_EQ(Replicated(5001, 1), "T");
  ::munmap(map, 8192);
}

TEST_F(VolumeReplicatorTest, Trap4_ASyncOfTheVolumeAsksProgramsAlsoForFilesThatNoneHasMapped) {
  Start(OnLoss::kFail, seconds(20));
  stores_.stored = {0, 8};  // a capture under way in a program that has unmapped the file
  ASSERT_EQ(engine_->SyncAll(ProcessSerial::kNone), 0);
  EXPECT_TRUE(stores_.stored.empty());
}

TEST_F(VolumeReplicatorTest, AWriteIsCountedAsNotDurableOnlyWhenItHasArrived) {
  Start(OnLoss::kFail, seconds(20));
  std::atomic<bool> seen{false};
  replica().SetScript([&](const FakeReplica::Frame& frame) {
    if (frame.kind() == FrameKind::kDataImage) {
      seen = file_->durability_mark() == 0 &&
             flag();  // a barrier that begins now must not settle it, and programs ask meanwhile
    }
    return FakeReplica::Answer{};
  });
  ASSERT_EQ(Write(0, "x"), 0);
  EXPECT_TRUE(seen);
  EXPECT_EQ(file_->durability_mark(), 1U);
}

TEST_F(VolumeReplicatorTest, AFullLogIsMadeDurableAndGoesOn) {
  Start(OnLoss::kFail, seconds(20));
  for (size_t i = 0; i < OperationLog::kMaxOperations + 10; ++i) {
    ASSERT_EQ(Unlink(), 0) << i;
  }
  EXPECT_LE(log_.last() - log_.first() + 1, OperationLog::kMaxOperations);
  EXPECT_EQ(replica().frames(FrameKind::kNamespaceOp), OperationLog::kMaxOperations + 10);
}

// --- without redundancy ---

TEST_F(VolumeReplicatorTest, P6_UnderProceedEverythingSucceedsWithoutMembers) {
  Start(OnLoss::kProceed, seconds(20));
  page_->SetMembers(0, 0);
  EXPECT_EQ(Write(0, "alone"), 0);
  EXPECT_EQ(Unlink(), 0);
  EXPECT_EQ(Truncate(4096), 0);
  EXPECT_EQ(Sync(), 0);
  EXPECT_FALSE(file_->dirty());
  EXPECT_EQ(replica().connects(), 0U);
}

TEST_F(VolumeReplicatorTest, P4_AFencedVolumeSucceedsInNothingAlsoUnderProceedWithoutMembers) {
  Start(OnLoss::kProceed, seconds(20));
  page_->SetMembers(0, 0);
  ASSERT_TRUE(page_->SetState(VolumeState::kFenced));
  EXPECT_EQ(Write(0, "alone"), ESTALE);
  EXPECT_EQ(Unlink(), ESTALE);
  EXPECT_EQ(log_.last(), 0U) << "nothing was changed";
  EXPECT_EQ(Sync(), ESTALE);
  EXPECT_FALSE(page_->SetState(VolumeState::kClosing)) << "no way back";
  EXPECT_EQ(Sync(), ESTALE);
}

TEST_F(VolumeReplicatorTest, P6_UnderProceedTheLogOfOperationsDoesNotFillUpWithoutMembers) {
  Start(OnLoss::kProceed, seconds(20));
  page_->SetMembers(0, 0);
  for (size_t i = 0; i < OperationLog::kMaxOperations + 10; ++i) {
    ASSERT_EQ(Unlink(), 0) << i;
  }
  EXPECT_GT(log_.first(), 1U) << "what was dropped, a comparison of the trees brings back";
}

TEST_F(VolumeReplicatorTest, P1_UnderSuspendNothingSucceedsWithoutMembers) {
  Start(OnLoss::kSuspend, milliseconds(50), milliseconds(50));
  page_->SetMembers(0, 0);
  EXPECT_EQ(Write(0, "alone"), EIO);
  EXPECT_EQ(Unlink(), EIO);
}

TEST_F(VolumeReplicatorTest, Trap16_AnOperationThatWaitsIsSentToWhoJoinsMeanwhile) {
  Start(OnLoss::kSuspend, seconds(20), seconds(20));
  page_->SetMembers(0, 0);
  std::thread caller([&] { EXPECT_EQ(Unlink(), 0); });
  page_->SetMembers(0, 1);
  EXPECT_TRUE(Eventually([&] { return replica().frames(FrameKind::kNamespaceOp) == 1; }));
  page_->SetMembers(1, 0);
  caller.join();
}

}  // namespace
}  // namespace pmirror::fs
