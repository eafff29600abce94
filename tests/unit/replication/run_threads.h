// SPDX-License-Identifier: BSD-3-Clause
// Runs a function on several threads at once, for tests.
#pragma once

#include <thread>
#include <vector>

namespace pmirror {

// Returns when all have ended. `function` is given each thread's number, from 0.
template <typename Function>
void RunThreads(int count, Function function) {
  std::vector<std::thread> threads;
  threads.reserve(static_cast<size_t>(count));
  for (int number = 0; number < count; ++number) {
    threads.emplace_back([&function, number] { function(number); });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
}

}  // namespace pmirror
