// SPDX-License-Identifier: BSD-3-Clause
// Traps 2, 3, 4 and 15 in the steps of one sync, with a fake of everything behind them: pages that a scan
// takes, a replica that the test lets answer when it likes.
#include "interpose/sync_range.h"

#include <gtest/gtest.h>

#include <array>
#include <condition_variable>
#include <future>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "tests/unit/replication/counting_persist.h"

namespace pmirror::interpose {
namespace {

using Extents = std::vector<Extent>;
constexpr FileId kFile{42};

// A file of 100 bytes whose "pages" are single bytes.
class FakeFile : public SyncedFile {
 public:
  void Store(uint64_t at) {
    const std::lock_guard lock(mutex_);
    dirty_.insert(at);
  }
  void ScanAndProtect(Extent range, ExtentList& extents) override {
    const std::lock_guard lock(mutex_);
    for (auto at = dirty_.lower_bound(range.offset); at != dirty_.end() && *at < range.end();) {
      extents.Add({*at, 1});
      at = dirty_.erase(at);
    }
  }
  uint64_t Size() override { return size; }
  Error Capture(std::span<const Extent> extents, LocalPersist* local) override {
    std::unique_lock lock(mutex_);
    captures_.emplace_back(extents.begin(), extents.end());
    changed_.notify_all();
    const size_t mine = captures_.size();
    changed_.wait(lock, [&] { return !held_ || released_ >= mine; });
    if (local != nullptr) {
      const Error persisted = local->Persist();
      if (!persisted.ok()) {
        return persisted;
      }
    }
    return error == 0 || extents.empty() ? Error::Ok() : Error{error, "the fake replica"};
  }
  bool Alone() override { return alone-- > 0; }
  bool OnlyTrails() override { return only_trails; }
  bool OthersMayBeDirty() override { return others; }
  Error SyncOthers(Extent) override {
    ++asked;
    return others_error == 0 ? Error::Ok() : Error{others_error, "the fake daemon"};
  }
  Deadline WaitDeadline() override { return Deadline::After(patience); }

  void HoldCaptures() {
    const std::lock_guard lock(mutex_);
    held_ = true;
  }
  void Release(size_t captures) {
    const std::lock_guard lock(mutex_);
    released_ = captures;
    changed_.notify_all();
  }
  void WaitForCaptures(size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return captures_.size() >= count; });
  }
  Extents capture(size_t index) {
    const std::lock_guard lock(mutex_);
    return captures_.at(index);
  }
  size_t captures() {
    const std::lock_guard lock(mutex_);
    return captures_.size();
  }

  std::atomic<int> error{0};
  std::atomic<int> others_error{0};
  std::atomic<bool> others{false};
  std::atomic<int> asked{0};
  std::atomic<int> alone{0};  // so many looks find no replica
  bool only_trails = false;
  std::atomic<uint64_t> size{100};
  std::chrono::milliseconds patience{20000};

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::set<uint64_t> dirty_;
  std::vector<Extents> captures_;
  bool held_ = false;
  size_t released_ = 0;
};

class SyncRangeTest : public ::testing::Test {
 protected:
  SyncRangeTest() { tickets_->Attach(table_.get()); }

  int Sync(Extent range = {0, 100}, bool nested = false, LocalPersist* local = nullptr) {
    std::array<Extent, 16> room;
    return SyncRange(*tickets_,
                     {.volume = 0, .file = kFile, .range = range, .local = local, .nested = nested}, file_,
                     room)
        .code;
  }
  size_t Tickets(TicketState state) const {
    size_t count = 0;
    for (const Ticket& ticket : table_->tickets) {
      count += ticket.state.load() == static_cast<uint32_t>(state) ? 1 : 0;
    }
    return count;
  }

  std::unique_ptr<TicketTable> table_ = std::make_unique<TicketTable>();
  std::unique_ptr<TicketLog> tickets_ = std::make_unique<TicketLog>();
  FakeFile file_;
};

TEST_F(SyncRangeTest, SendsWhatIsDirtyAndLeavesNoTicket) {
  file_.Store(3);
  file_.Store(4);
  file_.Store(50);
  EXPECT_EQ(Sync(), 0);
  EXPECT_EQ(file_.capture(0), (Extents{{3, 2}, {50, 1}}));
  EXPECT_EQ(Tickets(TicketState::kFree), kMaxTickets);
  EXPECT_EQ(table_->acknowledged_syncs[0].load(), 1u);
}

TEST_F(SyncRangeTest, P1_WithoutReplicasPagesAreMadeDurableHereAndStayDirtyForWhoJoins) {
  file_.Store(3);
  file_.alone = 2;
  CountingPersist local;
  EXPECT_EQ(Sync({0, 100}, false, &local), 0);
  EXPECT_EQ(local.calls, 1);
  EXPECT_EQ(table_->acknowledged_syncs[0].load(), 1u);
  EXPECT_EQ(Sync(), 0);
  EXPECT_EQ(file_.capture(0), (Extents{{3, 1}}));
}

TEST_F(SyncRangeTest, Trap16_AReplicaThatJoinsWhileASyncIsAloneGetsItsBytes) {
  file_.Store(3);
  file_.alone = 1;  // the second look finds a joiner
  EXPECT_EQ(Sync(), 0);
  EXPECT_EQ(file_.capture(0), (Extents{{3, 1}}));
}

TEST_F(SyncRangeTest, P1_ForReplicasThatTrailAFewPagesAreCopiedAsTheyAreAndStayDirty) {
  file_.only_trails = true;
  file_.others = true;
  file_.Store(3);
  CountingPersist local;
  EXPECT_EQ(Sync({0, 100}, false, &local), 0);
  EXPECT_EQ(file_.capture(0), (Extents{{0, 100}})) << "also what others stored there: nobody has to be asked";
  EXPECT_EQ(local.calls, 1);
  EXPECT_EQ(table_->acknowledged_syncs[0].load(), 1u);
  EXPECT_EQ(Tickets(TicketState::kFree), kMaxTickets);
  file_.only_trails = false;
  file_.others = false;
  EXPECT_EQ(Sync(), 0);
  EXPECT_EQ(file_.capture(1), (Extents{{3, 1}}));
}

TEST_F(SyncRangeTest, ForReplicasThatTrailALargeRangeIsScanned) {
  file_.only_trails = true;
  file_.Store(3);
  EXPECT_EQ(Sync({0, 1 << 20}), 0);
  EXPECT_EQ(file_.capture(0), (Extents{{3, 1}}));
}

TEST_F(SyncRangeTest, WithoutReplicasAFailureOfTheLocalPartIsTheResult) {
  file_.alone = 2;
  CountingPersist local;
  local.error = Error{ENOSPC, "as the test wants"};
  EXPECT_EQ(Sync({0, 100}, false, &local), ENOSPC);
  EXPECT_EQ(table_->acknowledged_syncs[0].load(), 0u);
}

TEST_F(SyncRangeTest, LeavesWhatIsOutsideTheRange) {
  file_.Store(3);
  file_.Store(50);
  EXPECT_EQ(Sync({0, 10}), 0);
  EXPECT_EQ(file_.capture(0), (Extents{{3, 1}}));
  EXPECT_EQ(Sync({40, 20}), 0);
  EXPECT_EQ(file_.capture(1), (Extents{{50, 1}}));
}

TEST_F(SyncRangeTest, Trap2CleanPageWaitsForTheFrameOfAnotherThread) {
  file_.HoldCaptures();
  file_.Store(7);
  auto first = std::async(std::launch::async, [&] { return Sync(); });
  file_.WaitForCaptures(1);
  auto second = std::async(std::launch::async, [&] { return Sync(); });
  file_.WaitForCaptures(2);  // it had nothing to send
  EXPECT_EQ(file_.capture(1), Extents{});
  file_.Release(0);
  EXPECT_EQ(second.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout);
  file_.Release(2);
  EXPECT_EQ(first.get(), 0);
  EXPECT_EQ(second.get(), 0);
}

TEST_F(SyncRangeTest, Trap2SyncOfAnotherRangeDoesNotWait) {
  file_.HoldCaptures();
  file_.Store(7);
  auto first = std::async(std::launch::async, [&] { return Sync({0, 10}); });
  file_.WaitForCaptures(1);
  auto second = std::async(std::launch::async, [&] { return Sync({50, 10}); });
  file_.WaitForCaptures(2);
  // Only the second capture may go on: its sync must come to its end although the first is still out.
  file_.Release(2);
  EXPECT_EQ(second.get(), 0);
  EXPECT_EQ(first.get(), 0);
}

TEST_F(SyncRangeTest, Trap3FailureReachesEverybodyWhoWaited) {
  file_.HoldCaptures();
  file_.Store(7);
  file_.error = ENOSPC;
  auto first = std::async(std::launch::async, [&] { return Sync(); });
  file_.WaitForCaptures(1);
  auto second = std::async(std::launch::async, [&] { return Sync(); });
  file_.WaitForCaptures(2);
  file_.Release(2);
  EXPECT_EQ(first.get(), ENOSPC);
  EXPECT_EQ(second.get(), EIO);
  EXPECT_EQ(Tickets(TicketState::kRedo), 1u);
}

TEST_F(SyncRangeTest, Trap3RetrySendsAgainWithoutANewStore) {
  file_.Store(7);
  file_.Store(9);
  file_.error = EIO;
  EXPECT_EQ(Sync(), EIO);
  EXPECT_EQ(Sync({8, 2}), EIO);  // overlaps the hull of what failed
  EXPECT_EQ(file_.capture(1), (Extents{{7, 3}}));
  EXPECT_EQ(Tickets(TicketState::kRedo), 1u);  // retries do not pile up
  file_.error = 0;
  EXPECT_EQ(Sync(), 0);
  EXPECT_EQ(file_.capture(2), (Extents{{7, 3}}));
  EXPECT_EQ(Tickets(TicketState::kFree), kMaxTickets);
  EXPECT_EQ(Sync(), 0);
  EXPECT_EQ(file_.capture(3), Extents{});
}

TEST_F(SyncRangeTest, Trap3RedoRangeMarkedAgainMeanwhileIsNotCleared) {
  ASSERT_TRUE(tickets_->MarkRedo(0, kFile, {10, 10}));
  file_.HoldCaptures();
  auto sync = std::async(std::launch::async, [&] { return Sync(); });
  file_.WaitForCaptures(1);
  ASSERT_TRUE(tickets_->MarkRedo(0, kFile, {12, 2}));  // after the copy was taken
  file_.Release(1);
  EXPECT_EQ(sync.get(), 0);
  EXPECT_EQ(Tickets(TicketState::kRedo), 1u);
}

TEST_F(SyncRangeTest, Trap3LocalFailureFailsTheSyncAndKeepsTheRange) {
  class Fails : public LocalPersist {
    Error Persist() override { return {EIO, "the local disk"}; }
  } fails;
  file_.Store(5);
  EXPECT_EQ(Sync({0, 100}, false, &fails), EIO);
  EXPECT_EQ(Sync(), 0);
  EXPECT_EQ(file_.capture(1), (Extents{{5, 1}}));
}

TEST_F(SyncRangeTest, Trap4OthersAreAskedAfterTheScan) {
  file_.others = true;
  EXPECT_EQ(Sync(), 0);
  EXPECT_EQ(file_.asked, 1);
  file_.others_error = EIO;
  EXPECT_EQ(Sync(), EIO);
}

TEST_F(SyncRangeTest, Trap15NestedSyncWaitsForNobodyAndSendsItself) {
  file_.HoldCaptures();
  file_.Store(7);
  auto interrupted = std::async(std::launch::async, [&] { return Sync(); });
  file_.WaitForCaptures(1);
  auto nested = std::async(std::launch::async, [&] { return Sync({0, 100}, /*nested=*/true); });
  file_.WaitForCaptures(2);
  EXPECT_EQ(file_.capture(1), (Extents{{7, 1}}));  // what the other has taken and nobody has acknowledged
  file_.Release(2);
  EXPECT_EQ(nested.get(), 0);
  EXPECT_EQ(interrupted.get(), 0);
}

TEST_F(SyncRangeTest, P6WaitForAnotherThreadEndsAtItsDeadline) {
  file_.HoldCaptures();
  file_.patience = std::chrono::milliseconds(1);
  file_.Store(7);
  auto first = std::async(std::launch::async, [&] { return Sync(); });
  file_.WaitForCaptures(1);
  std::array<Extent, 16> room;
  ExtentList extents(room);
  TicketLog::Others others;
  const auto own = tickets_->Open(0, kFile, {0, 100});
  ASSERT_TRUE(own.ok());
  tickets_->Look(own.value(), {0, 100}, false, extents, others);
  tickets_->Close(own.value(), others);
  EXPECT_EQ(tickets_->Await(others, Deadline::After(std::chrono::milliseconds(1))).code, EIO);
  file_.Release(1);
  EXPECT_EQ(first.get(), 0);
}

TEST_F(SyncRangeTest, ManyThreadsAndFailuresLoseNoStore) {
  constexpr int kThreads = 4;
  std::vector<std::thread> threads;
  threads.reserve(kThreads);
  std::atomic<int> unexpected{0};
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int round = 0; round < 300; ++round) {
        file_.error = round % 7 == 3 ? EIO : 0;
        file_.Store(static_cast<uint64_t>((t * 31 + round) % 100));
        const int result = Sync();
        unexpected += result != 0 && result != EIO ? 1 : 0;
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(unexpected, 0);
  file_.error = 0;
  EXPECT_EQ(Sync(), 0);
  EXPECT_EQ(Tickets(TicketState::kFree), kMaxTickets);
}

}  // namespace
}  // namespace pmirror::interpose
