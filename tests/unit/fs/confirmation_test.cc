// SPDX-License-Identifier: BSD-3-Clause
// What a killed program may have stored to: the engine finds out by checksums what of it the replicas lack, and sends only that (trap 7). The order
// argument is tests/model/confirm_test.cc.
#include <atomic>
#include <mutex>

#include "fs/confirmation.h"
#include "tests/unit/fs/engine_fixture.h"

namespace pmirror::fs {
namespace {

constexpr size_t kBlocks = 200;  // two questions
static_assert(kBlocks * kConfirmBlock > kConfirmBytes);

class Asker : public SyncObserver {
 public:
  explicit Asker(int interrupted) : interrupted_(interrupted) {}
  void Suspended(FileId) override {}
  void Resumed(FileId) override {}
  void Failed(FileId, int) override {}
  void Recaptured() override {}
  int Interrupted(bool) override { return interrupted_; }

 private:
  const int interrupted_;
};

class ConfirmationTest : public VolumeReplicatorTest {
 protected:
  // Both replicas have all of it.
  void Begin(size_t replicas = 1, OnLoss on_loss = OnLoss::kFail) {
    options_.confirm_patience = patience_;
    Start(on_loss, 10 * patience_, {}, replicas);
    engine_->Start();
    for (size_t i = 0; i < kBlocks; ++i) {
      content_ += std::string(kConfirmBlock, static_cast<char>(i + 1));
    }
    ASSERT_EQ(Write(0, content_), 0);
    ASSERT_EQ(Sync(), 0);
    for (size_t i = 0; i < replicas; ++i) {
      replica(i).SetScript([this, i](const FakeReplica::Frame& frame) { return Note(frame, i); });
    }
  }
  void TearDown() override {
    if (engine_ != nullptr) {
      engine_->Stop();
    }
    for (const auto& under_test : replicas_) {
      under_test->replica.SetScript({});  // it is this fixture's, which ends before the replicas do
      EXPECT_EQ(under_test->replica.faults(), 0u);
    }
  }
  // As a program does through its mapping: nobody is told.
  void Store(size_t block, char byte) {
    const uint64_t at = block * kConfirmBlock + 17;
    ASSERT_EQ(::pwrite(backing_.get(), &byte, 1, static_cast<off_t>(at)), 1);
    content_[at] = byte;
  }
  void ProgramIsKilled(Extent mapped = {0, uint64_t{1} << 40}) { engine_->HoldDoubtful(file_, mapped); }
  bool Settled() {
    return Eventually([this] { return !file_->DirtyIn({0, INT64_MAX}); });
  }
  // The first replica, about all of the file.
  Confirmed Ask(Asker& asker) {
    ExtentSet all;
    all.Add({0, content_.size()});
    DataSession* const session = replicas_[0]->session.get();
    return ConfirmBlocks(*file_, all, page_->page(), {&session, 1}, asker, patience_);
  }
  std::string Image(size_t i = 0) { return Replicated(0, content_.size() + 1, i); }
  uint64_t Sent(size_t i = 0) {
    const std::lock_guard lock(mutex_);
    return sent_[i];
  }

  // Longer than any machine takes: of tests in which nobody is silent.
  seconds patience_{40};
  std::string content_;
  using OnConfirm = std::function<FakeReplica::Answer()>;
  // What a replica does with a question, on its thread.
  void AnswerWith(OnConfirm answer) {
    const std::lock_guard lock(mutex_);
    on_confirm_ = std::move(answer);
  }

 private:
  FakeReplica::Answer Note(const FakeReplica::Frame& frame, size_t i) {
    if (frame.kind() == FrameKind::kConfirm) {
      OnConfirm answer;
      {
        const std::lock_guard lock(mutex_);
        answer = on_confirm_;
      }
      return answer();
    }
    const std::lock_guard lock(mutex_);
    sent_[i] += frame.kind() == FrameKind::kDataImage ? frame.payload.size() : 0;
    return {};
  }

  std::mutex mutex_;
  OnConfirm on_confirm_ = [] { return FakeReplica::Answer{}; };
  uint64_t sent_[2] = {0, 0};
};

TEST_F(ConfirmationTest, Trap7OnlyTheBlocksThatDifferAreSent) {
  Begin();
  Store(3, '!');
  Store(11, '!');
  Store(kBlocks - 1, '!');
  ProgramIsKilled();
  ASSERT_TRUE(Settled());
  EXPECT_EQ(Image(), content_);
  EXPECT_EQ(Sent(), 3 * kConfirmBlock);
  EXPECT_EQ(replica().frames(FrameKind::kConfirm), 2u);
}

TEST_F(ConfirmationTest, Trap7AMappingThatBeginsWithinABlockIsSentThere) {
  Begin();
  Store(2, '!');
  ProgramIsKilled({2 * kConfirmBlock + 8, 2 * kConfirmBlock});
  ASSERT_TRUE(Settled());
  EXPECT_EQ(Image(), content_);
  EXPECT_EQ(Sent(), kConfirmBlock) << "both ends, and not the block between them";
}

TEST_F(ConfirmationTest, P1ASyncOfWhatIsDoubtfulSendsTheDifferenceAndMakesAllOfItDurable) {
  Begin();
  engine_->Stop();  // nobody but the sync
  Store(3, '!');
  ProgramIsKilled();
  EXPECT_EQ(Sync(), 0);
  EXPECT_EQ(Image(), content_);
  EXPECT_EQ(Sent(), kConfirmBlock);
  EXPECT_FALSE(flag());
  Store(4, '!');
  file_->Hold({4 * kConfirmBlock, kConfirmBlock});
  EXPECT_EQ(Sync(), 0);
  EXPECT_EQ(replica().frames(FrameKind::kConfirm), 2u) << "what was compared is not doubtful any more";
}

TEST_F(ConfirmationTest, P1WhereAllIsEqualASyncStillAsksForABarrierOfTheFile) {
  Begin();
  engine_->Stop();
  const uint64_t before = replica().frames(FrameKind::kBarrier);
  ProgramIsKilled();
  EXPECT_EQ(Sync(), 0);
  EXPECT_EQ(Sent(), 0u);
  EXPECT_EQ(replica().frames(FrameKind::kBarrier), before + 1);
}

TEST_F(ConfirmationTest, WhereOneReplicaDiffersBothGetTheBlock) {
  Begin(2);
  replica(1).Spoil(kFile, 5 * kConfirmBlock);
  ProgramIsKilled();
  ASSERT_TRUE(Settled());
  EXPECT_EQ(Image(0), content_);
  EXPECT_EQ(Image(1), content_);
  EXPECT_EQ(Sent(0), kConfirmBlock);
  EXPECT_EQ(Sent(1), kConfirmBlock);
}

TEST_F(ConfirmationTest, P6WhereAReplicaRefusesOrIsSilentAllOfItIsSent) {
  using Reaction = FakeReplica::Reaction;
  patience_ = seconds(1);
  Begin();
  for (const Reaction reaction : {Reaction::kRefuse, Reaction::kNoAnswer}) {
    const uint64_t before = Sent();
    AnswerWith([reaction] { return FakeReplica::Answer{.reaction = reaction}; });
    Store(3, reaction == Reaction::kRefuse ? '!' : '?');
    ProgramIsKilled();
    ASSERT_TRUE(Settled());
    EXPECT_EQ(Image(), content_);
    EXPECT_EQ(Sent() - before, content_.size());
  }
}

TEST_F(ConfirmationTest, P6OneThatCannotAnswerIsNotAsked) {
  Begin();
  replica().SetAbilities(0);
  replica().CutNow();
  ASSERT_EQ(Sync(), 0);  // over another connection
  Store(3, '!');
  ProgramIsKilled();
  ASSERT_TRUE(Settled());
  EXPECT_EQ(Image(), content_);
  EXPECT_EQ(replica().frames(FrameKind::kConfirm), 0u);
}

// Each question may be waited for, there may be thousands of them, and nobody waits for the others.
TEST_F(ConfirmationTest, P6WhoIsInterruptedAsksNothingMore) {
  Begin();
  Asker gone(EINTR);
  EXPECT_EQ(Ask(gone).compared, 0u);
  EXPECT_EQ(replica().frames(FrameKind::kConfirm), 0u);
}

TEST_F(ConfirmationTest, P3WhoComesMeanwhileWasNotAskedAndGetsAllOfIt) {
  Begin(2, OnLoss::kProceed);
  page_->SetMembers(0b01, 0);
  replica(1).Spoil(kFile, 5 * kConfirmBlock);
  AnswerWith([this] {
    page_->SetMembers(0b01, 0b10);
    return FakeReplica::Answer{};
  });
  ProgramIsKilled();
  ASSERT_TRUE(Settled());
  EXPECT_EQ(Image(1), content_);
}

TEST_F(ConfirmationTest, WhatTheEndOfTheFileCutsIsSent) {
  Begin();
  ASSERT_EQ(Write(content_.size(), "tail"), 0);
  content_ += "tail";
  replica().Spoil(kFile, content_.size() - 1);
  ProgramIsKilled();
  ASSERT_TRUE(Settled());
  EXPECT_EQ(Image(), content_);
}

TEST_F(ConfirmationTest, P3OfADisconnectedReplicaNothingIsKnown) {
  Begin();
  engine_->Stop();
  replica().SetConnectError(ECONNREFUSED);
  replica().CutNow();
  Asker asker(0);
  EXPECT_EQ(Ask(asker).compared, 0u);
  replica().SetConnectError(0);
  ASSERT_EQ(Sync(), 0);
  EXPECT_EQ(Ask(asker).compared, content_.size());
}

TEST_F(ConfirmationTest, WhoTrailsIsNotAsked) {
  Begin();
  page_->SetMembers(0, 0, 1);
  Asker asker(0);
  EXPECT_EQ(Ask(asker).compared, 0u);
  EXPECT_EQ(replica().frames(FrameKind::kConfirm), 0u);
}

}  // namespace
}  // namespace pmirror::fs
