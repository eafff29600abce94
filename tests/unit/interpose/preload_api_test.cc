// SPDX-License-Identifier: BSD-3-Clause
// The functions of pmirror.h in a program under the preload library, against a fake replica that can lie.
#include "tests/unit/interpose/preload_fixture.h"

namespace pmirror::interpose {
namespace {

class PreloadApi : public PreloadTest {};

TEST_F(PreloadApi, ApiFlushesAListInOneFrameAndTellsItsErrors) {
  auto guest = Launch("api");
  guest->Expect("flushed");
  EXPECT_EQ(DataFrames(), 1u);
  EXPECT_EQ(ReplicatedAt(10, 5), "first");
  EXPECT_EQ(ReplicatedAt(3 * kPage, 6), "second");
  guest->Continue();
  guest->Expect("synced");
  EXPECT_EQ(ReplicatedAt(5 * kPage, 1), "s");
  daemon_->replica().SetScript([](const FakeReplica::Frame&) {
    return FakeReplica::Answer{FakeReplica::Reaction::kRefuse, RefusalCode::kNoSpace};
  });
  guest->Continue();
  ExpectSuccess(*guest);
}

TEST_F(PreloadApi, ApiWorksWithoutADaemon) {
  GuestProcess guest("api_without_preload", file_, {"PMIRROR_SOCKET=/nonexistent"});
  ExpectSuccess(guest);
}

TEST_F(PreloadApi, P5_VerifyFindsACopyThatDiffersAndOneThatCannotBeRead) {
  auto guest = Launch("api_verify");
  guest->Expect("verified");
  EXPECT_EQ(ReplicatedAt(3 * kPage + 5, 8), "verified");
  EXPECT_EQ(daemon_->replica().frames(FrameKind::kVerify), 1u);
  const FileId file = daemon_->IdOf("file");
  daemon_->replica().SetScript([&, file](const FakeReplica::Frame& frame) {
    if (frame.kind() == FrameKind::kVerify) {
      daemon_->replica().Spoil(file, 3 * kPage + 7);
    }
    return FakeReplica::Answer{};
  });
  guest->Continue();
  guest->Expect("damaged");
  daemon_->replica().SetScript([](const FakeReplica::Frame& frame) {
    return frame.kind() == FrameKind::kVerify
               ? FakeReplica::Answer{FakeReplica::Reaction::kRefuse, RefusalCode::kIoError}
               : FakeReplica::Answer{};
  });
  guest->Continue();
  ExpectSuccess(*guest);
}

TEST_F(PreloadApi, AFlushGroupIsOneFrameThatSaysSo) {
  std::atomic<int> groups{0};
  daemon_->replica().SetScript([&](const FakeReplica::Frame& frame) {
    groups += (frame.header.flags & kFlagGroup) != 0 ? 1 : 0;
    return FakeReplica::Answer{};
  });
  Run("api_atomic");
  EXPECT_EQ(groups, 2);
  EXPECT_EQ(ReplicatedAt(3 * kPage, 7), "and two");
}

TEST_F(PreloadApi, StructuresOfOtherSizesAreFilledAsFarAsTheyGo) { Run("api_sizes"); }

TEST_F(PreloadApi, ManyAsynchronousFlushesWaitInBoundedMemoryAndTravelTogether) {
  Start({.deadline = std::chrono::seconds(60)});
  daemon_->replica().Pause(true);
  auto guest = Launch("api_async_many");
  guest->Expect("begun");
  daemon_->replica().Pause(false);
  guest->Continue();
  ExpectSuccess(*guest);
  ExpectEqualCopies();
  EXPECT_LT(DataFrames(), 200u) << "of more than four thousand flushes";
}

TEST_F(PreloadApi, AnAsynchronousFlushTellsItsErrorToWhoeverHasTheCompletion) {
  daemon_->replica().SetScript([](const FakeReplica::Frame&) {
    return FakeReplica::Answer{FakeReplica::Reaction::kRefuse, RefusalCode::kNoSpace};
  });
  Run("api_async_fails");
}

}  // namespace
}  // namespace pmirror::interpose
