// SPDX-License-Identifier: BSD-3-Clause
// Group commit: callers that arrive while a round of work runs share the next round, which starts after all of them called. So each caller's
// work has seen everything that happened before its call, and many callers cost one round.
// Thread-safe. A caller waits at most for the round under way and its own, both bounded by the deadlines of the work, and no longer than it
// wants to: a round that ended with EINTR, because the caller who ran it was interrupted, is run again for those who were not.
#pragma once

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>

namespace pmirror::fs {

class SyncRounds {
 public:
  // `work` returns 0 or an errno; everybody in the round gets it. One caller of a round runs its own `work` for all. `interrupted` is asked
  // now and then while waiting, and says by an errno that this caller gives up.
  template <typename Work, typename Interrupted>
  int Run(Work&& work, Interrupted&& interrupted) {
    while (true) {
      const int result = RunOnce(work, interrupted);
      if (result != EINTR || interrupted() != 0) {
        return result;
      }
    }
  }

 private:
  static constexpr std::chrono::milliseconds kLook{50};

  struct Round {
    bool done = false;
    int result = 0;
  };

  template <typename Work, typename Interrupted>
  int RunOnce(Work& work, Interrupted& interrupted) {
    std::unique_lock lock(mutex_);
    const std::shared_ptr<Round> round = next_;
    while (!changed_.wait_for(lock, kLook, [&] { return round->done || !running_; })) {
      if (const int error = interrupted(); error != 0) {
        return error;
      }
    }
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

  std::mutex mutex_;
  std::condition_variable changed_;
  std::shared_ptr<Round> next_ = std::make_shared<Round>();  // guarded by mutex_
  bool running_ = false;                                     // guarded by mutex_
};

}  // namespace pmirror::fs
