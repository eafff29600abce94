// SPDX-License-Identifier: BSD-3-Clause
// fork, exec, exit, threads and descriptors of programs under the preload library.
#include <unistd.h>

#include <set>

#include "tests/unit/interpose/preload_fixture.h"

namespace pmirror::interpose {
namespace {

using local::RequestKind;

class PreloadProcess : public PreloadTest {};

class PreloadFork : public PreloadTest, public ::testing::WithParamInterface<const char*> {};

TEST_P(PreloadFork, Trap6ChildSyncsItsOwnStoresAndTakesNoneOfTheParents) {
  auto guest = Launch(GetParam());
  guest->Expect("child done");
  EXPECT_EQ(ReplicatedAt(2 * kPage, 12), "by the child");
  const std::vector<pid_t> processes = daemon_->Processes();
  ASSERT_EQ(processes.size(), 2u);
  EXPECT_NE(processes[0], processes[1]);
  if (GetParam() != std::string("clone")) {  // which is noticed late, and then sends whole mappings
    EXPECT_EQ(ReplicatedAt(kPage, 4), std::string(4, '\0'));  // nobody has synced that yet
  }
  guest->Continue();
  ExpectSuccess(*guest);
  EXPECT_EQ(ReplicatedAt(kPage, 13), "by the parent");
  ExpectEqualCopies();
}
INSTANTIATE_TEST_SUITE_P(Ways, PreloadFork, ::testing::Values("fork", "_Fork", "clone"));

TEST_F(PreloadProcess, P9_AProgramThatMustBeReplicatedDoesNotStartWithoutItsDaemonAndSaysWhy) {
  daemon_->Refuse(RequestKind::kHello, EACCES);
  auto guest = Launch("grandchild", {"PMIRROR_REQUIRED=1"});
  const int status = guest->Wait();
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 1) << status;
  EXPECT_NE(guest->complaints().find("was not started"), std::string::npos) << guest->complaints();
  EXPECT_EQ(daemon_->Count(RequestKind::kMapped), 0u);
}

TEST_F(PreloadProcess, ChildrenOfAProgramThatMustBeReplicatedStartAsEver) {
  ExpectSuccess(*Launch("spawn_things", {"PMIRROR_REQUIRED=1"}));
}

TEST_F(PreloadProcess, GrandchildIsAProcessOfItsOwn) {
  Run("grandchild");
  EXPECT_EQ(daemon_->Processes().size(), 3u);
  EXPECT_EQ(ReplicatedAt(0, 5), "child");
  EXPECT_EQ(ReplicatedAt(kPage, 10), "grandchild");
}

TEST_F(PreloadProcess, ChildIsAnnouncedBeforeItMaps) {
  Run("child_maps_itself");
  EXPECT_EQ(daemon_->Processes().size(), 2u);
  EXPECT_EQ(ReplicatedAt(0, 24), "first mapping of a child");
}

TEST_F(PreloadProcess, MappingsThatForkLeavesOutAreNotTheChilds) {
  Run("dont_fork");
  EXPECT_EQ(daemon_->Count(RequestKind::kMapped), 1u);
  EXPECT_EQ(ReplicatedAt(0, 6), "parent");
}

TEST_F(PreloadProcess, SpawnPopenAndVforkWork) {
  Run("spawn_things");
  EXPECT_EQ(ReplicatedAt(0, 6), "before");
  EXPECT_EQ(ReplicatedAt(kPage, 5), "after");
  EXPECT_TRUE(daemon_->HandedOver().empty());  // a child of vfork gives nothing of its parent's away
}

TEST_F(PreloadProcess, ExecHandsOverAndAFailedOneBreaksNothing) {
  auto guest = Launch("exec_hands_over");
  guest->Expect("failed");
  EXPECT_EQ(daemon_->HandedOver(), (std::vector<Extent>{{4 * kPage, kPage}}));
  EXPECT_EQ(daemon_->Mappings().size(), 1u);
  guest->Continue();
  ExpectSuccess(*guest);
  EXPECT_EQ(ReplicatedAt(5 * kPage, 10), "still here");
  EXPECT_EQ(daemon_->HandedOver().back(), (Extent{6 * kPage, kPage}));
  EXPECT_TRUE(daemon_->Mappings().empty());
}

class AnotherDaemon : public PreloadTest {
 protected:
  AnotherDaemon() {
    Start({.on_loss = OnLoss::kSuspend,
           .deadline = std::chrono::milliseconds(200),
           .suspend = std::chrono::minutes(1)});
    guest_ = Launch("sync_over_another_daemon");
    guest_->Expect("stored");
    daemon_->Stop();
  }
  void ExpectJoined() {
    guest_->Expect("synced");
    EXPECT_EQ(ReplicatedAt(kPage, 6), "during");
    EXPECT_EQ(daemon_->Mappings().size(), 1u);
    EXPECT_EQ(daemon_->Count(RequestKind::kRejoined), 1u);
    guest_->Continue();
    ExpectSuccess(*guest_);
    EXPECT_EQ(ReplicatedAt(2 * kPage, 5), "after");
    EXPECT_EQ(ReplicatedAt(3 * kPage, 12), "by the child");
    ExpectEqualCopies();
  }

  std::unique_ptr<GuestProcess> guest_;
};

TEST_F(AnotherDaemon, P3_IsJoinedByTheNextSync) {
  daemon_->StartAgain();
  guest_->Continue();
  ExpectJoined();
}

TEST_F(AnotherDaemon, P6_IsWaitedForAsAReplicaWouldBe) {
  guest_->Continue();
  // Sleep because: the deadline has to pass while nobody is there to tell of it.
  ::usleep(500'000);
  daemon_->StartAgain();
  ExpectJoined();
}

TEST_F(AnotherDaemon, IsAskedAgainForAFileThatItDoesNotServeAtOnce) {
  daemon_->Refuse(RequestKind::kOpenBacking, EBUSY);
  daemon_->StartAgain();
  guest_->Continue();
  EXPECT_TRUE(daemon_->WaitFor([&] { return daemon_->Count(RequestKind::kOpenBacking) >= 3; }));
  EXPECT_EQ(daemon_->Count(RequestKind::kRejoined), 0u);
  daemon_->Refuse(RequestKind::kOpenBacking, 0);
  ExpectJoined();
}

TEST_F(AnotherDaemon, ThatIsInTheMiddleOfItsStartIsTriedAgain) {
  daemon_->Refuse(RequestKind::kHello, EAGAIN);
  daemon_->StartAgain();
  guest_->Continue();
  EXPECT_TRUE(daemon_->WaitFor([&] { return daemon_->Count(RequestKind::kHello) >= 3; }));
  daemon_->Refuse(RequestKind::kHello, 0);
  ExpectJoined();
}

class PreloadExit : public PreloadTest,
                    public ::testing::WithParamInterface<std::pair<const char*, size_t>> {};

TEST_P(PreloadExit, HandsOverWhatIsDirty) {
  Run(GetParam().first);
  EXPECT_EQ(daemon_->HandedOver(), (std::vector<Extent>{{GetParam().second * kPage, kPage}}));
  EXPECT_TRUE(daemon_->Mappings().empty());
}
INSTANTIATE_TEST_SUITE_P(Ways, PreloadExit,
                         ::testing::Values(std::pair("dirty_at_exit", 1),
                                           std::pair("dirty_in_exit_handler", 2),
                                           std::pair("dirty_at_underscore_exit", 3),
                                           std::pair("dirty_at_quick_exit", 4)));

TEST_F(PreloadProcess, Trap17SetuidKeepsTracking) {
  if (::getuid() != 0) {
    GTEST_SKIP() << "needs root";
  }
  std::atomic<uint64_t> payload{0};
  daemon_->replica().SetScript([&](const FakeReplica::Frame& frame) {
    payload += frame.payload.size();
    return FakeReplica::Answer{};
  });
  auto guest = Launch("sync_after_setuid");
  guest->Expect("once");
  payload = 0;
  guest->Continue();
  ExpectSuccess(*guest);
  EXPECT_EQ(payload, kPage);
}

class Trap14 : public PreloadTest, public ::testing::WithParamInterface<const char*> {};

TEST_P(Trap14, ProgramThatTakesEveryDescriptorStillSyncs) {
  Run(GetParam());
  ExpectEqualCopies();
}
INSTANTIATE_TEST_SUITE_P(Programs, Trap14,
                         ::testing::Values("close_each", "closefrom", "close_range", "dup2_over_all",
                                           "numbers_are_high", "few_descriptors"));

TEST_F(PreloadProcess, ManyThreadsSyncTheSamePages) {
  Run("many_sync");
  ExpectEqualCopies();
}

TEST_F(PreloadProcess, ThreadsSyncWhileOthersMapAndUnmap) { Run("sync_beside_mapping"); }

TEST_F(PreloadProcess, ThreadsSyncWhileOthersFork) { Run("sync_beside_forking"); }

TEST_F(PreloadProcess, UnmappingUnderASyncIsNoFault) { Run("unmap_under_sync"); }

TEST_F(PreloadProcess, WordsAreNeverTorn) {
  std::atomic<int> torn{0};
  daemon_->replica().SetScript([&](const FakeReplica::Frame& frame) {
    for (size_t i = 0; i + 8 <= frame.payload.size(); i += 8) {
      for (size_t j = 1; j < 8; ++j) {
        torn += frame.payload[i + j] != frame.payload[i] ? 1 : 0;
      }
    }
    return FakeReplica::Answer{};
  });
  auto guest = Launch("words_while_syncing");
  guest->Expect("synced");
  guest->Continue();
  ExpectSuccess(*guest);
  EXPECT_EQ(torn, 0);
}

TEST_F(PreloadProcess, Trap15CancellationInASyncLeavesNothingLocked) {
  daemon_->replica().Pause(true);
  auto guest = Launch("cancel_in_sync");
  guest->Expect("syncing");
  ASSERT_TRUE(daemon_->WaitFor([&] { return daemon_->Count(RequestKind::kOpenSession) == 1; }));
  guest->Continue();
  guest->Expect("cancelled");
  daemon_->replica().Pause(false);
  ExpectSuccess(*guest);
  ExpectEqualCopies();
}

}  // namespace
}  // namespace pmirror::interpose
