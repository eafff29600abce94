// SPDX-License-Identifier: BSD-3-Clause
// The parts of the primary's engine that need neither network nor mount.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <latch>
#include <random>
#include <thread>
#include <utility>

#include "fs/copy_decision.h"
#include "fs/extent_set.h"
#include "fs/in_sync_set.h"
#include "fs/operation_log.h"
#include "fs/shared_object.h"
#include "fs/sync_rounds.h"
#include "fs/volume_page_owner.h"

namespace pmirror::fs {
namespace {

TEST(CopyDecision, TwoEmptyCopiesBeginTogetherAndAnEmptyOneBesideDataHasToBeFilled) {
  const CopyHistory blank{.empty = true};
  EXPECT_EQ(Decide({.empty = true}, {.mount_number = 1}, blank), CopyDecision::kNew);
  EXPECT_EQ(Decide({.empty = false}, {.mount_number = 1}, blank), CopyDecision::kNeedsCopy);
  EXPECT_EQ(Decide({.empty = true}, {.mount_number = 1}, {.empty = false}), CopyDecision::kForeign);
}

TEST(CopyDecision, P5_OnlyACleanEndAtTheSameOperationOfTheSameMountContinues) {
  const CopyHistory end{.generation = 9, .mount_number = 3, .operation = 70, .clean = true};
  const RunningMount mount{.mount_number = 4};
  EXPECT_EQ(Decide(end, mount, end), CopyDecision::kContinue);
  CopyHistory other = end;
  other.clean = false;
  EXPECT_EQ(Decide(end, mount, other), CopyDecision::kNeedsCompare);
  EXPECT_EQ(Decide(other, mount, end), CopyDecision::kNeedsCompare);
  other = end;
  other.operation = 69;
  EXPECT_EQ(Decide(end, mount, other), CopyDecision::kNeedsCompare);
  other = end;
  other.mount_number = 2;
  EXPECT_EQ(Decide(end, mount, other), CopyDecision::kNeedsCompare);
  other = end;
  other.generation = 8;
  EXPECT_EQ(Decide(end, mount, other), CopyDecision::kForeign);
}

TEST(CopyDecision, P5_AMemberThatComesBackEmptyOrOlderIsNotTakenForNewOrClean) {
  const CopyHistory blank{.empty = true};
  const CopyHistory primary{
      .generation = 9, .mount_number = 3, .operation = 70, .clean = true, .empty = true};
  RunningMount mount{.mount_number = 4, .last = 80, .replica_took_part = true};
  EXPECT_EQ(Decide(primary, mount, blank), CopyDecision::kNew)
      << "the answer to its first session may have been lost";
  EXPECT_EQ(Decide(primary, mount, primary), CopyDecision::kContinue);
  mount.replica_is_member = true;
  EXPECT_EQ(Decide(primary, mount, blank), CopyDecision::kNeedsCopy) << "its disk was replaced";
  EXPECT_EQ(Decide(primary, mount, primary), CopyDecision::kNeedsCompare) << "a snapshot was put back";
}

TEST(CopyDecision, P3_ACopyThatLostContactIsReplayedOnlyWhileThePrimaryHoldsAllItLacks) {
  const CopyHistory primary{.generation = 9, .mount_number = 3};
  const RunningMount mount{.mount_number = 4, .first_held = 50, .last = 80, .replica_took_part = true};
  CopyHistory replica{.generation = 9, .mount_number = 4, .operation = 49};
  EXPECT_EQ(Decide(primary, mount, replica), CopyDecision::kReplay);
  replica.operation = 80;
  EXPECT_EQ(Decide(primary, mount, replica), CopyDecision::kReplay);
  replica.operation = 48;
  EXPECT_EQ(Decide(primary, mount, replica), CopyDecision::kNeedsCompare);
  replica.operation = 81;
  EXPECT_EQ(Decide(primary, mount, replica), CopyDecision::kNeedsCompare);
}

TEST(ExtentSet, AgreesWithASetOfBytesThroughRandomAddsAndRemoves) {
  std::mt19937 random(7);
  ExtentSet set;
  std::array<bool, 300> bytes{};
  for (int step = 0; step < 5000; ++step) {
    const uint64_t offset = random() % 250;
    const Extent extent{offset, random() % (bytes.size() - offset)};
    const bool add = random() % 2 == 0;
    add ? set.Add(extent) : set.Remove(extent);
    std::fill_n(bytes.begin() + static_cast<long>(extent.offset), extent.length, add);

    std::array<bool, 300> seen{};
    uint64_t last_end = 0;
    bool first = true;
    for (const Extent& part : set.extents()) {
      ASSERT_FALSE(part.empty());
      ASSERT_TRUE(first || part.offset > last_end) << "adjacent extents are one";
      last_end = part.end();
      first = false;
      std::fill_n(seen.begin() + static_cast<long>(part.offset), part.length, true);
    }
    ASSERT_EQ(seen, bytes) << "step " << step;
    ASSERT_EQ(set.bytes(), static_cast<uint64_t>(std::count(bytes.begin(), bytes.end(), true)));
  }
}

TEST(ExtentSet, WithinCutsAtBothEnds) {
  ExtentSet set;
  set.Add({0, 10});
  set.Add({20, 10});
  EXPECT_EQ(set.Within({5, 20}).extents(), (std::vector<Extent>{{5, 5}, {20, 5}}));
  EXPECT_FALSE(set.Overlaps({10, 10}));
  EXPECT_TRUE(set.Overlaps({9, 1}));
}

NamespaceOp SomeOp(OpKind kind) {
  NamespaceOp op;
  op.kind = kind;
  op.target = FileId{5};
  op.extent.offset = 100;
  return op;
}

TEST(OperationLog, NumbersAreContiguousAndSurviveTrimming) {
  OperationLog log;
  NamespaceOp op = SomeOp(OpKind::kSetMode);
  EXPECT_EQ(log.last(), 0U);
  EXPECT_EQ(log.Append(op), 1U);
  EXPECT_EQ(log.Append(op), 2U);
  EXPECT_EQ(log.Append(op), 3U);
  log.Trim(2);
  EXPECT_EQ(log.first(), 3U);
  EXPECT_EQ(log.Append(op), 4U);
  log.Trim(4);
  EXPECT_EQ(log.first(), 5U);
  EXPECT_EQ(log.last(), 4U);
}

TEST(OperationLog, ASizeOperationCarriesTwiceItsNumberAsGeneration) {
  OperationLog log;
  NamespaceOp mode = SomeOp(OpKind::kSetMode);
  NamespaceOp truncate = SomeOp(OpKind::kTruncate);
  log.Append(mode);
  const uint64_t number = log.Append(truncate);
  const Result<NamespaceOp> sent = DecodeNamespaceOp(*log.Get(number));
  ASSERT_TRUE(sent.ok());
  EXPECT_EQ(sent.value().generation, 2 * number);
  EXPECT_EQ(sent.value().extent.offset, 100U);
}

constexpr auto kPatient = [] { return 0; };

TEST(SyncRounds, ACallerDuringARoundGetsALaterRoundNotTheOneUnderWay) {
  SyncRounds rounds;
  std::latch inside(1);
  std::latch go_on(1);
  std::thread first([&] {
    EXPECT_EQ(rounds.Run(
                  [&] {
                    inside.count_down();
                    go_on.wait();
                    return EIO;  // the first round fails; that must not be the second caller's result
                  },
                  kPatient),
              EIO);
  });
  inside.wait();
  std::atomic<bool> ran{false};
  std::thread second([&] {
    EXPECT_EQ(rounds.Run(
                  [&] {
                    ran = true;
                    return 0;
                  },
                  kPatient),
              0);
  });
  go_on.count_down();
  first.join();
  second.join();
  EXPECT_TRUE(ran);
}

TEST(SyncRounds, EachOfManyCallersSeesWorkThatBeganAfterItsCall) {
  SyncRounds rounds;
  std::atomic<uint64_t> stores{0};
  std::atomic<uint64_t> synced{0};
  std::vector<std::thread> threads;
  threads.reserve(8);
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 500; ++i) {
        const uint64_t mine = ++stores;
        EXPECT_EQ(rounds.Run(
                      [&] {
                        synced = stores.load();
                        return 0;
                      },
                      kPatient),
                  0);
        EXPECT_GE(synced.load(), mine);
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
}

TEST(SyncRounds, P6_WhoWaitsForAnInterruptedRoundRunsOneOfItsOwn) {
  SyncRounds rounds;
  std::latch inside(1);
  std::atomic<int> waiting{0};
  std::thread first([&] {
    const auto work = [&] {
      inside.count_down();
      while (waiting < 3) {
        std::this_thread::yield();
      }
      return EIO;  // of the round that the others do not share
    };
    EXPECT_EQ(rounds.Run(work, kPatient), EIO);
  });
  inside.wait();
  std::atomic<int> runs{0};
  std::atomic<int> interrupted{0};
  std::vector<std::thread> others;
  others.reserve(3);
  for (int i = 0; i < 3; ++i) {
    others.emplace_back([&] {
      bool seen = false;
      const int result = rounds.Run([&] { return runs++ == 0 ? EINTR : 0; },
                                    [&] {
                                      waiting += std::exchange(seen, true) ? 0 : 1;
                                      return 0;
                                    });
      EXPECT_TRUE(result == 0 || result == EINTR);
      interrupted += result == EINTR ? 1 : 0;
    });
  }
  first.join();
  for (std::thread& thread : others) {
    thread.join();
  }
  EXPECT_EQ(interrupted, 1) << "only of the caller whose work it was";
  EXPECT_GE(runs, 2);
}

TEST(SyncRounds, P6_ACallerMayLeaveARoundThatAnotherRuns) {
  SyncRounds rounds;
  std::latch inside(1);
  std::latch go_on(1);
  std::thread first([&] {
    EXPECT_EQ(rounds.Run(
                  [&] {
                    inside.count_down();
                    go_on.wait();
                    return 0;
                  },
                  kPatient),
              0);
  });
  inside.wait();
  EXPECT_EQ(rounds.Run([] { return 0; }, [] { return EINTR; }), EINTR);
  go_on.count_down();
  first.join();
}

TEST(SharedMemory, ReadOnlyPagesCannotBeMappedForWritingByReceivers) {
  absl::StatusOr<SharedMemory> memory = SharedMemory::Create("test", 4096, Receivers::kReadOnly);
  ASSERT_TRUE(memory.ok()) << memory.status();
  EXPECT_EQ(::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, memory->fd(), 0), MAP_FAILED);
  EXPECT_EQ(errno, EPERM);
  EXPECT_NE(::ftruncate(memory->fd(), 0), 0) << "a receiver could make the daemon fault";
}

TEST(SharedMemory, RefusesAProgramsMemoryThatIsTooSmallOrCouldShrink) {
  UniqueFd unsealed(::memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(::ftruncate(unsealed.get(), 8192), 0);
  EXPECT_FALSE(SharedMemory::Receive(UniqueFd(::dup(unsealed.get())), 8192).ok());
  ASSERT_EQ(::fcntl(unsealed.get(), F_ADD_SEALS, F_SEAL_SHRINK), 0);
  EXPECT_TRUE(SharedMemory::Receive(UniqueFd(::dup(unsealed.get())), 8192).ok());
  EXPECT_FALSE(SharedMemory::Receive(UniqueFd(::dup(unsealed.get())), 8193).ok());
}

TEST(VolumePageOwner, AnAbandonedSizeOperationLeavesTheGenerationAsItWas) {
  auto owner = VolumePageOwner::Create({});
  ASSERT_TRUE(owner.ok()) << owner.status();
  const absl::StatusOr<uint32_t> slot = (*owner)->TakeSlot(FileId{9}, 14, 4096);
  ASSERT_TRUE(slot.ok());
  const FileSlot& fields = (*owner)->page().slots[*slot];
  (*owner)->BeginSizeOperation(*slot);
  EXPECT_EQ(fields.size_generation.load(), 15U);
  (*owner)->AbandonSizeOperation(*slot);
  EXPECT_EQ(fields.size_generation.load(), 14U);
  (*owner)->BeginSizeOperation(*slot);
  (*owner)->EndSizeOperation(*slot, 40, 100);
  EXPECT_EQ(fields.size_generation.load(), 40U);
  EXPECT_EQ(fields.size.load(), 100U);
}

TEST(InSyncSet, OnlyAMemberThatLeavesIsRedundancyLost) {
  auto owner = VolumePageOwner::Create({.replica_count = 2});
  ASSERT_TRUE(owner.ok()) << owner.status();
  InSyncSet set(**owner);
  EXPECT_TRUE(set.Leave(0));
  EXPECT_FALSE(set.Leave(0));
  set.Join(0);
  EXPECT_FALSE(set.Leave(0)) << "nobody counted on a joiner";
  EXPECT_FALSE(set.Wanted(0));
  EXPECT_FALSE(set.Admit(0));
  EXPECT_TRUE(set.member(1));
}

TEST(VolumePageOwner, P6_WhoHasLeftTheVolumeIsNotNeededWhenItsCopyIsFound) {
  auto owner = VolumePageOwner::Create({.replica_count = 2});
  ASSERT_TRUE(owner.ok()) << owner.status();
  (*owner)->Dismiss(1);
  EXPECT_FALSE((*owner)->Require(1));
  EXPECT_EQ((*owner)->page().required.load(), 1U);
  (*owner)->Configure(1, "n4");
  EXPECT_TRUE((*owner)->Require(1));
  EXPECT_EQ((*owner)->page().required.load(), 3U);
}

TEST(VolumePageOwner, SlotsRunOutWithAnErrorAndComeBack) {
  auto owner = VolumePageOwner::Create({});
  ASSERT_TRUE(owner.ok()) << owner.status();
  for (size_t i = 0; i < kMaxFileSlots; ++i) {
    ASSERT_TRUE((*owner)->TakeSlot(FileId{i + 2}, 0, 0).ok());
  }
  EXPECT_TRUE(absl::IsResourceExhausted((*owner)->TakeSlot(FileId{1}, 0, 0).status()));
  (*owner)->FreeSlot(17);
  EXPECT_EQ((*owner)->TakeSlot(FileId{1}, 0, 0).value(), 17U);
}

TEST(VolumePageOwner, EachChangeOfTheSetIsANewVersion) {
  auto owner = VolumePageOwner::Create({});
  ASSERT_TRUE(owner.ok()) << owner.status();
  (*owner)->SetMembers(1, 0);
  const SetWord first = LoadSet((*owner)->page());
  (*owner)->SetMembers(1, 2);
  const SetWord second = LoadSet((*owner)->page());
  EXPECT_EQ(first.members(), 1);
  EXPECT_EQ(second.joiners(), 2);
  EXPECT_EQ(Raw(second.version()), Raw(first.version()) + 1);
}

}  // namespace
}  // namespace pmirror::fs
