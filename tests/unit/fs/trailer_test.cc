// SPDX-License-Identifier: BSD-3-Clause
// Cutting and shipping for replicas that trail, with a carrier that does what the test says (docs/internals/rpo.md).
#include "fs/trailer.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <deque>
#include <map>
#include <string>
#include <thread>

#include "replication/log_capture.h"
#include "replication/signal_guard.h"

namespace pmirror::fs {
namespace {

using Fate = BatchCarrier::Fate;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr FileId kFile{5};

class RecordedEvents : public EventSink {
 public:
  void Report(Severity, std::string_view event, const Fields&) override {
    const std::lock_guard lock(mutex_);
    reported.emplace_back(event);
  }
  std::vector<std::string> reported;

 private:
  std::mutex mutex_;
};

// Mock of the way to a replica: keeps what comes; a real one is in the cluster tests.
class Carrier : public BatchCarrier {
 public:
  Fate Ship(size_t, uint64_t number, std::span<const std::byte> batch, Deadline) override {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !held; });
    numbers.push_back(number);
    batches.emplace_back(batch.begin(), batch.end());
    const Fate fate = fates.empty() ? Fate::kApplied : fates.front();
    if (!fates.empty()) {
      fates.pop_front();
    }
    return fate;
  }
  void TrailEnded(size_t, Fate why) override {
    const std::lock_guard lock(mutex_);
    ended.push_back(why);
    changed_.notify_all();
  }
  void LagMoved(size_t, bool beyond) override {
    const std::lock_guard lock(mutex_);
    lag.push_back(beyond);
    changed_.notify_all();
  }
  void AwaitLag(const std::vector<bool>& told) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, seconds(20), [&] { return lag == told; });
    EXPECT_EQ(lag, told);
  }
  void Hold(bool hold) {
    const std::lock_guard lock(mutex_);
    held = hold;
    changed_.notify_all();
  }
  void AwaitEnd() {
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(changed_.wait_for(lock, seconds(20), [&] { return !ended.empty(); }));
  }

  bool held = false;
  std::deque<Fate> fates;
  std::vector<uint64_t> numbers;
  std::vector<std::vector<std::byte>> batches;
  std::vector<Fate> ended;
  std::vector<bool> lag;  // as it was told

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
};

class Letters : public ByteSource {
 public:
  Result<size_t> Copy(Extent extent, std::span<std::byte> out) override {
    std::memcpy(out.data(), text.data() + extent.offset, extent.length);
    return static_cast<size_t>(extent.length);
  }
  std::string text = std::string(8192, '.');
};

class Quiet : public SyncObserver {
 public:
  void Suspended(FileId) override {}
  void Resumed(FileId) override {}
  void Failed(FileId, int) override {}
  void Recaptured() override {}
};

class TrailerTest : public testing::Test {
 protected:
  void Make(Rpo rpo) {
    trailer_.reset();
    page_ = std::move(VolumePageOwner::Create({.replica_count = 1, .deadline_ns = 5'000'000'000}).value());
    slot_ = page_->TakeSlot(kFile, 0, 8192).value();
    cutter_ = std::move(Cutter::Create("v0", *page_, log_, events_).value());
    trailer_ = std::make_unique<Trailer>(
        Trailer::Options{.mount_number = 3, .rpo = {rpo}, .deadline = seconds(5)}, *cutter_, *page_, log_,
        [this](absl::FunctionRef<void(uint64_t)> look) {
          const std::lock_guard lock(tree_);
          look(log_.last());
        },
        carrier_);
    trailer_->Start();
  }
  void TearDown() override { carrier_.Hold(false); }  // whatever failed before
  void Trail(uint64_t operation = 0) {
    trailer_->Collect(0);
    page_->SetMembers(0, 0, 1);
    trailer_->Begin(0, operation);
  }
  void Change(NamespaceOp op) {
    const std::lock_guard lock(tree_);
    trailer_->NoteOperation(log_.Append(op));
  }
  static NamespaceOp Chmod(uint32_t mode) {
    NamespaceOp op;
    op.kind = OpKind::kSetMode;
    op.target = kFile;
    op.mode = mode;
    return op;
  }
  // As a sync of the file's range would.
  bool Capture(CaptureOutlet outlet, Extent extent) {
    const SignalBlock block;
    Patience patience(page_->page(), quiet_, kFile);
    const auto done = LogCapture(page_->page(), outlet, patience)
                          .Capture({.file = kFile, .order = &order_, .slot = &page_->slot(slot_)},
                                   {&extent, 1}, letters_, 1);
    return done.ok() && done.value();
  }
  bool WithinRpo() {
    Patience patience(page_->page(), quiet_, kFile);
    return LogCapture(page_->page(), cutter_->outlet(), patience).Lagging(1) == 0;
  }
  // As a sync that is held does, for one slice of its patience.
  void AwaitShipping() {
    const SignalBlock block;
    Patience patience(page_->page(), quiet_, kFile);
    LogCapture(page_->page(), cutter_->outlet(), patience).AwaitShipping(1, page_->page().trail_acks);
  }
  absl::Status Flush() { return trailer_->Flush(Deadline::After(seconds(20))); }
  // What a replica would have of the file, and the modes it was given.
  std::string Applied() {
    std::string file(8192, '.');
    modes_.clear();
    for (const auto& bytes : carrier_.batches) {
      const auto batch = recovery::BatchView::Parse(bytes);
      EXPECT_TRUE(batch.ok()) << batch.status();
      EXPECT_EQ(batch->identity().mount_number, 3u);
      for (const auto op : batch->operations()) {
        modes_.push_back(DecodeNamespaceOp(op).value().mode);
      }
      for (const auto& data : batch->data()) {
        file.replace(data.offset, data.bytes.size(), reinterpret_cast<const char*>(data.bytes.data()),
                     data.bytes.size());
      }
    }
    return file;
  }

  RecordedEvents events_;
  OperationLog log_;
  std::unique_ptr<VolumePageOwner> page_;
  uint32_t slot_ = 0;
  std::unique_ptr<Cutter> cutter_;
  Carrier carrier_;
  std::mutex tree_;
  std::unique_ptr<Trailer> trailer_;
  OrderPage order_{};
  Letters letters_;
  Quiet quiet_;
  std::vector<uint32_t> modes_;
};

TEST_F(TrailerTest, P1_WhatIsCapturedIsShipped) {
  Make({.time = milliseconds(20)});
  Trail();
  letters_.text.replace(100, 5, "hello");
  ASSERT_TRUE(Capture(cutter_->outlet(), {64, 128}));
  ASSERT_TRUE(Flush().ok());
  EXPECT_EQ(Applied(), letters_.text);
  EXPECT_EQ(trailer_->status(0).lag_bytes, 0u);
  EXPECT_TRUE(trailer_->status(0).trails);
}

TEST_F(TrailerTest, ABatchThatWasLostIsSentAgainAsItWas) {
  Make({.time = milliseconds(20)});
  carrier_.fates = {Fate::kLost, Fate::kFull, Fate::kApplied};
  Trail();
  ASSERT_TRUE(Capture(cutter_->outlet(), {0, 64}));
  ASSERT_TRUE(Flush().ok());
  ASSERT_EQ(carrier_.numbers, (std::vector<uint64_t>{1, 1, 1}));
  EXPECT_EQ(carrier_.batches[0], carrier_.batches[2]);
}

TEST_F(TrailerTest, P5_ACopyThatDoesNotFitIsToldOnceAndGetsNothingMore) {
  Make({.time = milliseconds(20)});
  carrier_.fates = {Fate::kUnfit};
  Trail();
  ASSERT_TRUE(Capture(cutter_->outlet(), {0, 64}));
  carrier_.AwaitEnd();
  EXPECT_EQ(carrier_.ended, std::vector<Fate>{Fate::kUnfit});
  EXPECT_FALSE(trailer_->status(0).trails);
  EXPECT_EQ(carrier_.numbers.size(), 1u);
}

TEST_F(TrailerTest, OperationsTravelInTheirOrderAndThoseItLacksComeFirst) {
  Make({.time = milliseconds(20)});
  Change(Chmod(1));  // it has this one
  Change(Chmod(2));  // and lacks this one
  trailer_->Collect(0);
  Change(Chmod(3));
  page_->SetMembers(0, 0, 1);
  trailer_->Begin(0, 1);
  Change(Chmod(4));
  ASSERT_TRUE(Flush().ok());
  Applied();
  EXPECT_EQ(modes_, (std::vector<uint32_t>{2, 3, 4}));
  EXPECT_EQ(trailer_->operations_shipped(), 4u);
}

// P1: a sync finds out by itself, whatever the daemon does.
TEST_F(TrailerTest, P1_BeyondTheRpoASyncIsHeldUntilABatchIsAcknowledged) {
  for (const Rpo& rpo : {Rpo{.time = milliseconds(30)}, Rpo{.bytes = 100}, Rpo{.syncs = 2}}) {
    Make(rpo);
    Trail();
    ASSERT_TRUE(WithinRpo());
    carrier_.Hold(true);
    const Deadline limit = Deadline::After(seconds(20));
    while (WithinRpo() && !limit.Expired()) {
      ASSERT_TRUE(Capture(cutter_->outlet(), {0, 64}));
    }
    EXPECT_FALSE(WithinRpo());
    EXPECT_TRUE(trailer_->status(0).breached);
    AwaitShipping();
    EXPECT_FALSE(WithinRpo());
    carrier_.Hold(false);
    ASSERT_TRUE(Flush().ok());
    EXPECT_TRUE(WithinRpo());
    trailer_->Stop();
    EXPECT_GT(trailer_->status(0).breach_ns, 0u);
  }
}

TEST_F(TrailerTest, OneLagIsToldWhenItBeginsAndOnceMoreWhenItIsOver) {
  Make({.syncs = 2});
  Trail();
  const auto fall_behind = [this] {
    carrier_.Hold(true);
    for (int i = 0; i < 4; ++i) {
      ASSERT_TRUE(Capture(cutter_->outlet(), {0, 64}));
    }
  };
  fall_behind();
  carrier_.AwaitLag({true});
  carrier_.Hold(false);
  ASSERT_TRUE(Flush().ok());
  carrier_.AwaitLag({true, false});
  fall_behind();
  carrier_.AwaitLag({true, false, true});
  trailer_->End(0);
  carrier_.AwaitLag({true, false, true, false});
}

TEST_F(TrailerTest, AProgramsLogIsCutWithTheOthersAndEndsWithTheProgram) {
  Make({.time = milliseconds(20)});
  Trail();
  const int fd = cutter_->OpenLog(ProcessSerial{9}).value();
  ASSERT_EQ(cutter_->OpenLog(ProcessSerial{9}).value(), fd) << "the same one";
  auto* const memory = static_cast<CaptureLogMemory*>(
      ::mmap(nullptr, sizeof(CaptureLogMemory), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  CaptureWriter writer(*memory);
  letters_.text.replace(0, 3, "abc");
  ASSERT_TRUE(Capture({.clock = &cutter_->clock(), .log = &writer}, {0, 64}));
  cutter_->CloseLog(ProcessSerial{9});
  ASSERT_TRUE(Flush().ok());
  EXPECT_EQ(Applied(), letters_.text) << "what it captured before its end";
  ::munmap(memory, sizeof(CaptureLogMemory));
}

TEST_F(TrailerTest, P5_P9_AScribbledLogCostsAComparisonAndIsSaid) {
  Make({.time = milliseconds(20)});
  Trail();
  const int fd = cutter_->OpenLog(ProcessSerial{9}).value();
  auto* const memory = static_cast<CaptureLogMemory*>(
      ::mmap(nullptr, sizeof(CaptureLogMemory), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  memory->head = UINT64_MAX;
  ASSERT_TRUE(Capture(cutter_->outlet(), {0, 64}));
  carrier_.AwaitEnd();
  EXPECT_EQ(carrier_.ended, std::vector<Fate>{Fate::kUnfit});
  EXPECT_EQ(events_.reported, std::vector<std::string>{"capture_log_damaged"});
  ::munmap(memory, sizeof(CaptureLogMemory));
}

}  // namespace
}  // namespace pmirror::fs
