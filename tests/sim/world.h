// SPDX-License-Identifier: BSD-3-Clause
// What every part of a simulated run shares: the loop, the settings drawn from the seed, the trace.
#pragma once

#include <fmt/format.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>

#include "replication/volume_page.h"
#include "tests/sim/planted.h"
#include "tests/sim/scheduler.h"

namespace pmirror::sim {

constexpr uint64_t kWord = 8;
constexpr uint64_t kPages = 3;                // of a file, at most
constexpr uint64_t kMaxSize = kPages * 4096;  // bytes
constexpr size_t kMaxWords = kMaxSize / kWord;
// Words of a page that programs store to.
inline constexpr std::array<uint64_t, 4> kStoredWords = {0, 1, 100, 511};

// In place of everything else that goes wrong: one node loses its power behind a certain message of the data connections.
struct PowerCut {
  uint64_t message = 0;  // counted from when programs begin
  size_t node = 0;       // 0: the primary's, i: that of replica i - 1
};

struct Settings {
  uint64_t seed = 0;
  size_t replicas = 1;
  OnLoss on_loss = OnLoss::kSuspend;
  Time deadline = 200 * kMs;
  Time suspend = 400 * kMs;
  uint64_t truncates = 4;  // of a hundred actions of a program
  Planted planted = Planted::kNone;
  bool trace = false;
  Time troubled = 900 * kMs;  // how long things go wrong
  std::optional<PowerCut> only_cut;
};

class World {
 public:
  explicit World(const Settings& the_settings) : settings(the_settings), loop(the_settings.seed) {}

  const Settings settings;
  Scheduler loop;

  Time now() const { return loop.now(); }
  Rng& rng() { return loop.rng(); }
  bool Has(Planted bug) const { return settings.planted == bug; }

  template <typename... Args>
  void Trace(fmt::format_string<Args...> format, Args&&... args) {
    if (settings.trace) {
      Keep(fmt::format(format, std::forward<Args>(args)...));
    }
  }
  const std::deque<std::string>& lines() const { return lines_; }

  // A stamp that only grows: the order of stores and of the returns of syncs.
  uint64_t Stamp() { return ++stamp_; }
  uint64_t stamp() const { return stamp_; }

 private:
  static constexpr size_t kKept = 20000;
  void Keep(std::string line) {
    lines_.push_back(fmt::format("{:>9} {}", now(), line));
    if (lines_.size() > kKept) {
      lines_.pop_front();
    }
  }
  std::deque<std::string> lines_;
  uint64_t stamp_ = 0;
};

}  // namespace pmirror::sim
