// SPDX-License-Identifier: BSD-3-Clause
// Flush and verify against fake replicas: equal copies, spoilt ones, newer captures of others, and cuts.
#include "replication/verify.h"

#include <gtest/gtest.h>
#include <sys/uio.h>

#include <thread>

#include "replication/crc32c.h"
#include "tests/unit/replication/replication_rig.h"

namespace pmirror {
namespace {

using Answer = FakeReplica::Answer;
using Frame = FakeReplica::Frame;
using Reaction = FakeReplica::Reaction;
using Verdict = VerifyResult::Verdict;

constexpr FileId kFile = ReplicationRig::kFile;

// A capture with its checksums, and the question for it.
struct VerifyRig : ReplicationRig {
  explicit VerifyRig(size_t replica_count) : ReplicationRig(replica_count) {
    for (size_t i = 0; i < source.memory.size(); ++i) {
      source.memory[i] = static_cast<std::byte>(i * 7 + i / 256);
    }
  }

  void Capture(std::vector<Extent> wanted) {
    extents = std::move(wanted);
    checksummed = std::make_unique<ChecksummedSource>(source, extents);
    CaptureTarget at = target();
    at.taken = &order_taken;
    ASSERT_TRUE(replication->Replicate(at, extents, *checksummed, WaitLevel::kDurable, nullptr).ok());
  }
  Error Ask() {
    return Verify(page, sessions, observer,
                  {.file = kFile, .order = order_taken, .copied = checksummed->copied()}, result);
  }

  std::vector<Extent> extents;
  std::unique_ptr<ChecksummedSource> checksummed;
  uint64_t order_taken = 0;
  VerifyResult result;
};

TEST(Verify, EqualCopiesOfSeveralRangesAndFramesAreFoundEqualOnEveryMember) {
  VerifyRig rig(2);
  rig.source.memory.resize(1 << 20);
  rig.Capture({{8, 8}, {4096, 700 << 10}, {900 << 10, 64}});  // the second takes several frames
  ASSERT_TRUE(rig.Ask().ok());
  EXPECT_EQ(rig.result.verdict, Verdict::kEqual);
  for (const auto& replica : rig.replicas) {
    EXPECT_EQ(replica->frames(FrameKind::kVerify), 1U);
  }
  rig.ExpectNoFaults();
}

TEST(Verify, P5_AByteThatDiffersIsFoundWithItsRangeAndReplica) {
  VerifyRig rig(2);
  rig.Capture({{0, 64}, {4096, 64}});
  rig.replicas[1]->Spoil(kFile, 4096 + 63);
  ASSERT_TRUE(rig.Ask().ok());
  EXPECT_EQ(rig.result.verdict, Verdict::kDiffers);
  EXPECT_EQ(rig.result.replica, 1U);
  EXPECT_EQ(rig.result.extent, (Extent{4096, 64}));
}

TEST(Verify, ANewerCaptureOfOthersIsNoAlarm) {
  VerifyRig rig(1);
  rig.Capture({{0, 64}});
  rig.source.memory[5] ^= std::byte{1};
  ASSERT_TRUE(rig.Replicate({{0, 8}}).ok());
  ASSERT_TRUE(rig.Ask().ok());
  EXPECT_EQ(rig.result.verdict, Verdict::kAgain);
  rig.Capture({{0, 64}});
  ASSERT_TRUE(rig.Ask().ok());
  EXPECT_EQ(rig.result.verdict, Verdict::kEqual);
}

TEST(Verify, StoresAfterTheCaptureAreNoAlarm) {
  VerifyRig rig(1);
  rig.Capture({{0, 64}});
  rig.source.memory[5] ^= std::byte{1};  // stored, and not synced
  ASSERT_TRUE(rig.Ask().ok());
  EXPECT_EQ(rig.result.verdict, Verdict::kEqual);
}

TEST(Verify, BytesThatTheFileDidNotHaveAreNotAskedFor) {
  VerifyRig rig(1);
  rig.source.memory.resize(100);
  rig.Capture({{64, 64}, {4096, 8}});
  ASSERT_TRUE(rig.Ask().ok());
  EXPECT_EQ(rig.result.verdict, Verdict::kEqual);
}

TEST(Verify, ACutIsAskedAgainAndASilentReplicaFailsInTime) {
  VerifyRig rig(1);
  rig.Capture({{0, 64}});
  rig.replicas[0]->SetScript([cuts = 1](const Frame& frame) mutable {
    return frame.kind() == FrameKind::kVerify && cuts-- > 0 ? Answer{.reaction = Reaction::kCut} : Answer{};
  });
  ASSERT_TRUE(rig.Ask().ok());
  EXPECT_EQ(rig.result.verdict, Verdict::kAgain);
  ASSERT_TRUE(rig.Ask().ok());
  EXPECT_EQ(rig.result.verdict, Verdict::kEqual);
  rig.page.deadline_ns = rig.page.suspend_ns = ReplicationRig::kShort;
  rig.replicas[0]->SetScript([](const Frame&) { return Answer{.reaction = Reaction::kNoAnswer}; });
  EXPECT_EQ(rig.Ask().code, EIO);
  EXPECT_EQ(rig.result.replica, 0U);
  EXPECT_EQ(rig.observer.failed, 1);
}

TEST(Verify, AReplicaThatCannotReadItsFileIsAnError) {
  VerifyRig rig(1);
  rig.Capture({{0, 64}});
  rig.replicas[0]->SetScript([](const Frame& frame) {
    return frame.kind() == FrameKind::kVerify
               ? Answer{.reaction = Reaction::kRefuse, .code = RefusalCode::kIoError}
               : Answer{};
  });
  EXPECT_EQ(rig.Ask().code, EIO);
  EXPECT_EQ(rig.result.replica, 0U);
}

TEST(Verify, AnAcknowledgementWithoutAnAnswerIsNoSuccess) {
  VerifyRig rig(1);
  rig.Capture({{0, 64}});
  rig.replicas[0]->SetScript([](const Frame& frame) {
    return frame.kind() == FrameKind::kVerify ? Answer{.reaction = Reaction::kNoAnswer} : Answer{};
  });
  std::thread other([&] {  // its acknowledgement covers the verify, too
    rig.replicas[0]->WaitFor([](const FakeReplica& r) { return r.frames(FrameKind::kVerify) == 1; });
    EXPECT_TRUE(rig.Replicate({}).ok());
  });
  EXPECT_EQ(rig.Ask().code, EPROTO);
  other.join();
}

TEST(Verify, NobodyInSyncIsSaid) {
  VerifyRig rig(1);
  rig.Capture({{0, 64}});
  rig.SetMembers(0, 1, 2);
  ASSERT_TRUE(rig.Ask().ok());
  EXPECT_EQ(rig.result.verdict, Verdict::kNobody);
}

TEST(Verify, MoreThanOneFrameNamesIsRefused) {
  VerifyRig rig(1);
  const CopiedExtent large{.extent = {0, kMaxVerifyBytes + 1}, .crc = 0};
  const VerifyRequest request{.file = kFile, .order = 1, .copied = {&large, 1}};
  EXPECT_EQ(Verify(rig.page, rig.sessions, rig.observer, request, rig.result).code, E2BIG);
}

}  // namespace
}  // namespace pmirror
