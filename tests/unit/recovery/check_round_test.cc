// SPDX-License-Identifier: BSD-3-Clause
// What a round of the background check looks at, and how fast.
#include "recovery/check_round.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <map>

namespace pmirror::recovery {
namespace {

using namespace std::chrono_literals;

Inventory Files(const std::vector<std::pair<FileId, uint64_t>>& files) {
  Inventory inventory;
  for (const auto& [id, size] : files) {
    TreeItem item;
    item.path = "f" + std::to_string(Raw(id));
    item.id = id;
    item.mode = S_IFREG;
    item.size = size;
    inventory.push_back(item);
  }
  return inventory;
}

TEST(CheckRoundTest, EveryByteOfEveryFileIsLookedAtOnceWhereverTheRoundBegins) {
  Inventory inventory =
      Files({{FileId{2}, 3 * kCheckStep + 7}, {FileId{3}, 0}, {FileId{4}, 1}, {FileId{5}, kCheckStep}});
  inventory.push_back(inventory.front());  // another name of it
  inventory.push_back(inventory.front());
  inventory.back().id = FileId::kNone;  // pmirror did not make it
  inventory.push_back(inventory.front());
  inventory.back().id = FileId{6};
  inventory.back().mode = S_IFLNK;
  std::map<FileId, int> first;
  for (uint64_t start = 0; start < 6; ++start) {
    CheckRound round(inventory, start);
    std::map<FileId, uint64_t> reached;
    int steps = 0;
    while (const std::optional<CheckRound::Step> step = round.Next()) {
      first[step->file] += steps++ == 0 ? 1 : 0;
      EXPECT_EQ(step->extent.offset, reached[step->file]) << "in order, without gaps";
      EXPECT_LE(step->extent.length, kCheckStep);
      EXPECT_EQ(step->path, "f" + std::to_string(Raw(step->file)));
      reached[step->file] = step->extent.end();
    }
    EXPECT_THAT(reached, ::testing::ElementsAre(std::pair(FileId{2}, 3 * kCheckStep + 7),
                                                std::pair(FileId{4}, 1), std::pair(FileId{5}, kCheckStep)));
    EXPECT_EQ(round.bytes(), 4 * kCheckStep + 8);
  }
  EXPECT_THAT(first, ::testing::ElementsAre(std::pair(FileId{2}, 2), std::pair(FileId{4}, 2),
                                            std::pair(FileId{5}, 2)));
}

TEST(CheckRoundTest, TheRoundTakesItsPeriodWhateverTheStepsTake) {
  CheckRound round(Files({{FileId{2}, 10 * kCheckStep}, {FileId{3}, kCheckStep / 2}}), 0);
  std::chrono::nanoseconds time{};
  while (const std::optional<CheckRound::Step> step = round.Next()) {
    const std::chrono::nanoseconds worked = 1ms * (step->extent.length % 3 + 1);
    time += worked + round.RestAfter(step->extent.length, worked, 100s);
  }
  EXPECT_LT(100s - time, 1us);
  EXPECT_LT(time - 100s, 1us);
}

TEST(CheckRoundTest, NoMoreThanATenthOfTheTimeIsWorkHoweverShortThePeriod) {
  CheckRound round(Files({{FileId{2}, 100 * kCheckStep}}), 0);
  EXPECT_EQ(round.RestAfter(kCheckStep, 50ms, 1s), 450ms);
}

TEST(CheckRoundTest, AnEmptyVolumeIsLookedAtAgainAfterThePeriod) {
  CheckRound round({}, 3);
  EXPECT_FALSE(round.Next().has_value());
  EXPECT_EQ(round.RestAfter(0, 0ns, 7s), 7s);
}

}  // namespace
}  // namespace pmirror::recovery
