// SPDX-License-Identifier: BSD-3-Clause
// A mutex of one word on futex(2), and the futex calls themselves. Used instead of std::mutex because it has
// to work inside any program: async-signal-safe (given that signals are blocked while it is held, see
// signal_guard.h), no allocation, no cancellation point, no destructor, nothing that an interposed pthread
// library could change. Process-private; it does not know its owner and may not be locked twice.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstdint>

#include "replication/deadline.h"

namespace pmirror {

enum class FutexScope { kPrivate, kShared };  // kShared: the word lies in memory that several processes map

// Sleeps while `word` holds `expected`, until woken, interrupted by a signal, or past the deadline. The
// caller looks at its condition again in every case. Works on read-only shared mappings.
inline void FutexWait(const void* word, uint32_t expected, Deadline deadline, FutexScope scope) {
  const timespec timeout = deadline.RemainingTimespec();
  const int operation = scope == FutexScope::kPrivate ? FUTEX_WAIT_PRIVATE : FUTEX_WAIT;
  ::syscall(SYS_futex, word, operation, expected, &timeout, nullptr, 0);
}

inline void FutexWake(const void* word, int count, FutexScope scope) {
  ::syscall(SYS_futex, word, scope == FutexScope::kPrivate ? FUTEX_WAKE_PRIVATE : FUTEX_WAKE, count, nullptr,
            nullptr, 0);
}

// Tells the CPU that this is a spin loop.
inline void CpuRelax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class FutexMutex {
 public:
  void Lock() {
    uint32_t seen = kFree;
    if (!word_.compare_exchange_strong(seen, kHeld, std::memory_order_acquire)) {
      LockContended();
    }
  }
  void Unlock() {
    if (word_.exchange(kFree, std::memory_order_release) == kContended) {
      FutexWake(&word_, 1, FutexScope::kPrivate);
    }
  }
  // Makes it free whoever held it. For the child of a fork, where the holder does not exist.
  void ResetAfterFork() { word_.store(kFree, std::memory_order_relaxed); }

 private:
  static constexpr uint32_t kFree = 0, kHeld = 1, kContended = 2;
  static constexpr int kSpins = 100;  // a critical section is some hundred nanoseconds

  void LockContended() {
    for (int i = 0; i < kSpins; ++i) {
      uint32_t free = kFree;
      if (word_.load(std::memory_order_relaxed) == kFree &&
          word_.compare_exchange_weak(free, kHeld, std::memory_order_acquire)) {
        return;
      }
      CpuRelax();
    }
    while (word_.exchange(kContended, std::memory_order_acquire) != kFree) {
      ::syscall(SYS_futex, &word_, FUTEX_WAIT_PRIVATE, kContended, nullptr, nullptr, 0);
    }
  }

  std::atomic<uint32_t> word_{kFree};
};

// Holds the mutex for a scope, with gaps.
class FutexLock {
 public:
  explicit FutexLock(FutexMutex& mutex) : mutex_(mutex) { mutex_.Lock(); }
  ~FutexLock() { mutex_.Unlock(); }
  FutexLock(const FutexLock&) = delete;
  FutexLock& operator=(const FutexLock&) = delete;

  // Requires: Lock() follows before the end of the scope.
  void Unlock() { mutex_.Unlock(); }
  void Lock() { mutex_.Lock(); }

 private:
  FutexMutex& mutex_;
};

}  // namespace pmirror
