// SPDX-License-Identifier: BSD-3-Clause
// The order map against a model that keeps one number a byte, and its bound.
#include "replication/apply_order.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <vector>

namespace pmirror {
namespace {

using Verdict = ApplyOrder::Verdict;

// One number a byte, no bound.
class Model {
 public:
  explicit Model(size_t bytes) : numbers_(bytes, 0) {}
  bool Newer(uint64_t number, uint64_t at) const { return number >= numbers_[at]; }
  void Record(uint64_t number, const WireRange& range) {
    for (uint64_t at = range.offset; at < range.offset + range.length; ++at) {
      numbers_[at] = std::max(numbers_[at], number);
    }
  }

 private:
  std::vector<uint64_t> numbers_;
};

// Which bytes the pieces write, with the payload offset that each takes its byte from.
std::map<uint64_t, uint64_t> Written(const std::vector<ApplyPiece>& pieces) {
  std::map<uint64_t, uint64_t> written;
  for (const ApplyPiece& piece : pieces) {
    EXPECT_GT(piece.length, 0u);
    for (uint64_t i = 0; i < piece.length; ++i) {
      EXPECT_TRUE(written.emplace(piece.offset + i, piece.payload_offset + i).second) << "written twice";
    }
  }
  return written;
}

std::map<uint64_t, uint64_t> Expected(const Model& model, uint64_t number,
                                      const std::vector<WireRange>& ranges) {
  std::map<uint64_t, uint64_t> expected;
  uint64_t payload = 0;
  for (const WireRange& range : ranges) {
    for (uint64_t i = 0; i < range.length; ++i, ++payload) {
      if (model.Newer(number, range.offset + i)) {
        expected.emplace(range.offset + i, payload);
      }
    }
  }
  return expected;
}

constexpr size_t kFileBytes = 400;

std::vector<WireRange> RandomRanges(std::mt19937& random, bool sorted) {
  std::vector<WireRange> ranges;
  uint64_t at = random() % 40;
  const size_t count = 1 + random() % 6;
  for (size_t i = 0; i < count; ++i) {
    const uint64_t length = 1 + random() % 40;
    if (at + length > kFileBytes) {
      break;
    }
    ranges.push_back({at, length});
    at += length + random() % 30;
  }
  if (!sorted) {
    std::shuffle(ranges.begin(), ranges.end(), random);
  }
  return ranges;
}

class AgainstTheModel : public testing::TestWithParam<int> {};

TEST_P(AgainstTheModel, FramesInAnyOrderWriteWhatAByteWiseMapWrites) {
  std::mt19937 random(static_cast<uint32_t>(GetParam()));
  ApplyOrder order(100000);
  Model model(kFileBytes);
  for (int step = 0; step < 3000; ++step) {
    const uint64_t number = step / 2 + random() % 30;
    const std::vector<WireRange> ranges = RandomRanges(random, step % 4 != 0);
    std::vector<ApplyPiece> pieces;
    ASSERT_TRUE(order.Plan(number, ranges, pieces));
    ASSERT_EQ(Written(pieces), Expected(model, number, ranges)) << "step " << step;
    order.Record(number, ranges);
    for (const WireRange& range : ranges) {
      model.Record(number, range);
    }
    ASSERT_LE(order.entries(), kFileBytes);
  }
}

TEST_P(AgainstTheModel, ASmallMapRefusesWhatItForgotAndNeverWritesOldOverNew) {
  std::mt19937 random(static_cast<uint32_t>(GetParam()));
  ApplyOrder order(8);
  Model model(kFileBytes);
  int refused = 0;
  for (int step = 0; step < 3000; ++step) {
    const uint64_t number = step / 2 + random() % 30;
    const std::vector<WireRange> ranges = RandomRanges(random, step % 4 != 0);
    std::vector<ApplyPiece> pieces = {{7, 7, 7}};
    if (!order.Plan(number, ranges, pieces)) {
      ++refused;
      ASSERT_LT(number, order.floor());
      ASSERT_EQ(pieces, (std::vector<ApplyPiece>{{7, 7, 7}}));
      continue;
    }
    pieces.erase(pieces.begin());
    ASSERT_EQ(Written(pieces), Expected(model, number, ranges)) << "step " << step;
    order.Record(number, ranges);
    for (const WireRange& range : ranges) {
      model.Record(number, range);
    }
    ASSERT_LE(order.entries(), 8u);
  }
  EXPECT_GT(refused, 100);
}

INSTANTIATE_TEST_SUITE_P(Seeds, AgainstTheModel, testing::Range(1, 9));

std::vector<ApplyPiece> Planned(const ApplyOrder& order, uint64_t number, std::vector<WireRange> ranges) {
  std::vector<ApplyPiece> pieces;
  EXPECT_TRUE(order.Plan(number, ranges, pieces));
  return pieces;
}

TEST(ApplyOrder, Trap1AnOlderFrameThatComesLateWritesOnlyWhatNobodyWroteSince) {
  ApplyOrder order;
  order.Record(10, std::vector<WireRange>{{100, 50}});
  EXPECT_EQ(Planned(order, 9, {{80, 100}}), (std::vector<ApplyPiece>{{80, 20, 0}, {150, 30, 70}}));
  EXPECT_EQ(Planned(order, 9, {{100, 50}}), (std::vector<ApplyPiece>{}));
  EXPECT_EQ(Planned(order, 11, {{80, 100}}), (std::vector<ApplyPiece>{{80, 100, 0}}));
}

TEST(ApplyOrder, RangesThatTouchBecomeOnePieceAndOneEntry) {
  ApplyOrder order;
  const std::vector<WireRange> ranges = {{0, 10}, {10, 10}, {40, 10}};
  EXPECT_EQ(Planned(order, 1, ranges), (std::vector<ApplyPiece>{{0, 20, 0}, {40, 10, 20}}));
  order.Record(1, ranges);
  order.Record(1, std::vector<WireRange>{{20, 20}});
  EXPECT_EQ(order.entries(), 1u);
}

TEST(ApplyOrder, ACaptureOfMoreRangesThanEntriesIsAppliedToItsEnd) {
  ApplyOrder order(16);
  for (uint64_t i = 0; i < 1000; ++i) {
    const std::vector<WireRange> range = {{i * 8192, 4096}};
    ASSERT_EQ(Planned(order, 5, range).size(), 1u) << i;
    order.Record(5, range);
  }
}

TEST(ApplyOrder, JudgeFollowsTheTableOfGenerations) {
  ApplyOrder order;
  EXPECT_EQ(order.Judge(0, 0), Verdict::kApply);
  EXPECT_EQ(order.Judge(2 * 7, 6), Verdict::kWaitForOperation);
  EXPECT_EQ(order.Judge(2 * 7, 7), Verdict::kApply);
  order.SizeChanged(9);
  EXPECT_EQ(order.Judge(2 * 8, 9), Verdict::kRecapture);
  EXPECT_EQ(order.Judge(2 * 9, 9), Verdict::kApply);
  EXPECT_EQ(order.Judge(2 * 12, 12), Verdict::kApply);  // the counter began after operations on other files
  EXPECT_EQ(order.Judge(2 * 13, 12), Verdict::kWaitForOperation);
}

TEST(ApplyOrder, ASizeOperationEmptiesTheMap) {
  ApplyOrder order;
  order.Record(10, std::vector<WireRange>{{0, 100}});
  order.SizeChanged(3);
  EXPECT_EQ(order.entries(), 0u);
  EXPECT_EQ(Planned(order, 4, {{0, 100}}).size(), 1u);
}

TEST(ApplyOrder, NewestIsTheLargestNumberOfAnyByteAndTheFloorWhereNoneIsKept) {
  ApplyOrder order(2);
  const auto record = [&](uint64_t number, uint64_t offset) {
    const WireRange range{offset, 10};
    order.Record(number, {&range, 1});
  };
  const auto newest = [&](uint64_t offset, uint64_t length) {
    const WireRange range{offset, length};
    return order.Newest({&range, 1});
  };
  EXPECT_EQ(newest(0, 100), 0U);
  record(5, 10);
  record(7, 30);
  EXPECT_EQ(newest(0, 10), 0U);
  EXPECT_EQ(newest(19, 1), 5U);
  EXPECT_EQ(newest(20, 10), 0U);
  EXPECT_EQ(newest(15, 16), 7U);
  record(9, 50);  // one more than fits: the older ones give way
  ASSERT_GE(order.floor(), 5U);
  EXPECT_EQ(newest(10, 10), order.floor());
  EXPECT_EQ(newest(50, 10), 9U);
  EXPECT_EQ(newest(49, 12), 9U);
  EXPECT_EQ(newest(0, 1), order.floor());  // not known to be older
}

TEST(ApplyOrder, CompactionKeepsOlderFramesOut) {
  ApplyOrder order;
  order.Record(10, std::vector<WireRange>{{0, 100}});
  order.Compact();
  EXPECT_EQ(order.entries(), 0u);
  std::vector<ApplyPiece> pieces;
  EXPECT_FALSE(order.Plan(9, std::vector<WireRange>{{0, 1}}, pieces));
  EXPECT_TRUE(order.Plan(10, std::vector<WireRange>{{0, 1}}, pieces));
}

}  // namespace
}  // namespace pmirror
