// SPDX-License-Identifier: BSD-3-Clause
// Replication::Replicate while the in-sync set is not whole, or moves: whom it sends to, whom it waits for, and when it may succeed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "replication/replicate.h"
#include "tests/unit/replication/replication_rig.h"

namespace pmirror {
namespace {

using Answer = FakeReplica::Answer;
using Frame = FakeReplica::Frame;
using Reaction = FakeReplica::Reaction;
using testing::ElementsAre;

constexpr FileId kFile = ReplicationRig::kFile;

std::vector<std::byte> Bytes(size_t count, uint8_t value) {
  return std::vector<std::byte>(count, std::byte{value});
}

TEST(ReplicateSet, Trap16_AMemberThatJoinsDuringTheSyncHasTheBytesBeforeItReturns) {
  ReplicationRig rig(2);
  rig.page.on_loss = static_cast<uint32_t>(OnLoss::kProceed);
  rig.Fill(6);
  rig.SetMembers(0b01, 0, 1);
  rig.replicas[0]->SetScript([&](const Frame&) {
    rig.SetMembers(0b01, 0b10, 2);
    return Answer{};
  });
  ASSERT_TRUE(rig.Replicate({{0, 64}}).ok());
  EXPECT_EQ(rig.replicas[1]->Image(kFile), Bytes(64, 6));
  EXPECT_EQ(rig.replicas[0]->frames(FrameKind::kDataImage), 1U);  // who has it is not asked again
}

TEST(ReplicateSet, Trap16_AMemberThatLeavesDuringTheSyncIsNotWaitedFor) {
  ReplicationRig rig(2);
  rig.page.on_loss = static_cast<uint32_t>(OnLoss::kProceed);
  rig.replicas[1]->SetScript([&](const Frame&) {
    rig.SetMembers(0b01, 0, 2);
    return Answer{.reaction = Reaction::kNoAnswer};
  });
  ASSERT_TRUE(rig.Replicate({{0, 64}}).ok());
  EXPECT_EQ(rig.replicas[0]->frames(FrameKind::kDataImage), 1U);
}

TEST(ReplicateSet, Trap16_AReplicaThatMayHaveLeftAndComeBackIsAskedAgain) {
  ReplicationRig rig(1);
  rig.replicas[0]->SetScript([&](const Frame& frame) {
    if (frame.header.order == 1) {
      rig.SetMembers(0b01, 0, 3);
    }
    return Answer{};
  });
  ASSERT_TRUE(rig.Replicate({{0, 64}}).ok());
  EXPECT_THAT(rig.replicas[0]->orders(kFile), ElementsAre(1, 2));
}

TEST(ReplicateSet, Trap16_TheSecondReplicaLostKeepsTheSyncWaitingButTheFirstHasTheBytesAtOnce) {
  ReplicationRig rig(2);
  rig.page.on_loss = static_cast<uint32_t>(OnLoss::kFail);
  rig.page.deadline_ns = ReplicationRig::kShort;
  rig.replicas[1]->SetConnectError(EHOSTUNREACH);
  EXPECT_EQ(rig.Replicate({{0, 64}}).code, EIO);
  EXPECT_EQ(rig.replicas[0]->frames(FrameKind::kDataImage), 1U);
}

TEST(ReplicateSet, P1_UnderSuspendNothingSucceedsWhileAReplicaIsOnlyJoining) {
  ReplicationRig rig(2);
  rig.page.deadline_ns = ReplicationRig::kShort;
  rig.page.suspend_ns = ReplicationRig::kShort;
  rig.Fill(7);
  rig.SetMembers(0b01, 0b10, 1);
  EXPECT_EQ(rig.Replicate({{0, 64}}).code, EIO);
  EXPECT_EQ(rig.replicas[1]->Image(kFile), Bytes(64, 7));  // it was sent the bytes all the same
}

TEST(ReplicateSet, P1_UnderSuspendASyncThatWaitsSucceedsWhenTheJoinerBecomesAMember) {
  ReplicationRig rig(2);
  rig.SetMembers(0b01, 0b10, 1);
  rig.replicas[1]->SetScript([&](const Frame&) {
    rig.SetMembers(0b11, 0, 2);
    return Answer{};
  });
  EXPECT_TRUE(rig.Replicate({{0, 64}}).ok());
  EXPECT_EQ(rig.replicas[1]->frames(FrameKind::kDataImage), 1U);
}

TEST(ReplicateSet, P6_UnderProceedASyncSucceedsWithoutAnyReplicaOnceItIsLocal) {
  ReplicationRig rig(2);
  rig.page.on_loss = static_cast<uint32_t>(OnLoss::kProceed);
  rig.SetMembers(0, 0, 1);
  CountingPersist local;
  EXPECT_TRUE(rig.Replicate({{0, 64}}, WaitLevel::kDurable, &local).ok());
  EXPECT_EQ(local.calls, 1);
  EXPECT_EQ(rig.replicas[0]->connects() + rig.replicas[1]->connects(), 0U);
}

TEST(ReplicateSet, P6_UnderProceedAMemberThatIsSilentIsWaitedForUntilTheDaemonDropsIt) {
  ReplicationRig rig(1);
  rig.page.on_loss = static_cast<uint32_t>(OnLoss::kProceed);
  rig.page.deadline_ns = ReplicationRig::kShort;
  rig.replicas[0]->SetScript([](const Frame&) { return Answer{.reaction = Reaction::kNoAnswer}; });
  std::thread daemon([&] {
    rig.replicas[0]->WaitFor(
        [](const FakeReplica& replica) { return replica.frames(FrameKind::kDataImage) > 0; });
    rig.SetMembers(0, 0, 2);
  });
  EXPECT_TRUE(rig.Replicate({{0, 64}}).ok());
  daemon.join();
}

TEST(ReplicateSet, WhatIsSentToASingleReplicaGoesToNoOther) {
  ReplicationRig rig(2);
  rig.Fill(8);
  Replication only(rig.page, rig.sessions, *rig.pool, rig.observer, 1);
  const Extent extent{0, 64};
  rig.SetMembers(0b01, 0b10, 1);
  ASSERT_TRUE(only.Replicate(rig.target(), {&extent, 1}, rig.source, WaitLevel::kReceived, nullptr).ok());
  EXPECT_EQ(rig.replicas[1]->Image(kFile), Bytes(64, 8));
  EXPECT_EQ(rig.replicas[0]->connects(), 0U);
  rig.SetMembers(0b01, 0, 2);  // it has left: nobody to send to is no failure
  EXPECT_TRUE(only.Replicate(rig.target(), {&extent, 1}, rig.source, WaitLevel::kReceived, nullptr).ok());
}

TEST(ReplicateSet, P2_WhoLeavesTheSetBeforeTheCopyGetsNothingOfIt) {
  class Leaving : public MemorySource {
   public:
    explicit Leaving(ReplicationRig& rig) : MemorySource(4096), rig_(rig) {}
    Result<size_t> Copy(Extent extent, std::span<std::byte> out) override {
      rig_.SetMembers(0b01, 0, 2);
      return MemorySource::Copy(extent, out);
    }

   private:
    ReplicationRig& rig_;
  };
  ReplicationRig rig(2);
  rig.page.on_loss = static_cast<uint32_t>(OnLoss::kProceed);
  Leaving source(rig);
  const Extent extent{0, 64};
  ASSERT_TRUE(
      rig.replication->Replicate(rig.target(), {&extent, 1}, source, WaitLevel::kDurable, nullptr).ok());
  EXPECT_EQ(rig.replicas[0]->frames(FrameKind::kDataImage), 1U);
  EXPECT_EQ(rig.replicas[1]->frames(FrameKind::kDataImage), 0U);
}

TEST(ReplicateSet, AnEmptySetIsALossAndNoSuccess) {
  ReplicationRig rig(1);
  rig.page.on_loss = static_cast<uint32_t>(OnLoss::kFail);
  rig.page.deadline_ns = ReplicationRig::kShort;
  rig.SetMembers(0, 0, 1);
  EXPECT_EQ(rig.Replicate({{0, 64}}).code, EIO);
}

}  // namespace
}  // namespace pmirror
