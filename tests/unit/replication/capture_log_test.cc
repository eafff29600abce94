// SPDX-License-Identifier: BSD-3-Clause
// The capture log between a process and the daemon, and the cut through several of them (docs/internals/rpo.md).
#include "replication/capture_log.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "replication/capture_reader.h"
#include "replication/crc32c.h"
#include "replication/log_capture.h"
#include "replication/signal_guard.h"

namespace pmirror {
namespace {

constexpr FileId kFile{7};

class Log {
 public:
  Log()
      : memory_(static_cast<CaptureLogMemory*>(::mmap(
            nullptr, sizeof(CaptureLogMemory), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))) {
    CaptureReader::Initialise(*memory_);
  }
  ~Log() { ::munmap(memory_, sizeof(CaptureLogMemory)); }
  CaptureLogMemory& memory() { return *memory_; }

 private:
  CaptureLogMemory* memory_;
};

class CaptureLog : public testing::Test {
 protected:
  CaptureWriter::Entry Fill(const CaptureWriter::Room& room, uint64_t number, std::byte value) {
    const size_t payload = room.bytes.size() - sizeof(WireRange);
    const WireRange range{.offset = 64, .length = payload};
    std::memcpy(room.bytes.data(), &range, sizeof range);
    std::memset(room.bytes.data() + sizeof range, static_cast<int>(value), payload);
    return {.file = kFile,
            .number = number,
            .range_count = 1,
            .payload_bytes = static_cast<uint32_t>(payload),
            .crc = Crc32c(Crc32c(0, room.bytes.subspan(sizeof range)), room.bytes.first(sizeof range))};
  }
  bool Write(uint64_t number, size_t bytes = 128, std::byte value = std::byte{1}) {
    const auto room = writer_.Reserve(bytes);
    return room.has_value() && writer_.Commit(*room, Fill(*room, number, value));
  }
  std::vector<uint64_t> Take(uint64_t cut) {
    std::vector<uint64_t> numbers;
    EXPECT_TRUE(reader_.Pass(cut, [&](const CaptureReader::Capture& capture) {
      EXPECT_EQ(capture.file, kFile);
      EXPECT_EQ(capture.ranges.size(), 1U);
      EXPECT_EQ(capture.ranges[0].length, capture.payload.size());
      numbers.push_back(capture.number);
    }));
    return numbers;
  }

  Log log_;
  CaptureWriter writer_{log_.memory()};
  CaptureReader reader_{log_.memory()};
};

TEST_F(CaptureLog, WhatIsCommittedIsTakenOnce) {
  EXPECT_TRUE(Write(1));
  EXPECT_TRUE(Write(2));
  EXPECT_EQ(Take(5), (std::vector<uint64_t>{1, 2}));
  EXPECT_TRUE(Take(9).empty());
  EXPECT_EQ(reader_.fill(), 0);
}

TEST_F(CaptureLog, WhatLiesBehindTheCutStaysForTheNextOne) {
  EXPECT_TRUE(Write(8));
  EXPECT_TRUE(Write(3));
  EXPECT_EQ(Take(5), (std::vector<uint64_t>{3}));
  EXPECT_EQ(Take(10), (std::vector<uint64_t>{8}));
}

TEST_F(CaptureLog, P2_WhatIsReservedWhenACutGoesByIsRevoked) {
  const auto room = writer_.Reserve(128);
  ASSERT_TRUE(room.has_value());
  EXPECT_TRUE(Take(5).empty());
  EXPECT_FALSE(writer_.Commit(*room, Fill(*room, 3, std::byte{1})));
  EXPECT_TRUE(Take(6).empty());
  EXPECT_EQ(reader_.fill(), 0) << "its room is given back";
}

// P6: a thread that is stopped in the middle, or was killed there.
TEST_F(CaptureLog, AnOwnerThatNeverComesBackHoldsUpNobodyUntilTheRingIsFull) {
  const auto lost = writer_.Reserve(128);
  ASSERT_TRUE(lost.has_value());
  uint64_t number = 1;
  uint64_t taken = 0;
  for (int lap = 0; lap < 4; ++lap) {
    EXPECT_TRUE(Write(number++));
    taken += Take(number).size();
  }
  EXPECT_EQ(taken, 4U);
  while (Write(number)) {
    ++number;
  }
  EXPECT_TRUE(writer_.Full(128));
  Take(number);
  EXPECT_TRUE(writer_.Full(128));
  writer_.Abandon(*lost);
  Take(number);
  EXPECT_FALSE(writer_.Full(128));
  EXPECT_EQ(reader_.fill(), 0);
}

TEST_F(CaptureLog, RoomsLieInOnePieceWhereTheRingEnds) {
  uint64_t number = 1;
  for (int i = 0; i < 200; ++i) {
    const size_t bytes = 100'000 + static_cast<size_t>(i) * 731;
    ASSERT_TRUE(Write(number++, bytes, static_cast<std::byte>(i)));
    ASSERT_EQ(Take(number).size(), 1U);
  }
}

// P9: the memory belongs to a program, which may have written anything to it.
TEST_F(CaptureLog, P9_WhatAProgramScribbledOverIsNotTaken) {
  const auto faulty = [&](auto scribble) {
    Log log;
    CaptureWriter writer(log.memory());
    CaptureReader reader(log.memory());
    const auto room = writer.Reserve(128);
    EXPECT_TRUE(writer.Commit(*room, Fill(*room, 1, std::byte{1})));
    scribble(log.memory());
    return !reader.Pass(9, [](const CaptureReader::Capture&) { FAIL() << "taken"; });
  };
  EXPECT_TRUE(faulty([](CaptureLogMemory& log) { log.ring[40] = std::byte{9}; }));
  EXPECT_TRUE(faulty([](CaptureLogMemory& log) { log.slots[0].payload_bytes = 1 << 30; }));
  EXPECT_TRUE(faulty([](CaptureLogMemory& log) { log.slots[0].begin = kCaptureUnits - 1; }));
  EXPECT_TRUE(faulty([](CaptureLogMemory& log) { log.slots[0].range_count = 0x10000000; }));
  EXPECT_TRUE(faulty([](CaptureLogMemory& log) { log.slots[0].state = 0x7777; }));
  EXPECT_TRUE(faulty([](CaptureLogMemory& log) { log.head = UINT64_MAX; }));
}

// --- a capture of a file ---

class Quiet : public SyncObserver {
  void Suspended(FileId) override {}
  void Resumed(FileId) override {}
  void Failed(FileId, int) override {}
  void Recaptured() override {}
};

class ShortFile : public ByteSource {
 public:
  Result<size_t> Copy(Extent extent, std::span<std::byte> out) override {
    const uint64_t left = extent.offset < kBytes ? std::min(kBytes - extent.offset, extent.length) : 0;
    std::fill_n(out.begin(), left, std::byte{7});
    return static_cast<size_t>(left);
  }
  static constexpr uint64_t kBytes = kMaxCapture + 100;
};

// Where nobody knows what of a file is dirty, all that a file can hold is.
TEST(CaptureOfAFile, P6_AnExtentThatReachesBeyondTheEndEndsWithTheFile) {
  const auto page = std::make_unique<VolumePage>();
  page->deadline_ns = 200'000'000;
  page->on_loss = static_cast<uint32_t>(OnLoss::kFail);
  page->state = static_cast<uint32_t>(VolumeState::kServing);
  CaptureClock clock{};
  clock.next = 1;
  Log log;
  CaptureWriter writer(log.memory());
  ShortFile file;
  Quiet quiet;
  OrderPage order{};
  const std::array<Extent, 2> extents{Extent{64, INT64_MAX - 64}, Extent{INT64_MAX - 1, 1}};
  {
    const SignalBlock block;
    Patience patience(*page, quiet, kFile);
    const Result<bool> done =
        LogCapture(*page, {.clock = &clock, .log = &writer}, patience)
            .Capture({.file = kFile, .order = &order, .slot = &page->slots[0]}, extents, file, 1);
    ASSERT_TRUE(done.ok() && done.value());
  }
  uint64_t end = 64;
  CaptureReader reader(log.memory());
  ASSERT_TRUE(reader.Pass(100, [&](const CaptureReader::Capture& capture) {
    for (const WireRange& range : capture.ranges) {
      EXPECT_EQ(range.offset, end);
      end += range.length;
    }
  }));
  EXPECT_EQ(end, ShortFile::kBytes);
  EXPECT_LE(capture_log::Unpack(log.memory().head).slot, 3U) << "no room for what is not there";
}

// --- the cut, by real threads ---

constexpr size_t kWriters = 3;

// Words that threads store to while others copy them.
class SharedWords : public ByteSource {
 public:
  Result<size_t> Copy(Extent extent, std::span<std::byte> out) override {
    for (size_t i = 0; i < extent.length / 8; ++i) {
      std::this_thread::yield();  // so that stores and cuts come in the middle
      const uint64_t word = words[extent.offset / 8 + i].load(std::memory_order_acquire);
      std::memcpy(out.data() + i * 8, &word, 8);
    }
    return static_cast<size_t>(extent.length);
  }
  std::array<std::atomic<uint64_t>, 2 * kWriters> words{};
};

// Each thread stores an undo word, syncs it, then the word that depends on it, and syncs all words of everybody. Whatever the cuts
// take, in whatever order, no image may hold a word without its undo word, and none goes back.
TEST(ConsistencyCutOfLogs, P2_ThreadsOfThreeProcessesNeverSeeADependentWordAlone) {
  const auto page = std::make_unique<VolumePage>();
  page->deadline_ns = 10'000'000'000;
  ConfigureReplicas(*page, 1);
  page->state = static_cast<uint32_t>(VolumeState::kServing);
  for (TrailLimits& limits : page->trail) {
    limits.bytes = UINT64_MAX;
    limits.syncs = UINT64_MAX;
  }
  CaptureClock clock{};
  clock.next = 1;
  std::array<Log, kWriters> logs;
  SharedWords shared;
  OrderPage order{};
  constexpr uint64_t kCuts = 300;
  std::atomic<uint64_t> cuts{0};
  std::atomic<size_t> running{kWriters};

  std::vector<std::thread> threads;
  for (size_t me = 0; me < kWriters; ++me) {
    threads.emplace_back([&, me] {
      Quiet quiet;
      CaptureWriter writer(logs[me].memory());
      for (uint64_t round = 1; cuts < kCuts; ++round) {
        const auto sync = [&](Extent extent) {
          const SignalBlock block;
          Patience patience(*page, quiet, kFile);
          const Result<bool> done = LogCapture(*page, {.clock = &clock, .log = &writer}, patience)
                                        .Capture({.file = kFile, .order = &order, .slot = &page->slots[0]},
                                                 {&extent, 1}, shared, 1);
          ASSERT_TRUE(done.ok() && done.value());
        };
        shared.words[2 * me].store(round, std::memory_order_release);
        sync({2 * me * 8, 8});
        shared.words[2 * me + 1].store(round, std::memory_order_release);
        sync({0, 2 * kWriters * 8});
      }
      --running;
    });
  }
  std::array<uint64_t, 2 * kWriters> image{};
  std::array<std::unique_ptr<CaptureReader>, kWriters> readers;
  for (size_t i = 0; i < kWriters; ++i) {
    readers[i] = std::make_unique<CaptureReader>(logs[i].memory());
  }
  for (bool last = false; !last;) {
    // A cut sends back what is under way: some have to get through in between.
    for (const uint64_t seen = clock.syncs; running != 0 && clock.syncs < seen + 2;) {
      std::this_thread::yield();
    }
    last = running == 0;
    page->cut.fetch_or(1, std::memory_order_seq_cst);
    const uint64_t cut = clock.next.fetch_add(1, std::memory_order_seq_cst);
    page->cut.store(cut * 2, std::memory_order_seq_cst);
    std::map<uint64_t, std::pair<uint64_t, std::vector<uint64_t>>> batch;
    for (const auto& reader : readers) {
      std::this_thread::yield();  // so that captures end between the number and the pass
      ASSERT_TRUE(reader->Pass(cut, [&](const CaptureReader::Capture& capture) {
        std::vector<uint64_t> words(capture.payload.size() / 8);
        std::memcpy(words.data(), capture.payload.data(), capture.payload.size());
        batch[capture.number] = {capture.ranges[0].offset / 8, std::move(words)};
      }));
    }
    const auto before = image;
    for (const auto& [number, capture] : batch) {
      std::copy(capture.second.begin(), capture.second.end(),
                image.begin() + static_cast<ptrdiff_t>(capture.first));
    }
    ++cuts;
    for (size_t i = 0; i < kWriters; ++i) {
      ASSERT_LE(image[2 * i + 1], image[2 * i]) << "cut " << cuts;
      ASSERT_GE(image[2 * i], before[2 * i]) << "cut " << cuts;
      ASSERT_GE(image[2 * i + 1], before[2 * i + 1]) << "cut " << cuts;
    }
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (size_t i = 0; i < image.size(); ++i) {
    EXPECT_EQ(image[i], shared.words[i]);
  }
}

}  // namespace
}  // namespace pmirror
