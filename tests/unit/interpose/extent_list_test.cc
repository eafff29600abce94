// SPDX-License-Identifier: BSD-3-Clause
// The list of dirty ranges against a set of bytes.
#include "interpose/extent_list.h"

#include <gtest/gtest.h>

#include <array>
#include <random>
#include <set>
#include <vector>

namespace pmirror::interpose {
namespace {

using Extents = std::vector<Extent>;

Extents Of(const ExtentList& list) { return {list.extents().begin(), list.extents().end()}; }

TEST(ExtentList, KeepsOrderAndJoinsWhatTouches) {
  std::array<Extent, 8> room;
  ExtentList list(room);
  list.Add({100, 10});
  list.Add({0, 10});
  list.Add({50, 10});
  EXPECT_EQ(Of(list), (Extents{{0, 10}, {50, 10}, {100, 10}}));
  list.Add({10, 40});
  EXPECT_EQ(Of(list), (Extents{{0, 60}, {100, 10}}));
  list.Add({0, 200});
  EXPECT_EQ(Of(list), (Extents{{0, 200}}));
  EXPECT_EQ(list.hull(), (Extent{0, 200}));
}

TEST(ExtentList, EmptyExtentAddsNothing) {
  std::array<Extent, 2> room;
  ExtentList list(room);
  list.Add({10, 0});
  EXPECT_TRUE(list.empty());
  EXPECT_EQ(list.hull(), Extent{});
}

TEST(ExtentList, ClipsAtTheEndOfTheFile) {
  std::array<Extent, 4> room;
  ExtentList list(room);
  list.Add({0, 10});
  list.Add({20, 10});
  list.Add({40, 10});
  list.ClipToSize(25);
  EXPECT_EQ(Of(list), (Extents{{0, 10}, {20, 5}}));
  list.ClipToSize(0);
  EXPECT_TRUE(list.empty());
}

TEST(ExtentList, FullListMergesTheSmallestGapsAndForgetsNothing) {
  std::mt19937_64 random(7);
  for (int round = 0; round < 200; ++round) {
    std::array<Extent, 8> room;
    ExtentList list(room);
    std::set<uint64_t> bytes;
    for (int i = 0; i < 40; ++i) {
      const Extent extent{random() % 4000 * kPageSize, 1 + random() % 3};
      list.Add(extent);
      for (uint64_t at = extent.offset; at < extent.end(); ++at) {
        bytes.insert(at);
      }
    }
    for (size_t i = 1; i < list.extents().size(); ++i) {
      ASSERT_GT(list.extents()[i].offset, list.extents()[i - 1].end());
    }
    for (uint64_t byte : bytes) {
      bool covered = false;
      for (const Extent& extent : list.extents()) {
        covered |= extent.offset <= byte && byte < extent.end();
      }
      ASSERT_TRUE(covered) << byte;
    }
  }
}

TEST(ExtentList, GapsAtTheEdgeOfTheNumbersStillMerge) {
  std::array<Extent, 2> room;
  ExtentList list(room);
  list.Add({0, 1});
  list.Add({uint64_t{1} << 62, 1});
  list.Add({(uint64_t{1} << 63) - 1, 1});
  EXPECT_LE(list.extents().size(), 2u);
  EXPECT_EQ(list.hull(), (Extent{0, uint64_t{1} << 63}));
}

}  // namespace
}  // namespace pmirror::interpose
