// SPDX-License-Identifier: BSD-3-Clause
// A lock that may be held while replicas are waited for: who wants it looks now and then whether it still does. Thread-safe.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

namespace pmirror::fs {

class PatientMutex {
 public:
  // 0, and the caller holds it until Unlock(); or the errno that `interrupted` gave. It is called without a lock.
  template <typename Interrupted>
  int Lock(Interrupted&& interrupted) {
    std::unique_lock lock(mutex_);
    while (!released_.wait_for(lock, kLook, [&] { return !held_; })) {
      lock.unlock();
      if (const int error = interrupted(); error != 0) {
        return error;
      }
      lock.lock();
    }
    held_ = true;
    return 0;
  }
  void Unlock() {
    {
      const std::lock_guard lock(mutex_);
      held_ = false;
    }
    released_.notify_one();
  }

  // Unlocks at its end. Requires: Lock() has returned 0.
  class Held {
   public:
    explicit Held(PatientMutex& mutex) : mutex_(mutex) {}
    ~Held() { mutex_.Unlock(); }
    Held(const Held&) = delete;
    Held& operator=(const Held&) = delete;

   private:
    PatientMutex& mutex_;
  };

 private:
  static constexpr std::chrono::milliseconds kLook{50};
  std::mutex mutex_;
  std::condition_variable released_;
  bool held_ = false;  // guarded by mutex_
};

}  // namespace pmirror::fs
