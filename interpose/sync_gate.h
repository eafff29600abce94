// SPDX-License-Identifier: BSD-3-Clause
// Keeps syncs out while what they stand on is replaced: the volume page, the order pages and the sessions of a
// daemon that is gone (relink.cc). A sync passes for each of its attempts, not for its waits between them.
//
// A signal handler that interrupted a sync of its own thread passes with it: waiting would be waiting for
// itself. Async-signal-safe, no allocation, constant-initialised.
#pragma once

#include <atomic>
#include <climits>
#include <cstdint>

#include "interpose/thread_state.h"
#include "replication/deadline.h"
#include "replication/futex_mutex.h"

namespace pmirror::interpose {

class SyncGate {
 public:
  constexpr SyncGate() = default;

  // Inside for its lifetime.
  class Pass {
   public:
    explicit Pass(SyncGate& gate) : gate_(gate) {
      if (thread_state().gate_depth == 0) {
        gate_.Enter();
      }
      ++thread_state().gate_depth;
    }
    ~Pass() {
      if (--thread_state().gate_depth == 0) {
        gate_.Exit();
      }
    }
    Pass(const Pass&) = delete;
    Pass& operator=(const Pass&) = delete;

   private:
    SyncGate& gate_;
  };

  // This thread is inside.
  static bool Inside() { return thread_state().gate_depth != 0; }

  // Lets nobody in any more and waits until everybody is out. False, and open, when somebody is still inside at
  // the deadline. Requires: !Inside(); callers exclude each other.
  bool Close(Deadline deadline) {
    closed_.store(1, std::memory_order_seq_cst);
    uint32_t inside = 0;
    while ((inside = inside_.load(std::memory_order_seq_cst)) != 0) {
      if (deadline.Expired()) {
        Open();
        return false;
      }
      FutexWait(&inside_, inside, deadline, FutexScope::kPrivate);
    }
    return true;
  }
  void Open() {
    closed_.store(0, std::memory_order_seq_cst);
    FutexWake(&closed_, INT_MAX, FutexScope::kPrivate);
  }

  // Threads of the parent do not exist here.
  void ResetInChild() {
    closed_.store(0, std::memory_order_relaxed);
    inside_.store(Inside() ? 1 : 0, std::memory_order_relaxed);
  }

 private:
  // Whoever closes gives up in the end, so this ends as well, also in a handler that interrupted Enter itself.
  void Enter() {
    for (;;) {
      inside_.fetch_add(1, std::memory_order_seq_cst);
      if (closed_.load(std::memory_order_seq_cst) == 0) {
        return;
      }
      Exit();
      FutexWait(&closed_, 1, Deadline::After(std::chrono::seconds(1)), FutexScope::kPrivate);
    }
  }
  void Exit() {
    inside_.fetch_sub(1, std::memory_order_seq_cst);
    if (closed_.load(std::memory_order_seq_cst) != 0) {
      FutexWake(&inside_, INT_MAX, FutexScope::kPrivate);
    }
  }

  std::atomic<uint32_t> inside_{0};
  std::atomic<uint32_t> closed_{0};
};

}  // namespace pmirror::interpose
