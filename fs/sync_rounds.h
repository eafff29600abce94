// SPDX-License-Identifier: BSD-3-Clause
// Group commit: callers that arrive while a round of work runs share the next round, which starts after all of them called. So each caller's
// work has seen everything that happened before its call, and many callers cost one round.
// Thread-safe. A caller waits at most for the round under way and its own, both bounded by the deadlines of the work.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>

namespace pmirror::fs {

class SyncRounds {
 public:
  // `work` returns 0 or an errno; everybody in the round gets it. One caller of a round runs its own `work` for all.
  template <typename Work>
  int Run(Work&& work) {
    std::unique_lock lock(mutex_);
    const std::shared_ptr<Round> round = next_;
    changed_.wait(lock, [&] { return round->done || !running_; });
    if (round->done) {
      return round->result;
    }
    running_ = true;
    next_ = std::make_shared<Round>();  // later arrivals: the next round
    lock.unlock();
    const int result = work();
    lock.lock();
    running_ = false;
    round->done = true;
    round->result = result;
    changed_.notify_all();
    return result;
  }

 private:
  struct Round {
    bool done = false;
    int result = 0;
  };
  std::mutex mutex_;
  std::condition_variable changed_;
  std::shared_ptr<Round> next_ = std::make_shared<Round>();  // guarded by mutex_
  bool running_ = false;                                     // guarded by mutex_
};

}  // namespace pmirror::fs
