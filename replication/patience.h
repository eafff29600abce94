// SPDX-License-Identifier: BSD-3-Clause
// How long one sync goes on waiting for the replicas, by the volume's policy (promise P6): until
// `deadline_ns` without progress silently; then under kSuspend, announced to the observer, until `suspend_ns`
// more, unless the daemon is leaving the volume. Used by one thread.
#pragma once

#include <cerrno>
#include <chrono>

#include "replication/deadline.h"
#include "replication/replicate.h"
#include "replication/volume_page.h"

namespace pmirror {

// While it waits a sync looks at the volume page this often.
constexpr std::chrono::milliseconds kPageSlice{50};

class Patience {
 public:
  Patience(const VolumePage& page, SyncObserver& observer, FileId file);

  // How long it can last, without progress, from the beginning.
  static Deadline::Duration Longest(const VolumePage& page);

  // What has been waited for comes nearer: the current period starts again.
  void Progress();
  // True when the sync has to fail now, with error(). Changes from waiting silently to waiting announced when that is due.
  bool RanOut();
  // EIO, or why the observer ended the wait.
  int error() const { return interrupted_ != 0 ? interrupted_ : EIO; }
  // The end of the current period, and a point before it.
  Deadline limit() const { return limit_; }
  Deadline Slice() const;
  Deadline Within(Deadline::Duration duration) const;
  // Requires: the sync ends with success (0) or with this errno. Tells the observer.
  void Ended(int error);

 private:
  Deadline::Duration CurrentPeriod() const;

  const VolumePage& page_;
  SyncObserver& observer_;
  const FileId file_;
  bool suspended_ = false;
  int interrupted_ = 0;
  Deadline limit_;
};

}  // namespace pmirror
