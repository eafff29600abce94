// SPDX-License-Identifier: BSD-3-Clause
// Staging buffers, the filling of frames, order numbers, the spin budget, the reply reader: the small parts
// of the sending side, each on its own.
#include "replication/staging.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <set>
#include <thread>

#include "replication/crc32c.h"
#include "replication/frame_filler.h"
#include "replication/order_page.h"
#include "replication/reply_reader.h"
#include "replication/spin_budget.h"
#include "tests/unit/replication/run_threads.h"

namespace pmirror {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::SizeIs;

TEST(StagingPool, BuffersOfOddSizesAreRefused) {
  EXPECT_EQ(StagingPool::Create(0).error().code, EINVAL);
  EXPECT_EQ(StagingPool::Create(kPageSize + 1).error().code, EINVAL);
}

TEST(StagingPool, HandsOutEachBufferOnceAndThenNoneUntilOneComesBack) {
  const auto pool = std::move(StagingPool::Create(kPageSize).value());
  std::vector<StagingPool::Buffer> buffers;
  std::set<const std::byte*> places;
  for (size_t i = 0; i < kStagingBuffers; ++i) {
    buffers.push_back(std::move(pool->Take(Deadline::After(seconds(60))).value()));
    EXPECT_THAT(buffers.back().bytes(), SizeIs(kPageSize));
    places.insert(buffers.back().bytes().data());
  }
  EXPECT_THAT(places, SizeIs(kStagingBuffers));
  EXPECT_EQ(pool->Take(Deadline::After(milliseconds(1))).error().code, ETIMEDOUT);
  const std::byte* const freed = buffers[3].bytes().data();
  buffers.erase(buffers.begin() + 3);
  EXPECT_EQ(pool->Take(Deadline::After(seconds(60))).value().bytes().data(), freed);
}

TEST(StagingPool, ATakerSleepsUntilABufferComesBack) {
  const auto pool = std::move(StagingPool::Create(kPageSize).value());
  std::vector<StagingPool::Buffer> buffers;
  for (size_t i = 0; i < kStagingBuffers; ++i) {
    buffers.push_back(std::move(pool->Take(Deadline::After(seconds(60))).value()));
  }
  std::thread taker([&] { EXPECT_TRUE(pool->Take(Deadline::After(seconds(60))).ok()); });
  buffers.clear();
  taker.join();
}

TEST(StagingPool, ManyThreadsNeverHoldTheSameBuffer) {
  const auto pool = std::move(StagingPool::Create(kPageSize).value());
  RunThreads(16, [&](int thread) {
    for (int i = 0; i < 500; ++i) {
      auto buffer = pool->Take(Deadline::After(seconds(60)));
      ASSERT_TRUE(buffer.ok());
      std::memset(buffer.value().bytes().data(), thread, 64);
      ASSERT_EQ(buffer.value().bytes()[63], static_cast<std::byte>(thread));
    }
  });
}

TEST(StagingPool, Trap6_AChildOfAForkHasAllBuffersAgain) {
  const auto pool = std::move(StagingPool::Create(kPageSize).value());
  auto held = std::move(pool->Take(Deadline::After(seconds(60))).value());
  pool->ResetAfterFork();
  std::vector<StagingPool::Buffer> buffers;
  for (size_t i = 0; i < kStagingBuffers; ++i) {
    auto buffer = pool->Take(Deadline::After(milliseconds(1)));
    ASSERT_TRUE(buffer.ok());
    buffers.push_back(std::move(buffer.value()));
  }
}

TEST(TakeOrder, CountsOnlyUnderAnUnchangedEvenGeneration) {
  OrderPage page{};
  page.next = 10;
  std::atomic<uint64_t> generation{4};
  EXPECT_EQ(TakeOrder(page, generation), (Order{.number = 10, .size_generation = 4}));
  generation = 5;
  EXPECT_EQ(TakeOrder(page, generation), std::nullopt);
  EXPECT_EQ(page.next, 11U);  // no number was wasted
}

TEST(TakeOrder, NoNumberOfAGenerationIsTakenAfterTheNextOneBegan) {
  OrderPage page{};
  page.next = 1;
  std::atomic<uint64_t> generation{0};
  std::atomic<bool> stop{false};
  std::vector<Order> taken;
  std::thread taker([&] {
    while (!stop) {
      if (const auto order = TakeOrder(page, generation); order.has_value()) {
        taken.push_back(*order);
      }
    }
  });
  std::vector<uint64_t> bounds;  // the counter when generation 2i+1 began
  for (int i = 0; i < 2000; ++i) {
    ++generation;
    bounds.push_back(page.next);
    ++generation;
  }
  stop = true;
  taker.join();
  for (const Order& order : taken) {
    const uint64_t i = order.size_generation / 2;
    if (i < bounds.size()) {
      ASSERT_LT(order.number, bounds[i]);
    }
  }
}

class Numbers : public ByteSource {
 public:
  explicit Numbers(uint64_t size) : size_(size) {}
  static std::byte At(uint64_t offset) { return static_cast<std::byte>(offset * 7 + offset / 256); }
  Result<size_t> Copy(Extent extent, std::span<std::byte> out) override {
    size_t count = 0;
    for (; count < extent.length && extent.offset + count < size_; ++count) {
      out[count] = At(extent.offset + count);
    }
    return count;
  }

 private:
  uint64_t size_;
};

// Every byte of every extent up to the end of the file is in exactly one range, and frames keep to their
// bounds.
TEST(FrameFiller, RandomExtentsAreCoveredOnceWithinTheBudget) {
  std::mt19937 random(7);
  const auto pool = std::move(StagingPool::Create(16 * kPageSize).value());
  for (int round = 0; round < 200; ++round) {
    std::vector<Extent> extents;
    uint64_t at = 0;
    const uint64_t count = random() % 50;
    for (uint64_t i = 0; i < count; ++i) {
      at += random() % 500;
      const uint64_t length = random() % (random() % 10 == 0 ? 200'000 : 700);
      extents.push_back({at, length});
      at += length;
    }
    const uint64_t size = random() % 4 == 0 ? at / 2 : at;
    const size_t budget = kMinFrameBudget + random() % 100'000;
    Numbers source(size);
    FrameFiller filler(extents, source);
    std::vector<int> covered(at);
    bool last = false;
    while (!last) {
      auto buffer = std::move(pool->Take(Deadline::After(seconds(60))).value());
      const auto frame = filler.Fill(buffer.bytes(), budget);
      ASSERT_TRUE(frame.ok());
      last = frame.value().last;
      ASSERT_TRUE(last || !frame.value().ranges.empty());
      ASSERT_LE(sizeof(FrameHeader) + frame.value().ranges.size_bytes() + frame.value().payload.size(),
                budget);
      ASSERT_EQ(frame.value().payload_crc, Crc32c(0, frame.value().payload));
      size_t in_payload = 0;
      for (const WireRange& range : frame.value().ranges) {
        ASSERT_GT(range.length, 0U);
        for (uint64_t i = range.offset; i < range.offset + range.length; ++i) {
          ++covered[i];
          ASSERT_EQ(frame.value().payload[in_payload++], Numbers::At(i));
        }
      }
      ASSERT_EQ(in_payload, frame.value().payload.size());
    }
    std::vector<int> expected(at);
    for (const Extent& extent : extents) {
      for (uint64_t i = extent.offset; i < std::min(extent.end(), size); ++i) {
        expected[i] = 1;
      }
    }
    ASSERT_EQ(covered, expected);
  }
}

TEST(FrameFiller, P2_SplitsAtCacheLinesOnly) {
  const auto pool = std::move(StagingPool::Create(16 * kPageSize).value());
  Numbers source(1 << 20);
  const Extent extent{8, 1 << 19};
  FrameFiller filler({&extent, 1}, source);
  bool last = false;
  while (!last) {
    auto buffer = std::move(pool->Take(Deadline::After(seconds(60))).value());
    const auto frame = filler.Fill(buffer.bytes(), 5000);
    ASSERT_TRUE(frame.ok());
    last = frame.value().last;
    const WireRange& range = frame.value().ranges.back();
    ASSERT_TRUE(last || (range.offset + range.length) % 64 == 0);
  }
}

TEST(SpinBudget, OneCpuNeverSpins) {
  SpinBudget budget(1);
  EXPECT_EQ(budget.Next(), SpinBudget::Duration::zero());
}

TEST(SpinBudget, FollowsTheRoundTripAndGivesUpOnLongOnes) {
  SpinBudget budget(2);
  EXPECT_EQ(budget.Next(), SpinBudget::kLongest);  // nothing is known yet
  budget.Waited(std::chrono::microseconds(10));
  EXPECT_EQ(budget.Next(), std::chrono::microseconds(20));
  for (int i = 0; i < 100; ++i) {
    budget.Waited(milliseconds(1));
  }
  EXPECT_EQ(budget.Next(), SpinBudget::Duration::zero());
}

TEST(SpinBudget, MissesMakePausesThatGrowAndAHitEndsThem) {
  SpinBudget budget(2);
  budget.Waited(std::chrono::microseconds(10));
  uint32_t longest = 0;
  for (int tries = 0; tries < 20; ++tries) {
    uint32_t pause = 0;
    while (budget.Next() == SpinBudget::Duration::zero()) {
      ++pause;
    }
    EXPECT_GE(pause, longest);
    longest = pause;
    budget.Spun(false);
  }
  EXPECT_EQ(longest, SpinBudget::kLongestPause);
  while (budget.Next() == SpinBudget::Duration::zero()) {
  }
  budget.Spun(true);
  EXPECT_NE(budget.Next(), SpinBudget::Duration::zero());
}

class ReplyReaderTest : public testing::Test {
 protected:
  static std::vector<std::byte> Frame(FrameKind kind, std::span<const std::byte> body, size_t extension = 0) {
    FrameHeader header{};
    header.magic = kFrameMagic;
    header.version = kFrameVersion;
    header.kind = static_cast<uint8_t>(kind);
    header.session = 9;
    header.extension_length = static_cast<uint32_t>(extension);
    header.payload_length = static_cast<uint32_t>(body.size());
    header.payload_crc = body.empty() ? 0 : Crc32c(0, body);
    const std::vector<std::byte> unknown(extension, std::byte{0xEE});
    header.header_crc = HeaderCrc(header, {}, unknown);
    const auto head = std::as_bytes(std::span(&header, 1));
    std::vector<std::byte> frame(head.begin(), head.end());
    frame.insert(frame.end(), unknown.begin(), unknown.end());
    frame.insert(frame.end(), body.begin(), body.end());
    return frame;
  }
  static std::vector<std::byte> AckFrame(Sequence received, size_t extension = 0) {
    const AckBody ack{
        .received_sequence = received, .durable_sequence = 0, .operation_durable = 0, .credit_limit = 0};
    return Frame(FrameKind::kAck, std::as_bytes(std::span(&ack, 1)), extension);
  }
  void Feed(std::span<const std::byte> bytes) {
    ASSERT_LE(bytes.size(), reader_.Room().size());
    std::memcpy(reader_.Room().data(), bytes.data(), bytes.size());
    reader_.Filled(bytes.size());
  }
  ReplyReader reader_;
};

TEST_F(ReplyReaderTest, CutsTheStreamAnywhere) {
  std::vector<std::byte> stream;
  for (Sequence i = 1; i <= 300; ++i) {
    const auto frame = AckFrame(i, i % 3 == 0 ? kMaxExtension : 0);
    stream.insert(stream.end(), frame.begin(), frame.end());
  }
  std::mt19937 random(3);
  Sequence seen = 0;
  for (size_t at = 0; at < stream.size();) {
    const size_t count = std::min<size_t>({1 + random() % 700, stream.size() - at, reader_.Room().size()});
    ASSERT_GT(count, 0U);
    Feed(std::span(stream).subspan(at, count));
    at += count;
    while (reader_.Take() == ReplyReader::Next::kAck) {
      ASSERT_EQ(reader_.ack().received_sequence, ++seen);
    }
  }
  EXPECT_EQ(seen, 300U);
}

TEST_F(ReplyReaderTest, P9_OneWrongByteAnywhereIsAFault) {
  const auto good = AckFrame(1);
  for (size_t at = 0; at < good.size(); ++at) {
    auto bad = good;
    bad[at] ^= std::byte{1};
    reader_.Reset();
    Feed(bad);
    const auto next = reader_.Take();
    // A length that grew waits for bytes that never come; everything else is found at once.
    ASSERT_TRUE(next == ReplyReader::Next::kFault || next == ReplyReader::Next::kNone) << at;
    ASSERT_NE(next, ReplyReader::Next::kAck) << at;
  }
}

TEST_F(ReplyReaderTest, AVerifiedHasAllOfItsBodyOrIsAFault) {
  VerifiedBody body{};
  body.order = 77;
  body.crc[kMaxVerifyRanges - 1] = 5;
  const auto bytes = std::as_bytes(std::span(&body, 1));
  Feed(Frame(FrameKind::kVerified, bytes));
  ASSERT_EQ(reader_.Take(), ReplyReader::Next::kVerified);
  EXPECT_EQ(reader_.verified().order, 77U);
  EXPECT_EQ(reader_.verified().crc[kMaxVerifyRanges - 1], 5U);
  Feed(Frame(FrameKind::kVerified, bytes.first(bytes.size() - 4)));
  EXPECT_EQ(reader_.Take(), ReplyReader::Next::kFault);
}

TEST_F(ReplyReaderTest, P9_KindsThatOnlySendersSendAreFaults) {
  for (const FrameKind kind :
       {FrameKind::kHello, FrameKind::kDataImage, FrameKind::kNamespaceOp, FrameKind::kBarrier,
        FrameKind::kGrant, FrameKind::kRevoke, FrameKind::kVerify}) {
    reader_.Reset();
    Feed(Frame(kind, {}));
    EXPECT_EQ(reader_.Take(), ReplyReader::Next::kFault) << Name(kind);
  }
  reader_.Reset();
  Feed(Frame(FrameKind::kHeartbeat, {}));
  EXPECT_EQ(reader_.Take(), ReplyReader::Next::kOther);
}

}  // namespace
}  // namespace pmirror
