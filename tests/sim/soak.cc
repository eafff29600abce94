// SPDX-License-Identifier: BSD-3-Clause
// Runs as many seeds as it is given, or one with its trace.
//   sim_soak [--soak N] [--seed S] [--trace] [--planted NAME]
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "tests/sim/node.h"

namespace pmirror::sim {
namespace {

Planted PlantedNamed(const std::string& name) {
  for (const PlantedText& text : kPlantedTexts) {
    if (name == text.name) {
      return text.bug;
    }
  }
  fmt::print(stderr, "sim_soak: no planted bug is called '{}'\n", name);
  std::exit(2);
}

int Main(int argc, char** argv) {
  uint64_t count = 1;
  uint64_t first = 1;
  bool trace = false;
  Planted planted = Planted::kNone;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const auto value = [&]() -> std::string {
      if (i + 1 == argc) {
        fmt::print(stderr, "sim_soak: {} needs a value\n", argument);
        std::exit(2);
      }
      return argv[++i];
    };
    if (argument == "--soak") {
      count = std::strtoull(value().c_str(), nullptr, 10);
    } else if (argument == "--seed") {
      first = std::strtoull(value().c_str(), nullptr, 10);
    } else if (argument == "--trace") {
      trace = true;
    } else if (argument == "--planted") {
      planted = PlantedNamed(value());
    } else {
      fmt::print(stderr, "usage: sim_soak [--soak N] [--seed S] [--trace] [--planted NAME]\n");
      return 2;
    }
  }
  const auto begun = std::chrono::steady_clock::now();
  uint64_t failures = 0;
  uint64_t acknowledged = 0;
  uint64_t events = 0;
  for (uint64_t seed = first; seed < first + count; ++seed) {
    Settings settings = SettingsOf(seed);
    settings.planted = planted;
    settings.trace = trace;
    Node node(settings);
    const std::string wrong = node.Run();
    acknowledged += node.acknowledged();
    events += node.world().loop.events();
    if (trace) {
      for (const std::string& line : node.world().lines()) {
        fmt::print("{}\n", line);
      }
    }
    if (!wrong.empty()) {
      ++failures;
      fmt::print("seed {}: {}\n", seed, wrong);
      if (planted != Planted::kNone) {
        break;
      }
    }
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
  fmt::print("{} seeds, {} failed, {} syncs acknowledged, {} events, {:.1f} seeds/s\n", count, failures,
             acknowledged, events, static_cast<double>(count) / seconds);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace pmirror::sim

int main(int argc, char** argv) { return pmirror::sim::Main(argc, argv); }
