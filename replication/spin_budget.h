// SPDX-License-Identifier: BSD-3-Clause
// How long a thread that waits for a reply may spin before it sleeps: about two recent round trips where
// spinning has lately found the reply, nothing where it did not (slow network, a replica on the same CPU),
// and from time to time a try. No I/O, no clock; the owner serialises.
#pragma once

#include <chrono>
#include <cstdint>

namespace pmirror {

class SpinBudget {
 public:
  using Duration = std::chrono::nanoseconds;
  static constexpr Duration kLongest{60'000};  // a round trip longer than this is never spun for
  static constexpr uint32_t kMissesBeforePause = 3;
  static constexpr uint32_t kLongestPause = 1024;  // waits without spinning between two tries

  // `cpus`: that this process may run on; with one, spinning keeps the replica's answer from being made.
  explicit SpinBudget(unsigned cpus) : enabled_(cpus > 1) {}

  // For the wait that begins now. Zero: sleep at once.
  Duration Next();
  // What came of a budget that was not zero.
  void Spun(bool hit);
  // How long a wait lasted, spun or slept.
  void Waited(Duration duration);

 private:
  const bool enabled_;
  Duration average_{0};      // of recent waits, the newest counting an eighth
  uint32_t misses_ = 0;      // tries without success since the last hit
  uint32_t pause_left_ = 0;  // waits until the next try
};

// CPUs that the calling thread may run on, at least 1.
unsigned UsableCpus();

}  // namespace pmirror
