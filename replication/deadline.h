// SPDX-License-Identifier: BSD-3-Clause
// A point in time that a wait may not outlive (promise P6: every wait has one). CLOCK_MONOTONIC; async-signal-safe.
#pragma once

#include <chrono>
#include <ctime>

namespace pmirror {

class Deadline {
 public:
  using Duration = std::chrono::nanoseconds;

  static Deadline After(Duration duration) { return Deadline(Now() + duration); }
  static Duration Now() {
    timespec now{};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    return std::chrono::seconds(now.tv_sec) + std::chrono::nanoseconds(now.tv_nsec);
  }

  // Never negative.
  Duration Remaining() const {
    const Duration left = at_ - Now();
    return left > Duration::zero() ? left : Duration::zero();
  }
  bool Expired() const { return Now() >= at_; }
  timespec RemainingTimespec() const {
    const Duration left = Remaining();
    return {.tv_sec = static_cast<time_t>(left.count() / 1'000'000'000),
            .tv_nsec = static_cast<long>(left.count() % 1'000'000'000)};
  }
  Duration at() const { return at_; }

 private:
  explicit Deadline(Duration at) : at_(at) {}
  Duration at_;
};

}  // namespace pmirror
