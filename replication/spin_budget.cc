// SPDX-License-Identifier: BSD-3-Clause
// See spin_budget.h.
#include "replication/spin_budget.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>

namespace pmirror {

SpinBudget::Duration SpinBudget::Next() {
  if (!enabled_ || average_ > kLongest) {
    return Duration::zero();
  }
  if (pause_left_ > 0) {
    --pause_left_;
    return Duration::zero();
  }
  return average_ == Duration::zero() ? kLongest : std::min(2 * average_, kLongest);
}

void SpinBudget::Spun(bool hit) {
  if (hit) {
    misses_ = 0;
    return;
  }
  ++misses_;
  if (misses_ >= kMissesBeforePause) {
    const uint32_t doublings = std::min<uint32_t>(misses_ - kMissesBeforePause + 1, 10);
    pause_left_ = std::min(uint32_t{1} << doublings, kLongestPause);
  }
}

void SpinBudget::Waited(Duration duration) {
  average_ = average_ == Duration::zero() ? duration : (7 * average_ + duration) / 8;
}

unsigned UsableCpus() {
  std::array<uint64_t, 128> mask{};
  const long bytes = ::syscall(SYS_sched_getaffinity, 0, sizeof mask, mask.data());
  unsigned count = 0;
  for (long i = 0; i < bytes / static_cast<long>(sizeof mask[0]); ++i) {
    count += static_cast<unsigned>(std::popcount(mask[static_cast<size_t>(i)]));
  }
  return std::max(count, 1U);
}

}  // namespace pmirror
