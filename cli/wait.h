// SPDX-License-Identifier: BSD-3-Clause
// The one place where the command line tool waits for a state of something that is not its child.
#pragma once

#include <chrono>
#include <functional>

namespace pmirror::cli {

// Asks every 20 ms until `condition` is true or the time has passed; answers whether it became true. Asks at
// least once.
bool WaitUntil(const std::function<bool()>& condition, std::chrono::milliseconds timeout);

}  // namespace pmirror::cli
