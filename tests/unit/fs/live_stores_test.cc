// SPDX-License-Identifier: BSD-3-Clause
// What is on its way to a replica while nothing is frozen: no moment of a write, a truncate or a change of the tree is taken for a clean one.
#include "fs/live_stores.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <string>

#include "tests/unit/fs/engine_fixture.h"

namespace pmirror::fs {
namespace {

constexpr Extent kPage{0, 4096};

class LiveStoresTest : public VolumeReplicatorTest {
 protected:
  void Begin(OnLoss on_loss = OnLoss::kFail, nanoseconds deadline = seconds(20)) {
    Start(on_loss, deadline, seconds(60));
    set_ = std::make_unique<InSyncSet>(*page_);
    stores_of_replica_ = std::make_unique<LiveStores>(0, *engine_, *set_, nullptr, deadline);
  }
  // 1 dirty, 0 clean, else the negative code of the error.
  int Dirty() {
    const absl::StatusOr<std::vector<bool>> dirty = stores_of_replica_->Dirty(kFile, {&kPage, 1});
    return dirty.ok() ? static_cast<int>(dirty->front()) : -static_cast<int>(dirty.status().code());
  }
  static constexpr int kUnavailable = -static_cast<int>(absl::StatusCode::kUnavailable);
  static constexpr int kAborted = -static_cast<int>(absl::StatusCode::kAborted);

  std::unique_ptr<InSyncSet> set_;
  std::unique_ptr<LiveStores> stores_of_replica_;
};

TEST_F(LiveStoresTest, P5_AWriteIsDirtyFromBeforeItsLocalChangeUntilItHasArrived) {
  Begin();
  EXPECT_EQ(Dirty(), 0);
  engine_->BeginWrite(file_.get());
  EXPECT_EQ(Dirty(), 1) << "it may change the file at any time";
  ASSERT_EQ(::pwrite(backing_.get(), "bytes", 5, 0), 5);
  EXPECT_EQ(Dirty(), 1) << "changed here, and nothing captured yet";
  ASSERT_EQ(engine_->Written(*file_, {0, 5}), 0);
  engine_->EndWrite(file_.get());
  EXPECT_EQ(Dirty(), 0);
}

TEST_F(LiveStoresTest, P5_AWriteThatCouldNotBeReplicatedStaysDirty) {
  Begin(OnLoss::kFail, milliseconds(100));
  replica().SetConnectError(ECONNREFUSED);
  EXPECT_EQ(Write(0, "lost"), EIO);
  EXPECT_EQ(Dirty(), 1);
  EXPECT_TRUE(absl::IsUnavailable(stores_of_replica_->Flush(kFile, kPage)));
  EXPECT_EQ(Dirty(), 1);
  replica().SetConnectError(0);
  EXPECT_TRUE(stores_of_replica_->Flush(kFile, kPage).ok());
  EXPECT_EQ(Dirty(), 0);
  EXPECT_EQ(Replicated(0, 4), "lost");
}

TEST_F(LiveStoresTest, P5_ASizeOperationIsDirtyFromBeforeItsLocalChangeUntilItHasArrived) {
  Begin();
  bool seen_in_change = false;
  ASSERT_EQ(engine_->ChangeSize(*file_,
                                [&](NamespaceOp& op) {
                                  // As the check sees it before it waits for the tree to rest.
                                  seen_in_change = engine_->Dirty(*file_, kPage);
                                  EXPECT_EQ(::ftruncate(backing_.get(), 100), 0);
                                  op.kind = OpKind::kTruncate;
                                  op.target = kFile;
                                  op.extent = {100, 0};
                                  return 0;
                                }),
            0);
  EXPECT_TRUE(seen_in_change);
  EXPECT_EQ(Dirty(), 0);
}

TEST_F(LiveStoresTest, P5_WhatTheLogHoldsAndTheReplicaLacksIsNoCleanMoment) {
  Begin(OnLoss::kFail, milliseconds(100));
  replica().SetConnectError(ECONNREFUSED);
  EXPECT_EQ(Truncate(100), EIO);
  file_.reset();  // nobody has it open any more
  EXPECT_EQ(Dirty(), kUnavailable);
  replica().SetConnectError(0);
  EXPECT_EQ(Dirty(), 0);
  EXPECT_EQ(replica().frames(FrameKind::kNamespaceOp), 1U);
}

TEST_F(LiveStoresTest, WhatAProgramStoredIsBroughtOverAndNobodyIsToldThatItWaits) {
  Begin(OnLoss::kSuspend, milliseconds(50));
  ASSERT_EQ(::pwrite(backing_.get(), "stored", 6, 0), 6);
  stores_.stored = {0, 6};
  EXPECT_EQ(Dirty(), 1);
  replica().SetConnectError(ECONNREFUSED);
  EXPECT_TRUE(absl::IsUnavailable(stores_of_replica_->Flush(kFile, kPage)))
      << "at the deadline, whatever the policy";
  EXPECT_EQ(engine_->counters().suspended, 0U);
  EXPECT_EQ(Dirty(), 1) << "it is the volume's now";
  replica().SetConnectError(0);
  ASSERT_TRUE(stores_of_replica_->Flush(kFile, kPage).ok());
  EXPECT_EQ(Replicated(0, 6), "stored");
  EXPECT_EQ(Dirty(), 0);
}

TEST_F(LiveStoresTest, P5_NothingIsSaidOfAReplicaThatHasLeftAndComeBackMeanwhile) {
  Begin(OnLoss::kProceed);
  ASSERT_TRUE(set_->Leave(0));
  set_->Join(0);
  ASSERT_TRUE(set_->Admit(0));
  EXPECT_EQ(Dirty(), kAborted);
  EXPECT_TRUE(absl::IsAborted(stores_of_replica_->Flush(kFile, kPage)));
}

}  // namespace
}  // namespace pmirror::fs
