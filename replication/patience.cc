// SPDX-License-Identifier: BSD-3-Clause
// See patience.h.
#include "replication/patience.h"

#include <algorithm>

namespace pmirror {
namespace {

// Longer than any process lives, and far from an overflow when the current time is added.
constexpr uint64_t kForever = uint64_t{1} << 60;

// Under kProceed, beyond the deadline: for the daemon to notice and to decide.
constexpr int kDaemonDecides = 3;
constexpr std::chrono::seconds kDaemonDelay{5};

Deadline::Duration Period(uint64_t nanoseconds) {
  return Deadline::Duration(static_cast<int64_t>(std::min(nanoseconds, kForever)));
}

}  // namespace

Patience::Patience(const VolumePage& page, SyncObserver& observer, FileId file)
    : page_(page), observer_(observer), file_(file), limit_(Deadline::After(CurrentPeriod())) {}

Deadline::Duration Patience::CurrentPeriod() const {
  if (page_.on_loss == static_cast<uint32_t>(OnLoss::kProceed)) {
    return kDaemonDecides * Period(page_.deadline_ns) + kDaemonDelay;
  }
  return Period(suspended_ ? page_.suspend_ns : page_.deadline_ns);
}

Deadline::Duration Patience::Longest(const VolumePage& page) {
  switch (static_cast<OnLoss>(page.on_loss)) {
    case OnLoss::kSuspend:
      return Period(page.deadline_ns) + Period(page.suspend_ns);
    case OnLoss::kProceed:
      return kDaemonDecides * Period(page.deadline_ns) + kDaemonDelay;
    case OnLoss::kFail:
      break;
  }
  return Period(page.deadline_ns);
}

void Patience::Progress() { limit_ = Deadline::After(CurrentPeriod()); }

// Under kProceed the daemon takes a silent replica out of the set when the deadline has passed by its own measure; a sync waits for that
// somewhat longer. It fails only when the daemon does not answer for itself.
bool Patience::RanOut() {
  interrupted_ = interrupted_ != 0 ? interrupted_ : observer_.Interrupted(suspended_);
  if (interrupted_ != 0) {
    return true;
  }
  // Who leaves the volume does not suspend: a sync that does not get through now never will.
  const bool leaving =
      page_.state.load(std::memory_order_acquire) == static_cast<uint32_t>(VolumeState::kClosing);
  if (!limit_.Expired() && !(suspended_ && leaving)) {
    return false;
  }
  if (suspended_ || leaving || page_.on_loss != static_cast<uint32_t>(OnLoss::kSuspend)) {
    return true;
  }
  suspended_ = true;
  limit_ = Deadline::After(Period(page_.suspend_ns));
  observer_.Suspended(file_);
  return limit_.Expired();
}

Deadline Patience::Within(Deadline::Duration duration) const {
  return Deadline::After(std::min(duration, limit_.Remaining()));
}

Deadline Patience::Slice() const { return Within(kPageSlice); }

void Patience::Ended(int error) {
  if (suspended_) {
    observer_.Resumed(file_);
  }
  if (error != 0) {
    observer_.Failed(file_, error);
  }
}

}  // namespace pmirror
