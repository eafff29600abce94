// SPDX-License-Identifier: BSD-3-Clause
// A poll with a deadline.
#include "cli/wait.h"

#include <thread>

namespace pmirror::cli {

bool WaitUntil(const std::function<bool()>& condition, std::chrono::milliseconds timeout) {
  const auto end = std::chrono::steady_clock::now() + timeout;
  while (!condition()) {
    if (std::chrono::steady_clock::now() >= end) {
      return false;
    }
    // Sleep because: the condition is that of another process or of a daemon, which cannot wake us.
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return true;
}

}  // namespace pmirror::cli
