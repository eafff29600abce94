// SPDX-License-Identifier: BSD-3-Clause
// One thing that is made durable as a whole (a file, a tree), on behalf of many threads at once: one call
// serves all that asked before it began (group commit), and none is made when nothing has changed.
//
// Thread-safe. After a failure it fails for ever: the kernel reports a lost page once and then calls the file
// clean, so that a second try would claim what is not true (promise P5).
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>

#include "absl/functional/function_ref.h"

namespace pmirror::server {

class GroupSync {
 public:
  // Something changed that the next Sync has to cover. Called after the change.
  void Changed() {
    const std::lock_guard lock(mutex_);
    ++changes_;
  }

  // Returns 0 when all changes before the call are durable, or the errno of `make_durable`, which runs
  // without the lock held and returns 0 or an errno.
  int Sync(absl::FunctionRef<int()> make_durable) {
    std::unique_lock lock(mutex_);
    const uint64_t wanted = changes_;
    while (error_ == 0 && durable_ < wanted) {
      if (running_) {
        ended_.wait(lock);
        continue;
      }
      running_ = true;
      const uint64_t covered = changes_;
      lock.unlock();
      const int error = make_durable();
      lock.lock();
      running_ = false;
      error_ = error;
      durable_ = error == 0 ? covered : durable_;
      ended_.notify_all();
    }
    return error_;
  }

  bool pending() const {
    const std::lock_guard lock(mutex_);
    return durable_ < changes_;
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable ended_;
  uint64_t changes_ = 0;  // guarded by mutex_, as all below
  uint64_t durable_ = 0;
  bool running_ = false;
  int error_ = 0;
};

}  // namespace pmirror::server
