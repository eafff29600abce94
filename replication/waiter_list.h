// SPDX-License-Identifier: BSD-3-Clause
// The threads that wait inside one session, each with its own word to sleep on. Nodes live on the waiters'
// stacks; the list is guarded by the session's lock. Newest first, so that of several frames of one thread (a
// handler that interrupted a wait and waits itself) the innermost comes first: it is the one that runs.
#pragma once

#include <atomic>
#include <climits>
#include <cstdint>

#include "replication/data_session.h"
#include "replication/futex_mutex.h"
#include "replication/signal_guard.h"

namespace pmirror {

struct Waiter {
  enum class For : uint8_t { kReply, kRoom, kConnection };

  explicit Waiter(For reason) : what(reason), thread(ThisThread()) {}

  const For what;
  const void* const thread;
  // kReply: what is waited for.
  const Receipt* receipt = nullptr;
  WaitLevel level{};
  const CaptureInFlight* capture = nullptr;

  bool stalled = false;  // it slept a whole slice and nothing was received meanwhile

  // Before the lock is released to sleep. A Wake() from then on ends the sleep.
  void PrepareToSleep() { word_.store(kAsleep, std::memory_order_relaxed); }
  // Requires: no lock held, within a SignalBlock. Returns when woken, on a signal, or at the deadline.
  void Sleep(Deadline deadline) {
    const SignalWindow window(SignalWindow::kNow);
    FutexWait(&word_, kAsleep, deadline, FutexScope::kPrivate);
  }
  bool woken() const { return word_.load(std::memory_order_relaxed) == kAwake; }
  // Requires: the list's lock.
  void Wake() {
    if (word_.exchange(kAwake, std::memory_order_relaxed) == kAsleep) {
      FutexWake(&word_, 1, FutexScope::kPrivate);
    }
  }

 private:
  friend class WaiterList;
  static constexpr uint32_t kAwake = 0, kAsleep = 1;

  std::atomic<uint32_t> word_{kAwake};
  Waiter* next_ = nullptr;
  Waiter** link_ = nullptr;  // what points at this node; null when in no list
};

class WaiterList {
 public:
  void Add(Waiter& waiter) {
    waiter.next_ = first_;
    waiter.link_ = &first_;
    if (first_ != nullptr) {
      first_->link_ = &waiter.next_;
    }
    first_ = &waiter;
  }
  void Remove(Waiter& waiter) {
    if (waiter.link_ == nullptr) {
      return;
    }
    *waiter.link_ = waiter.next_;
    if (waiter.next_ != nullptr) {
      waiter.next_->link_ = waiter.link_;
    }
    waiter.link_ = nullptr;
  }
  // The child of a fork: the others' stacks are no more than memory.
  void RemoveAll() {
    while (first_ != nullptr) {
      Remove(*first_);
    }
  }

  bool HasOneOnly() const { return first_ != nullptr && first_->next_ == nullptr; }
  bool empty() const { return first_ == nullptr; }

  template <typename Predicate>
  void WakeIf(Predicate predicate) {
    for (Waiter* waiter = first_; waiter != nullptr; waiter = waiter->next_) {
      if (predicate(*waiter)) {
        waiter->Wake();
      }
    }
  }
  // One that can read replies.
  void WakeOneReader() {
    for (Waiter* waiter = first_; waiter != nullptr; waiter = waiter->next_) {
      if (waiter->what != Waiter::For::kConnection) {
        waiter->Wake();
        return;
      }
    }
  }

 private:
  Waiter* first_ = nullptr;
};

}  // namespace pmirror
