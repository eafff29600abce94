// SPDX-License-Identifier: BSD-3-Clause
// Lets one thread wait until nobody uses any more what it has just taken out of a table: readers mark the
// short sections in which they use an address or a descriptor number they found there. Two counters take
// turns, so that new readers cannot hold up the one who waits.
//
// A reader blocks signals for its section (SignalBlock), so that Wait() in a signal handler cannot wait for
// its own thread. Async-signal-safe, constant-initialised.
#pragma once

#include <sched.h>

#include <atomic>
#include <cstdint>

#include "interpose/signal_lock.h"

namespace pmirror::interpose {

class Quiescence {
 public:
  constexpr Quiescence() = default;

  class Section {
   public:
    explicit Section(Quiescence& owner) : owner_(owner) {
      for (;;) {
        turn_ = owner_.turn_.load(std::memory_order_seq_cst) % 2;
        owner_.readers_[turn_].fetch_add(1, std::memory_order_seq_cst);
        if (owner_.turn_.load(std::memory_order_seq_cst) % 2 == turn_) {
          return;
        }
        owner_.readers_[turn_].fetch_sub(1, std::memory_order_seq_cst);
      }
    }
    ~Section() { owner_.readers_[turn_].fetch_sub(1, std::memory_order_seq_cst); }
    Section(const Section&) = delete;
    Section& operator=(const Section&) = delete;

   private:
    SignalBlock signals_;
    Quiescence& owner_;
    uint64_t turn_ = 0;
  };

  // Returns when every section that was entered before has ended. Requires: not inside a section; callers
  // exclude each other.
  void Wait() {
    const uint64_t old = turn_.fetch_add(1, std::memory_order_seq_cst) % 2;
    while (readers_[old].load(std::memory_order_seq_cst) != 0) {
      ::sched_yield();
    }
  }

  void ResetInChild() {
    readers_[0].store(0, std::memory_order_relaxed);
    readers_[1].store(0, std::memory_order_relaxed);
  }

 private:
  std::atomic<uint64_t> turn_{0};
  std::atomic<uint32_t> readers_[2]{};
};

}  // namespace pmirror::interpose
