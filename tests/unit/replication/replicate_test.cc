// SPDX-License-Identifier: BSD-3-Clause
// Replication::Replicate against fake replicas: what is sent, to whom, when it is sent again, and how it
// ends.
#include "replication/replicate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <thread>

#include "replication/futex_mutex.h"
#include "tests/unit/replication/replication_rig.h"
#include "tests/unit/replication/run_threads.h"

namespace pmirror {
namespace {

using Answer = FakeReplica::Answer;
using Frame = FakeReplica::Frame;
using Reaction = FakeReplica::Reaction;
using testing::ElementsAre;
using testing::SizeIs;

constexpr FileId kFile = ReplicationRig::kFile;

std::vector<std::byte> Bytes(size_t count, uint8_t value) {
  return std::vector<std::byte>(count, std::byte{value});
}

// Answers `reaction` to the first `count` data frames, then applies.
FakeReplica::Script First(int count, Answer answer) {
  return [count, answer](const Frame& frame) mutable {
    return frame.kind() == FrameKind::kDataImage && count-- > 0 ? answer : Answer{};
  };
}

Answer Refuse(RefusalCode code) { return {.reaction = Reaction::kRefuse, .code = code}; }

TEST(Replicate, P1_EveryMemberHasTheBytesUnderOneOrderNumber) {
  ReplicationRig rig(2);
  rig.Fill(5);
  ASSERT_TRUE(rig.Replicate({{0, 4096}, {8192, 64}}).ok());
  for (const auto& replica : rig.replicas) {
    EXPECT_THAT(replica->orders(kFile), ElementsAre(1));
    EXPECT_THAT(replica->Image(kFile), SizeIs(8192 + 64));
    EXPECT_EQ(replica->frames(FrameKind::kDataImage), 1U);
    EXPECT_NE(replica->all_flags() & kFlagBarrier, 0);
  }
  rig.ExpectNoFaults();
}

TEST(Replicate, ReceivedAsksForNoBarrier) {
  ReplicationRig rig(1);
  ASSERT_TRUE(rig.Replicate({{0, 64}}, WaitLevel::kReceived).ok());
  EXPECT_EQ(rig.replicas[0]->all_flags() & kFlagBarrier, 0);
}

TEST(Replicate, NothingToSendIsABarrierWhenItHasToBeDurableAndNothingOtherwise) {
  ReplicationRig rig(1);
  ASSERT_TRUE(rig.Replicate({}, WaitLevel::kDurable).ok());
  EXPECT_EQ(rig.replicas[0]->frames(FrameKind::kBarrier), 1U);
  ASSERT_TRUE(rig.Replicate({}, WaitLevel::kReceived).ok());
  EXPECT_EQ(rig.replicas[0]->frames(FrameKind::kBarrier), 1U);
  EXPECT_EQ(rig.replicas[0]->frames(FrameKind::kDataImage), 0U);
}

TEST(Replicate, ManyExtentsTakeSeveralFramesOfOneCapture) {
  ReplicationRig rig(1);
  rig.source.memory.resize(5000 * 128);
  rig.Fill(9);
  std::vector<Extent> extents;
  for (uint64_t i = 0; i < 5000; ++i) {
    extents.push_back({i * 128, 64});
  }
  ASSERT_TRUE(rig.Replicate(extents).ok());
  EXPECT_THAT(rig.replicas[0]->orders(kFile), ElementsAre(1));
  EXPECT_EQ(rig.replicas[0]->frames(FrameKind::kDataImage), (5000 + kMaxRanges - 1) / kMaxRanges);
  EXPECT_NE(rig.replicas[0]->all_flags() & kFlagContinues, 0);
  rig.ExpectNoFaults();
}

// The bytes of a large file that nobody has to keep: each 8-byte word is its offset.
class PatternSource : public ByteSource {
 public:
  Result<size_t> Copy(Extent extent, std::span<std::byte> out) override {
    for (uint64_t at = 0; at + 8 <= extent.length; at += 8) {
      const uint64_t word = extent.offset + at;
      std::memcpy(out.data() + at, &word, sizeof word);
    }
    return static_cast<size_t>(extent.length);
  }
};

TEST(Replicate, OneGibibyteGoesThroughSixtyFourKibibytesOfCreditUnderOneOrderNumber) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  constexpr uint64_t kBytes = uint64_t{64} << 20;  // the sanitizers take their time
#else
  constexpr uint64_t kBytes = uint64_t{1} << 30;
#endif
  ReplicationRig rig(1);
  rig.replicas[0]->SetWindow(64 * 1024);
  rig.replicas[0]->KeepImages(false);
  std::atomic<uint64_t> bytes{0};
  std::atomic<uint64_t> wrong{0};
  std::atomic<uint64_t> barriers{0};
  rig.replicas[0]->SetScript([&](const Frame& frame) {
    uint64_t first = 0;
    std::memcpy(&first, frame.payload.data(), sizeof first);
    wrong += frame.ranges.size() != 1 || frame.ranges[0].offset != bytes || first != bytes ? 1 : 0;
    bytes += frame.payload.size();
    barriers += (frame.header.flags & kFlagBarrier) != 0 ? 1 : 0;
    return Answer{};
  });
  PatternSource source;
  const Extent all{0, kBytes};
  ASSERT_TRUE(rig.replication->Replicate(rig.target(), {&all, 1}, source, WaitLevel::kDurable, nullptr).ok());
  EXPECT_EQ(bytes, kBytes);
  EXPECT_EQ(wrong, 0U);
  EXPECT_EQ(barriers, 1U);
  EXPECT_THAT(rig.replicas[0]->orders(kFile), ElementsAre(1));
  EXPECT_EQ(rig.order.next, 2U);
  rig.ExpectNoFaults();
}

TEST(Replicate, TheOrderNumberIsTakenBeforeTheFirstByteIsCopied) {
  class Watching : public MemorySource {
   public:
    explicit Watching(OrderPage& page) : MemorySource(4096), page_(page) {}
    Result<size_t> Copy(Extent extent, std::span<std::byte> out) override {
      next_at_copy = page_.next;
      return MemorySource::Copy(extent, out);
    }
    uint64_t next_at_copy = 0;

   private:
    OrderPage& page_;
  };
  ReplicationRig rig(1);
  Watching source(rig.order);
  const Extent extent{0, 64};
  ASSERT_TRUE(
      rig.replication->Replicate(rig.target(), {&extent, 1}, source, WaitLevel::kDurable, nullptr).ok());
  EXPECT_EQ(source.next_at_copy, 2U);
}

// A file whose every byte has the same value, which may change at any time.
class OneValueSource : public ByteSource {
 public:
  Result<size_t> Copy(Extent extent, std::span<std::byte> out) override {
    std::fill(out.begin(), out.end(), std::byte{value.load()});
    return static_cast<size_t>(extent.length);
  }
  std::atomic<uint8_t> value{1};
};

TEST(Replicate, ARecaptureTakesANewOrderNumberAndCopiesAgain) {
  ReplicationRig rig(1);
  OneValueSource source;
  rig.replicas[0]->SetScript(
      [&source, scripted = First(5, Refuse(RefusalCode::kRecapture))](const Frame& frame) mutable {
        source.value = 7;  // stored meanwhile
        return scripted(frame);
      });
  const Extent extent{0, 64};
  ASSERT_TRUE(
      rig.replication->Replicate(rig.target(), {&extent, 1}, source, WaitLevel::kDurable, nullptr).ok());
  EXPECT_THAT(rig.replicas[0]->orders(kFile), ElementsAre(6));
  EXPECT_EQ(rig.replicas[0]->Image(kFile), Bytes(64, 7));
  EXPECT_EQ(rig.observer.recaptured, 5);
  EXPECT_NE(rig.replicas[0]->all_flags() & kFlagRecaptured, 0);
}

TEST(Replicate, ARefusedFrameInTheMiddleOfALargeCaptureIsNotHiddenByTheOthers) {
  ReplicationRig rig(1, 64 * 1024);
  rig.source.memory.resize(1 << 20);
  rig.Fill(3);
  int frames = 0;
  rig.replicas[0]->SetScript(
      [&](const Frame&) { return ++frames == 4 ? Refuse(RefusalCode::kRecapture) : Answer{}; });
  ASSERT_TRUE(rig.Replicate({{0, 1 << 20}}).ok());
  EXPECT_EQ(rig.replicas[0]->Image(kFile), Bytes(1 << 20, 3));
  EXPECT_THAT(rig.replicas[0]->orders(kFile), ElementsAre(1, 2));
}

TEST(Replicate, P6_ABlipIsAbsorbedByReconnectAndRecapture) {
  for (const Reaction reaction : {Reaction::kCut, Reaction::kCutInReply, Reaction::kGarbage}) {
    ReplicationRig rig(1);
    rig.page.on_loss = static_cast<uint32_t>(OnLoss::kFail);
    rig.Fill(8);
    rig.replicas[0]->SetScript(First(3, {.reaction = reaction}));
    ASSERT_TRUE(rig.Replicate({{0, 64}}).ok());
    EXPECT_EQ(rig.replicas[0]->Image(kFile), Bytes(64, 8));
    EXPECT_EQ(rig.sessions[0]->counters().reconnects, 3U);
    EXPECT_EQ(rig.observer.suspended, 0);
    EXPECT_EQ(rig.observer.failed, 0);
    rig.ExpectNoFaults();
  }
}

TEST(Replicate, P6_FailPolicyAndASilentReplicaIsAnErrorAfterTheDeadline) {
  ReplicationRig rig(1);
  rig.page.on_loss = static_cast<uint32_t>(OnLoss::kFail);
  rig.page.deadline_ns = ReplicationRig::kShort;
  rig.replicas[0]->SetScript([](const Frame&) { return Answer{.reaction = Reaction::kNoAnswer}; });
  EXPECT_EQ(rig.Replicate({{0, 64}}).code, EIO);
  EXPECT_EQ(rig.observer.suspended, 0);
  EXPECT_EQ(rig.observer.last_error, EIO);
}

TEST(Replicate, P6_FailPolicyAndAnUnreachableReplicaIsAnErrorAfterTheDeadline) {
  ReplicationRig rig(1);
  rig.page.on_loss = static_cast<uint32_t>(OnLoss::kFail);
  rig.page.deadline_ns = ReplicationRig::kShort;
  rig.replicas[0]->SetConnectError(ECONNREFUSED);
  CountingPersist local;
  EXPECT_EQ(rig.Replicate({{0, 64}}, WaitLevel::kDurable, &local).code, EIO);
  EXPECT_EQ(local.calls, 1);
}

TEST(Replicate, P6_AReplicaThatReadsNothingDoesNotHoldALargeSyncForEver) {
  ReplicationRig rig(1);
  rig.page.on_loss = static_cast<uint32_t>(OnLoss::kFail);
  rig.page.deadline_ns = ReplicationRig::kShort;
  rig.source.memory.resize(16 << 20);
  rig.replicas[0]->Pause(true);
  EXPECT_EQ(rig.Replicate({{0, 16 << 20}}).code, EIO);
  rig.replicas[0]->Pause(false);
}

TEST(Replicate, P6_AReplicaThatTakesBytesAndCutsForEverIsNoProgress) {
  ReplicationRig rig(1);
  rig.page.on_loss = static_cast<uint32_t>(OnLoss::kFail);
  rig.page.deadline_ns = ReplicationRig::kShort;
  rig.replicas[0]->SetScript([](const Frame&) { return Answer{.reaction = Reaction::kCut}; });
  EXPECT_EQ(rig.Replicate({{0, 4096}}).code, EIO);
}

TEST(Replicate, P6_SuspendIsAnnouncedAndEndsWithSuccessWhenTheReplicaComesBack) {
  class ComesBack : public CountingObserver {
   public:
    explicit ComesBack(FakeReplica& replica) : replica_(replica) {}
    void Suspended(FileId file) override {
      CountingObserver::Suspended(file);
      replica_.SetConnectError(0);
    }

   private:
    FakeReplica& replica_;
  };
  ReplicationRig rig(1);
  rig.page.deadline_ns = ReplicationRig::kShort;
  rig.replicas[0]->SetConnectError(ECONNREFUSED);
  ComesBack observer(*rig.replicas[0]);
  Replication replication(rig.page, rig.sessions, *rig.pool, observer);
  const Extent extent{0, 64};
  EXPECT_TRUE(
      replication.Replicate(rig.target(), {&extent, 1}, rig.source, WaitLevel::kDurable, nullptr).ok());
  EXPECT_EQ(observer.suspended, 1);
  EXPECT_EQ(observer.resumed, 1);
  EXPECT_EQ(observer.failed, 0);
}

TEST(Replicate, P6_SuspendThatRunsOutFails) {
  ReplicationRig rig(1);
  rig.page.deadline_ns = ReplicationRig::kShort;
  rig.page.suspend_ns = ReplicationRig::kShort;
  rig.replicas[0]->SetScript([](const Frame&) { return Answer{.reaction = Reaction::kNoAnswer}; });
  EXPECT_EQ(rig.Replicate({{0, 64}}).code, EIO);
  EXPECT_EQ(rig.observer.suspended, 1);
  EXPECT_EQ(rig.observer.failed, 1);
}

TEST(Replicate, P4_FencedIsStaleBeforeAndDuringTheWait) {
  ReplicationRig rig(1);
  rig.replicas[0]->SetScript([&](const Frame&) {
    rig.page.state = static_cast<uint32_t>(VolumeState::kFenced);
    return Answer{.reaction = Reaction::kNoAnswer};
  });
  EXPECT_EQ(rig.Replicate({{0, 64}}).code, ESTALE);
  EXPECT_EQ(rig.Replicate({{0, 64}}).code, ESTALE);
  EXPECT_EQ(rig.replicas[0]->frames(FrameKind::kDataImage), 1U);
}

TEST(Replicate, RefusalsWithAReasonBecomeTheRightError) {
  const std::vector<std::pair<RefusalCode, int>> cases = {{RefusalCode::kNoSpace, ENOSPC},
                                                          {RefusalCode::kOldEpoch, ESTALE},
                                                          {RefusalCode::kIoError, EIO},
                                                          {RefusalCode::kNoSuchFile, EIO},
                                                          {RefusalCode::kOutOfRange, EIO}};
  for (const auto& [code, error] : cases) {
    ReplicationRig rig(1);
    rig.replicas[0]->SetScript([code = code](const Frame&) { return Refuse(code); });
    EXPECT_EQ(rig.Replicate({{0, 64}}).code, error) << Name(code);
    EXPECT_EQ(rig.observer.last_error, error);
  }
}

TEST(Replicate, WhatTimeMayCureIsTriedAgain) {
  for (const RefusalCode code : {RefusalCode::kNotGranted, RefusalCode::kBlocked}) {
    ReplicationRig rig(1);
    rig.replicas[0]->SetScript(First(2, Refuse(code)));
    EXPECT_TRUE(rig.Replicate({{0, 64}}).ok());
    EXPECT_THAT(rig.replicas[0]->orders(kFile), ElementsAre(3));
  }
}

TEST(Replicate, ASizeOperationUnderWayIsWaitedForAndItsGenerationTravels) {
  ReplicationRig rig(1);
  auto& generation = rig.page.slots[0].size_generation;
  generation = 41;
  std::atomic<uint64_t> travelled{0};
  rig.replicas[0]->SetScript([&](const Frame& frame) {
    travelled = frame.header.size_generation;
    return Answer{};
  });
  std::thread sync([&] { EXPECT_TRUE(rig.Replicate({{0, 64}}).ok()); });
  generation = 42;
  FutexWake(&generation, INT_MAX, FutexScope::kShared);
  sync.join();
  EXPECT_EQ(travelled, 42U);
}

TEST(Replicate, ASizeOperationThatNeverEndsRunsIntoTheDeadline) {
  ReplicationRig rig(1);
  rig.page.on_loss = static_cast<uint32_t>(OnLoss::kFail);
  rig.page.deadline_ns = ReplicationRig::kShort;
  rig.page.slots[0].size_generation = 1;
  EXPECT_EQ(rig.Replicate({{0, 64}}).code, EIO);
  EXPECT_EQ(rig.replicas[0]->frames(FrameKind::kDataImage), 0U);
}

TEST(Replicate, Trap8_ACopyThatRunsIntoATruncateIsCapturedAgainUnderTheNewGeneration) {
  class Truncated : public MemorySource {
   public:
    explicit Truncated(std::atomic<uint64_t>& generation) : MemorySource(4096), generation_(generation) {}
    Result<size_t> Copy(Extent extent, std::span<std::byte> out) override {
      if (copies++ == 0) {
        generation_ = 42;  // truncated to nothing, extended again, in the middle of the copy
        return size_t{0};
      }
      return MemorySource::Copy(extent, out);
    }
    int copies = 0;

   private:
    std::atomic<uint64_t>& generation_;
  };
  ReplicationRig rig(1);
  Truncated source(rig.page.slots[0].size_generation);
  std::atomic<uint64_t> travelled{0};
  rig.replicas[0]->SetScript([&](const Frame& frame) {
    if (frame.header.kind == static_cast<uint8_t>(FrameKind::kDataImage)) {
      travelled = frame.header.size_generation;
    }
    return Answer{};
  });
  const Extent extent{0, 64};
  ASSERT_TRUE(
      rig.replication->Replicate(rig.target(), {&extent, 1}, source, WaitLevel::kDurable, nullptr).ok());
  EXPECT_EQ(source.copies, 2);
  EXPECT_EQ(travelled, 42U);
}

TEST(Replicate, AFileThatEndsEarlyIsSentAsFarAsItGoes) {
  ReplicationRig rig(1);
  rig.source.memory.resize(100);
  rig.Fill(4);
  ASSERT_TRUE(rig.Replicate({{0, 4096}, {8192, 4096}}).ok());
  EXPECT_EQ(rig.replicas[0]->Image(kFile), Bytes(100, 4));
  EXPECT_NE(rig.replicas[0]->all_flags() & kFlagBarrier, 0);
}

TEST(Replicate, AFileThatEndedBeforeAllExtentsStillGetsItsBarrier) {
  ReplicationRig rig(1);
  rig.source.memory.clear();
  ASSERT_TRUE(rig.Replicate({{0, 4096}}).ok());
  EXPECT_EQ(rig.replicas[0]->frames(FrameKind::kDataImage), 0U);
  EXPECT_EQ(rig.replicas[0]->frames(FrameKind::kBarrier), 1U);
}

TEST(Replicate, ABarrierThatIsRefusedFailsTheSync) {
  ReplicationRig rig(1);
  rig.replicas[0]->SetScript([](const Frame&) { return Refuse(RefusalCode::kIoError); });
  EXPECT_EQ(rig.Replicate({}).code, EIO);
}

TEST(Replicate, APoisonedSourceFailsTheSync) {
  ReplicationRig rig(1);
  rig.source.error = EIO;
  EXPECT_EQ(rig.Replicate({{0, 64}}).code, EIO);
}

TEST(Replicate, LocalPersistenceRunsOnceHoweverOftenIsCaptured) {
  ReplicationRig rig(1);
  rig.replicas[0]->SetScript(First(4, {.reaction = Reaction::kCut}));
  CountingPersist local;
  ASSERT_TRUE(rig.Replicate({{0, 64}}, WaitLevel::kDurable, &local).ok());
  EXPECT_EQ(local.calls, 1);
}

TEST(Replicate, AFailureOfLocalPersistenceIsTheResult) {
  ReplicationRig rig(1);
  CountingPersist local;
  local.error = {ENOSPC, "persist in a test"};
  EXPECT_EQ(rig.Replicate({{0, 64}}, WaitLevel::kDurable, &local).code, ENOSPC);
}

TEST(Replicate, Trap1_TheNewestImageOfOverlappingSyncsWins) {
  ReplicationRig rig(1);
  RunThreads(8, [&](int thread) {
    for (uint64_t round = 0; round < 50; ++round) {
      MemorySource source(8192);
      std::fill(source.memory.begin(), source.memory.end(), static_cast<std::byte>(thread + 1));
      const Extent extent{static_cast<uint64_t>(thread) * 64, 4096};
      ASSERT_TRUE(
          rig.replication->Replicate(rig.target(), {&extent, 1}, source, WaitLevel::kDurable, nullptr).ok());
    }
  });
  rig.Fill(99);
  ASSERT_TRUE(rig.Replicate({{0, 4096 + 8 * 64}}).ok());
  EXPECT_EQ(rig.replicas[0]->Image(kFile), Bytes(4096 + 8 * 64, 99));
  rig.ExpectNoFaults();
}

TEST(DescriptorSource, ReadsWhatThereIs) {
  const UniqueFd file(::memfd_create("source", MFD_CLOEXEC));
  const std::vector<std::byte> written = Bytes(100, 0x5A);
  ASSERT_EQ(::pwrite(file.get(), written.data(), written.size(), 0), 100);
  DescriptorSource source(file.get());
  std::vector<std::byte> out(64);
  EXPECT_EQ(source.Copy({50, 64}, out).value(), 50U);
  EXPECT_EQ(source.Copy({0, 64}, out).value(), 64U);
  EXPECT_EQ(out, Bytes(64, 0x5A));
  EXPECT_EQ(source.Copy({1000, 64}, out).value(), 0U);
}

}  // namespace
}  // namespace pmirror
