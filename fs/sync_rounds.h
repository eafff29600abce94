// SPDX-License-Identifier: BSD-3-Clause
// Group commit: callers that arrive while a round of work runs share the next round, which starts after all of them called. So each caller's
// work has seen everything that happened before its call, and many callers cost one round.
// Thread-safe. A caller waits at most for the round under way and its own, both bounded by the deadlines of the work, unless callers before it are
// interrupted: an EINTR is the result of nobody but the caller that ran the work.
#pragma once

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>

namespace pmirror::fs {

class SyncRounds {
 public:
  // How often who waits for another's work looks whether it still wants to.
  static constexpr std::chrono::milliseconds kLook{50};

  // `work` returns 0 or an errno; everybody in the round gets it. One caller of a round runs its own `work` for all. `interrupted` returns 0, or the
  // errno with which the caller leaves a round that another runs; it is called without a lock.
  template <typename Work, typename Interrupted>
  int Run(Work&& work, Interrupted&& interrupted) {
    std::unique_lock lock(mutex_);
    std::shared_ptr<Round> round = next_;
    while (running_ || round->done) {
      if (round->done && round->result != EINTR) {
        return round->result;
      }
      if (round->done) {
        round = next_;
        continue;
      }
      if (changed_.wait_for(lock, kLook) == std::cv_status::timeout) {
        lock.unlock();
        if (const int error = interrupted(); error != 0) {
          return error;
        }
        lock.lock();
      }
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
