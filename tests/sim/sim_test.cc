// SPDX-License-Identifier: BSD-3-Clause
// Seeds of the simulation, and the bugs that it is shown to find.
#include <gtest/gtest.h>

#include <algorithm>
#include <iostream>

#include "tests/sim/node.h"

namespace pmirror::sim {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif
constexpr uint64_t kSeeds = kSanitized ? 60 : 300;  // of one test
constexpr size_t kShownLines = 60;

std::string Traced(Settings settings) {
  settings.trace = true;
  Node node(settings);
  std::string shown = node.Run();
  const std::deque<std::string>& lines = node.world().lines();
  for (size_t i = lines.size() - std::min(lines.size(), kShownLines); i < lines.size(); ++i) {
    shown += "\n" + lines[i];
  }
  return shown;
}

class Seeds : public testing::TestWithParam<uint64_t> {};

TEST_P(Seeds, NothingIsLost) {
  uint64_t acknowledged = 0;
  for (uint64_t seed = GetParam() * kSeeds + 1; seed <= (GetParam() + 1) * kSeeds; ++seed) {
    Node node(SettingsOf(seed));
    const std::string wrong = node.Run();
    acknowledged += node.acknowledged();
    ASSERT_TRUE(wrong.empty()) << "replay with: sim_soak --seed " << seed << " --trace\n"
                               << Traced(SettingsOf(seed));
  }
  EXPECT_GT(acknowledged, kSeeds);
}

INSTANTIATE_TEST_SUITE_P(Soak, Seeds, testing::Range<uint64_t>(0, 10));

TEST(Simulation, ASeedReplaysExactly) {
  Node first(SettingsOf(5));
  Node second(SettingsOf(5));
  EXPECT_EQ(first.Run(), second.Run());
  EXPECT_EQ(first.world().loop.events(), second.world().loop.events());
  EXPECT_EQ(first.world().now(), second.world().now());
}

class PlantedBug : public testing::TestWithParam<PlantedText> {};

TEST_P(PlantedBug, IsFound) {
  constexpr uint64_t kMostSeeds = 6000;
  if (kSanitized) {
    GTEST_SKIP() << "they show what the oracle sees, which is the same in every build";
  }
  for (uint64_t seed = GetParam().first; seed < GetParam().first + kMostSeeds; ++seed) {
    Settings settings = SettingsOf(seed);
    settings.planted = GetParam().bug;
    Node node(settings);
    if (const std::string wrong = node.Run(); !wrong.empty()) {
      std::cout << "  " << GetParam().name << ": found by seed " << seed << ": " << wrong << "\n";
      return;
    }
  }
  FAIL() << GetParam().name << " was not found by " << kMostSeeds << " seeds";
}

INSTANTIATE_TEST_SUITE_P(All, PlantedBug, testing::ValuesIn(kPlantedTexts),
                         [](const testing::TestParamInfo<PlantedText>& bug) {
                           return std::string(bug.param.name);
                         });

}  // namespace
}  // namespace pmirror::sim
