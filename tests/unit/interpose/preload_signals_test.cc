// SPDX-License-Identifier: BSD-3-Clause
// SIGBUS and syncs in signal handlers, and the optimized flushes, of programs under the preload library.
#include <csignal>

#include "tests/unit/interpose/preload_fixture.h"

namespace pmirror::interpose {
namespace {

using local::RequestKind;

class PreloadSignals : public PreloadTest {};

TEST_F(PreloadSignals, ProgramSeesItsOwnDisposition) { Run("disposition"); }

TEST_F(PreloadSignals, FaultReachesTheProgramsHandler) { Run("own_fault"); }

TEST_F(PreloadSignals, UnhandledFaultKills) {
  const int status = Launch("unhandled_fault")->Wait();
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS) << status;
}

TEST_F(PreloadSignals, SigbusThatIsSentKills) {
  const int status = Launch("sent_sigbus")->Wait();
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS) << status;
}

TEST_F(PreloadSignals, Trap8TruncationUnderACopyIsNoFault) { Run("truncate_before_sync"); }

TEST_F(PreloadSignals, Trap15FsyncInAHandlerThatInterruptedASync) {
  daemon_->replica().Pause(true);
  auto guest = Launch("fsync_in_handler");
  guest->Expect("syncing");
  ASSERT_TRUE(daemon_->WaitFor([&] { return daemon_->Count(RequestKind::kOpenSession) == 1; }));
  ASSERT_EQ(::kill(guest->pid(), SIGUSR1), 0);
  daemon_->replica().Pause(false);
  ExpectSuccess(*guest);
  ExpectEqualCopies();
}

class PreloadPmem : public PreloadTest {
 protected:
  std::unique_ptr<GuestProcess> LaunchPmem(const std::string& command) {
    return Launch(command, {"PMEM_IS_PMEM_FORCE=1", "PMEM2_FORCE_GRANULARITY=CACHE_LINE"});
  }
};

TEST_F(PreloadPmem, P6_ACutThatWasAbsorbedIsToldToTheDaemon) {
  std::atomic<int> cuts{1};
  std::atomic<uint64_t> reconnects{0};
  daemon_->replica().SetScript([&](const FakeReplica::Frame& frame) {
    const bool cut = frame.kind() == FrameKind::kDataImage && cuts-- > 0;
    return FakeReplica::Answer{cut ? FakeReplica::Reaction::kCut : FakeReplica::Reaction::kApply};
  });
  daemon_->OnRequest(RequestKind::kReport, [&](pid_t, const local::Request& request) {
    reconnects +=
        request.report == static_cast<uint32_t>(local::ReportKind::kReconnected) ? request.value : 0;
  });
  auto guest = LaunchPmem("persist_one");
  guest->Expect("persisted");
  guest->Continue();
  ExpectSuccess(*guest);
  EXPECT_EQ(ReplicatedAt(kPage + 13, 9), "persisted");
  EXPECT_EQ(reconnects, 1u);
}

TEST_F(PreloadPmem, PersistSendsItsWordsInOneFrame) {
  std::atomic<uint64_t> payload{0};
  daemon_->replica().SetScript([&](const FakeReplica::Frame& frame) {
    payload += frame.payload.size();
    return FakeReplica::Answer{};
  });
  auto guest = LaunchPmem("persist_one");
  guest->Expect("persisted");
  EXPECT_EQ(ReplicatedAt(kPage + 13, 9), "persisted");
  EXPECT_EQ(DataFrames(), 1u);
  EXPECT_EQ(payload, 16u);
  guest->Continue();
  ExpectSuccess(*guest);
}

TEST_F(PreloadPmem, FlushesAndADrainAreOneFrame) {
  auto guest = LaunchPmem("flushes_and_drain");
  guest->Expect("flushed");
  EXPECT_EQ(DataFrames(), 0u);
  guest->Continue();
  guest->Expect("drained");
  EXPECT_EQ(DataFrames(), 1u);
  ExpectEqualCopies();
  guest->Continue();
  ExpectSuccess(*guest);
}

TEST_F(PreloadPmem, MoreFlushesThanTheListHoldsAreAllDurable) {
  auto guest = LaunchPmem("more_flushes_than_fit");
  ExpectSuccess(*guest);
  ExpectEqualCopies();
}

TEST_F(PreloadPmem, CopiesFlushAndDrainAsTheySay) {
  auto guest = LaunchPmem("copies");
  guest->Expect("three");
  EXPECT_EQ(DataFrames(), 3u);
  EXPECT_EQ(ReplicatedAt(200, 20), std::string(20, 'b'));
  guest->Continue();
  guest->Expect("four");
  EXPECT_EQ(DataFrames(), 4u);
  EXPECT_EQ(ReplicatedAt(kPage, 3), "two");
  EXPECT_EQ(ReplicatedAt(2 * kPage, 5), "flags");
  EXPECT_EQ(ReplicatedAt(3 * kPage, 9), std::string(9, '\0'));
  guest->Continue();
  ExpectSuccess(*guest);
  EXPECT_EQ(ReplicatedAt(3 * kPage, 9), std::string(9, 'd'));
  ExpectEqualCopies();
}

TEST_F(PreloadPmem, FailedVoidFlushRaisesSigbus) {
  daemon_->replica().SetScript([](const FakeReplica::Frame&) {
    return FakeReplica::Answer{FakeReplica::Reaction::kRefuse, RefusalCode::kNoSpace};
  });
  const int status = LaunchPmem("failing_flush")->Wait();
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS) << status;
}

TEST_F(PreloadPmem, FunctionsOfLibpmem2AreReplicated) {
  auto guest = LaunchPmem("pmem2");
  guest->Expect("stored");
  EXPECT_EQ(ReplicatedAt(0, 7), "persist");
  EXPECT_EQ(ReplicatedAt(kPage, 15), "flush and drain");
  EXPECT_EQ(ReplicatedAt(2 * kPage, 6), "memcpy");
  EXPECT_EQ(ReplicatedAt(3 * kPage, 7), "memmove");
  EXPECT_EQ(ReplicatedAt(4 * kPage, 7), "sssssss");
  EXPECT_EQ(ReplicatedAt(5 * kPage, 1), "e");
  guest->Continue();
  ExpectSuccess(*guest);
}

}  // namespace
}  // namespace pmirror::interpose
