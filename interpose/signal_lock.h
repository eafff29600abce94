// SPDX-License-Identifier: BSD-3-Clause
// Short locks that a signal handler can never find held by the thread it interrupted
// (replication/signal_guard.h). Constant-initialised, usable before constructors, async-signal-safe. Hold
// them briefly.
#pragma once

#include "replication/futex_mutex.h"
#include "replication/signal_guard.h"

namespace pmirror::interpose {

// Holds `mutex` for a scope, with signals blocked.
class SignalGuard {
 public:
  explicit SignalGuard(FutexMutex& mutex) : mutex_(mutex) { mutex_.Lock(); }
  ~SignalGuard() { mutex_.Unlock(); }
  SignalGuard(const SignalGuard&) = delete;
  SignalGuard& operator=(const SignalGuard&) = delete;

 private:
  SignalBlock signals_;  // before the lock, after the unlock
  FutexMutex& mutex_;
};

}  // namespace pmirror::interpose
