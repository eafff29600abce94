// SPDX-License-Identifier: BSD-3-Clause
// What marking a file costs: mark_bench PATH, a file on the storage to be measured. Prints; asserts nothing.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include "recovery/mark_map.h"

namespace {

using pmirror::FileId;
using pmirror::recovery::MarkMap;

double Microseconds(std::chrono::steady_clock::time_point since) {
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - since).count();
}

// Marks `each` files from every one of `threads` threads, the first being `first`.
void Measure(MarkMap& map, const char* what, int threads, int each, uint64_t first) {
  std::atomic<int> failed = 0;
  std::vector<std::thread> workers;
  const auto begin = std::chrono::steady_clock::now();
  for (int t = 0; t < threads; ++t) {
    workers.emplace_back([&, t] {
      for (int i = 0; i < each; ++i) {
        failed += map.Mark(FileId{first + static_cast<uint64_t>(t * each + i)}).ok() ? 0 : 1;
      }
    });
  }
  for (std::thread& worker : workers) {
    worker.join();
  }
  std::printf("%-28s %2d threads %10.3f us a mark, %d failed\n", what, threads,
              Microseconds(begin) / (threads * each), failed.load());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: mark_bench PATH\n");
    return 2;
  }
  const auto opened = MarkMap::Open(argv[1], {.volume = {}, .generation = 1, .replicas = {"a", "b"}}, 1);
  if (!opened.ok()) {
    std::fprintf(stderr, "%s\n", std::string(opened.status().message()).c_str());
    return 1;
  }
  Measure(*opened->map, "not marked yet", 1, 500, 1000);
  Measure(*opened->map, "not marked yet", 8, 200, 10000);
  Measure(*opened->map, "marked already, 2100 files", 1, 500, 1000);
  for (int round = 0; round < 3; ++round) {
    Measure(*opened->map, "marked already, warm", 1, 1500, 10000);
  }
  return 0;
}
