// SPDX-License-Identifier: BSD-3-Clause
// The queue of asynchronous flushes (interpose/api_async.cc) over a fake pmirror_flush: what travels together, who fails
// with whom, and what a forked child finds. Links that file alone; its neighbours are below.
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "interpose/api_parts.h"

namespace {

// Addresses below are numbers: volume * 1000 + which.
const void* At(size_t number) { return reinterpret_cast<const void*>(number); }
size_t NumberOf(const void* address) { return reinterpret_cast<size_t>(address); }

class FakeFlush {
 public:
  struct Call {
    std::vector<size_t> numbers;
    bool verify = false;
  };
  int Flush(const pmirror_range* ranges, size_t count, bool verify) {
    std::unique_lock lock(mutex_);
    Call& call = calls_.emplace_back();
    call.verify = verify;
    int error = 0;
    for (size_t i = 0; i < count; ++i) {
      call.numbers.push_back(NumberOf(ranges[i].address));
      error = call.numbers.back() == failing_ ? error_ : error;
    }
    changed_.notify_all();
    changed_.wait(lock, [&] { return !held_; });
    return error;
  }
  void Hold(bool held) {
    const std::lock_guard lock(mutex_);
    held_ = held;
    changed_.notify_all();
  }
  void Fail(size_t number, int error) {
    const std::lock_guard lock(mutex_);
    failing_ = number;
    error_ = error;
  }
  void AwaitCalls(size_t count) {
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(changed_.wait_for(lock, std::chrono::seconds(20), [&] { return calls_.size() >= count; }));
  }
  std::vector<Call> TakeCalls() {
    const std::lock_guard lock(mutex_);
    return std::exchange(calls_, {});
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool held_ = false;
  size_t failing_ = SIZE_MAX;
  int error_ = 0;
  std::vector<Call> calls_;
};
// Never destroyed: the threads of the queue outlive the tests.
FakeFlush& Fake() {
  static auto* const fake = new FakeFlush;
  return *fake;
}

thread_local int g_last_error = 0;

int Answer(int error) {
  g_last_error = error;
  errno = error;
  return error == 0 ? 0 : -1;
}

constexpr pmirror::interpose::PreloadTable kTable{
    .version = pmirror::interpose::kPreloadTableVersion,
    .active = [] { return true; },
    .flush = nullptr,
    .flush_verify = nullptr,
    .flush_atomic = nullptr,
    .error = nullptr,
    .error_info = nullptr,
    .is_replicated = [](const void* address, size_t) { return NumberOf(address) != 0 ? 1 : 0; },
    .attributes = nullptr,
    .volume_of = [](const void* address) { return static_cast<int>(NumberOf(address) / 1000); },
    .socket_path = nullptr};

}  // namespace

namespace pmirror::interpose {
const PreloadTable* Preload() { return &kTable; }
}  // namespace pmirror::interpose

extern "C" {
int pmirror_flush(const pmirror_range* ranges, size_t count) {
  return Answer(Fake().Flush(ranges, count, false));
}
int pmirror_flush_verify(const pmirror_range* ranges, size_t count) {
  return Answer(Fake().Flush(ranges, count, true));
}
int pmirror_flush_atomic(const pmirror_range* ranges, size_t count) { return pmirror_flush(ranges, count); }
int pmirror_get_error_info(pmirror_error_info* info) {
  info->error = g_last_error;
  return 0;
}
}

namespace {

class AsyncFlush : public testing::Test {
 protected:
  ~AsyncFlush() override {
    Fake().Hold(false);
    Fake().Fail(SIZE_MAX, 0);
  }

  static pmirror_completion* Begin(size_t number, unsigned flags = 0) {
    const pmirror_range range{At(number), 8};
    pmirror_completion* made = pmirror_flush_async(&range, 1, flags);
    EXPECT_NE(made, nullptr) << errno;
    return made;
  }
  // Waits for it and gives it back.
  static int Result(pmirror_completion* completion) {
    int error = -1;
    EXPECT_EQ(pmirror_completion_wait(completion, 20000, &error), 1);
    pmirror_completion_release(completion);
    return error;
  }
  // All threads of the queue are inside a flush, and stay there.
  std::vector<pmirror_completion*> OccupyEverybody() {
    Fake().TakeCalls();
    Fake().Hold(true);
    std::vector<pmirror_completion*> occupying;
    for (size_t i = 1; i <= 4; ++i) {
      occupying.push_back(Begin(9000 + i));
      Fake().AwaitCalls(i);
    }
    Fake().TakeCalls();
    return occupying;
  }
  void Let(const std::vector<pmirror_completion*>& occupying) {
    Fake().Hold(false);
    for (pmirror_completion* each : occupying) {
      EXPECT_EQ(Result(each), 0);
    }
  }
};

TEST_F(AsyncFlush, WhatWaitsTravelsTogetherByVolumeAndKind) {
  const auto occupying = OccupyEverybody();
  std::vector<pmirror_completion*> waiting;
  for (size_t i = 1; i <= 10; ++i) {
    waiting.push_back(Begin(1000 + i));
    waiting.push_back(Begin(2000 + i));
    waiting.push_back(Begin(1100 + i, PMIRROR_VERIFY));
  }
  Let(occupying);
  for (pmirror_completion* each : waiting) {
    EXPECT_EQ(Result(each), 0);
  }
  size_t carried = 0;
  for (const FakeFlush::Call& call : Fake().TakeCalls()) {
    for (const size_t number : call.numbers) {
      EXPECT_EQ(number / 1000, call.numbers.front() / 1000) << "volumes apart";
      EXPECT_EQ(call.verify, number > 1100 && number < 2000);
    }
    carried += call.numbers.size();
    EXPECT_EQ(call.numbers.size(), 10U);
  }
  EXPECT_EQ(carried, 30U);
}

TEST_F(AsyncFlush, WhoTravelsTogetherFailsTogetherAndKnowsWhy) {
  const auto occupying = OccupyEverybody();
  pmirror_completion* good = Begin(1001);
  pmirror_completion* bad = Begin(1002);
  pmirror_completion* elsewhere = Begin(2001);
  Fake().Fail(1002, EIO);
  Let(occupying);
  pmirror_error_info info{};
  info.size = sizeof info;
  EXPECT_EQ(pmirror_completion_wait(bad, 20000, nullptr), 1);
  EXPECT_EQ(pmirror_completion_error_info(bad, &info), 0);
  EXPECT_EQ(info.error, EIO);
  EXPECT_EQ(Result(good), EIO);
  EXPECT_EQ(Result(bad), EIO);
  EXPECT_EQ(Result(elsewhere), 0);
}

TEST_F(AsyncFlush, OneThatWasUnmappedFailsAlone) {
  const auto occupying = OccupyEverybody();
  pmirror_completion* good = Begin(1001);
  pmirror_completion* unmapped = Begin(1002);
  Fake().Fail(1002, EINVAL);
  Let(occupying);
  EXPECT_EQ(Result(good), 0);
  EXPECT_EQ(Result(unmapped), EINVAL);
}

TEST_F(AsyncFlush, AGroupTravelsByItself) {
  const auto occupying = OccupyEverybody();
  std::vector<pmirror_completion*> groups;
  for (size_t i = 1; i <= 3; ++i) {
    groups.push_back(Begin(1000 + i, PMIRROR_ATOMIC));
  }
  Let(occupying);
  for (pmirror_completion* each : groups) {
    EXPECT_EQ(Result(each), 0);
  }
  EXPECT_EQ(Fake().TakeCalls().size(), 3U);
}

TEST_F(AsyncFlush, AReleasedOneIsCarriedOutAllTheSame) {
  const auto occupying = OccupyEverybody();
  pmirror_completion_release(Begin(1001));
  Let(occupying);
  Fake().AwaitCalls(1);
  EXPECT_EQ(Fake().TakeCalls().front().numbers, (std::vector<size_t>{1001}));
}

// What a child finds of a flush under way, by its exit status.
int InChild(pmirror_completion* parents, int descriptor) {
  int error = 0;
  if (pmirror_completion_done(parents, &error) != 1 || error != ECANCELED) {
    return 1;
  }
  pollfd readable{.fd = descriptor, .events = POLLIN, .revents = 0};
  if (pmirror_completion_fd(parents) != descriptor || ::poll(&readable, 1, 20000) != 1) {
    return 2;
  }
  pmirror_completion_release(parents);
  return 0;
}

void ForkAndLook(pid_t (*fork_call)()) {
  Fake().Hold(true);
  const pmirror_range range{At(1001), 8};
  pmirror_completion* completion = pmirror_flush_async(&range, 1, 0);
  ASSERT_NE(completion, nullptr);
  const int descriptor = pmirror_completion_fd(completion);
  Fake().AwaitCalls(1);
  const pid_t child = fork_call();
  if (child == 0) {
    ::_exit(InChild(completion, descriptor));
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0) << WEXITSTATUS(status);
  pollfd readable{.fd = descriptor, .events = POLLIN, .revents = 0};
  EXPECT_EQ(::poll(&readable, 1, 0), 0) << "the child's completion is not the parent's";
  Fake().Hold(false);
  EXPECT_EQ(::poll(&readable, 1, 20000), 1);
  pmirror_completion_release(completion);
  Fake().TakeCalls();
}

TEST_F(AsyncFlush, Trap6_AForkedChildFindsItsParentsFlushesCancelled) { ForkAndLook(&::fork); }

#if !defined(__SANITIZE_THREAD__)  // which does not follow a fork that libc does not know of
TEST_F(AsyncFlush, Trap6_SoDoesAChildThatNoHandlerAnnounced) {
  ForkAndLook([] { return static_cast<pid_t>(::syscall(SYS_fork)); });
}
#endif

TEST_F(AsyncFlush, ManyThreadsBeginWaitAndReleaseAtOnce) {
  std::vector<std::thread> threads;
  for (size_t thread = 1; thread <= 6; ++thread) {
    threads.emplace_back([thread] {
      for (size_t i = 1; i <= 200; ++i) {
        pmirror_completion* completion = Begin(thread * 1000 + i);
        if (i % 3 == 0) {
          pmirror_completion_release(completion);
          continue;
        }
        if (i % 3 == 1) {
          pollfd readable{.fd = pmirror_completion_fd(completion), .events = POLLIN, .revents = 0};
          EXPECT_EQ(::poll(&readable, 1, 20000), 1);
        }
        EXPECT_EQ(Result(completion), 0);
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
}

}  // namespace
