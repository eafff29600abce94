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

// Of one node each, behind every message of a short run (under sanitizers, of some): frames, acknowledgements and barriers. The long runs above cut it
// anywhere.
class CutBehindEveryMessage {
 public:
  static constexpr size_t kNodes = 3;

  CutBehindEveryMessage(OnLoss on_loss, Planted planted) : settings_(SettingsOf(11)) {
    settings_.on_loss = on_loss;
    settings_.planted = planted;
    settings_.replicas = kNodes - 1;
    settings_.troubled = 60 * kMs;
  }

  // What the oracle says of the first run in which something is wrong; empty: of none.
  std::string Run() {
    settings_.only_cut = PowerCut{.message = UINT64_MAX, .node = 0};
    Node undisturbed(settings_);
    std::string wrong = undisturbed.Run();
    const uint64_t messages = undisturbed.troubled_messages();
    for (size_t node = 0; node < kNodes; ++node) {
      for (uint64_t message = 1; message <= messages && wrong.empty(); message += kSanitized ? 9 : 1) {
        settings_.only_cut = PowerCut{.message = message, .node = node};
        Node run(settings_);
        wrong = run.Run();
        wrong += wrong.empty()
                     ? ""
                     : fmt::format(" (node {} behind message {})\n{}", node, message, Traced(settings_));
        cuts += run.cut() ? 1 : 0;
        ++runs;
        acknowledged += run.acknowledged();
      }
    }
    return wrong;
  }

  uint64_t runs = 0;
  uint64_t cuts = 0;
  uint64_t acknowledged = 0;

 private:
  Settings settings_;
};

TEST(Simulation, P3_Trap18_APowerCutBehindEveryMessageOfAShortRunLosesNothing) {
  for (const OnLoss on_loss : {OnLoss::kSuspend, OnLoss::kProceed}) {
    CutBehindEveryMessage all(on_loss, Planted::kNone);
    EXPECT_EQ(all.Run(), "");
    EXPECT_EQ(all.cuts, all.runs) << "each came before its run had ended";
    EXPECT_GT(all.runs, all.kNodes * 20);
    EXPECT_GT(all.acknowledged, all.cuts);
  }
}

TEST(Simulation, TheSameCutsFindAnAcknowledgementBeforeTheBytesAreDurable) {
  EXPECT_NE(CutBehindEveryMessage(OnLoss::kSuspend, Planted::kAckBeforePersist).Run(), "");
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
