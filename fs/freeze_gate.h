// SPDX-License-Identifier: BSD-3-Clause
// The gate that changes of a volume pass while it is not frozen. Thread-safe.
//
// A pass must not be asked for by a thread that holds one: while somebody waits to freeze, no new pass is given.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace pmirror::fs {

class FreezeGate {
 public:
  // From here on nobody passes; returns true when all who had passed have come out. False after `patience`: the gate is open again.
  bool Freeze(std::chrono::nanoseconds patience) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !closed_; });
    closed_ = true;
    const bool still = changed_.wait_for(lock, patience, [&] { return inside_ == 0; });
    if (!still) {
      closed_ = false;
      changed_.notify_all();
    }
    return still;
  }
  void Thaw() {
    const std::lock_guard lock(mutex_);
    closed_ = false;
    changed_.notify_all();
  }

  void Enter() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !closed_; });
    ++inside_;
  }
  void Leave() {
    const std::lock_guard lock(mutex_);
    if (--inside_ == 0 && closed_) {
      changed_.notify_all();
    }
  }

  class Pass {
   public:
    explicit Pass(FreezeGate& gate) : gate_(gate) { gate_.Enter(); }
    ~Pass() { gate_.Leave(); }
    Pass(const Pass&) = delete;
    Pass& operator=(const Pass&) = delete;

   private:
    FreezeGate& gate_;
  };

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool closed_ = false;  // guarded by mutex_
  uint64_t inside_ = 0;  // guarded by mutex_
};

}  // namespace pmirror::fs
