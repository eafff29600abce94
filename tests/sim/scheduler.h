// SPDX-License-Identifier: BSD-3-Clause
// The event loop of the simulation: virtual time, one seeded generator, coroutines in place of threads.
//
// A coroutine runs until it awaits; every await that lets others run is an event with a random place among those of the same
// time. So a run is a function of its seed. The shells call Step() wherever the code that they stand for can be interrupted.
//
// A Group is what dies together (a process, a daemon): destroying it destroys its coroutines where they stand, as kill -9
// does, and with them their entries in the queue and in Signals. It must not be destroyed by one of its own coroutines.
#pragma once

#include <coroutine>
#include <cstdint>
#include <exception>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <queue>
#include <utility>
#include <vector>

namespace pmirror::sim {

using Time = uint64_t;  // microseconds since the start of the run
constexpr Time kMs = 1000;
constexpr Time kForever = UINT64_MAX / 2;

// splitmix64.
class Rng {
 public:
  explicit Rng(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
  }
  uint64_t Below(uint64_t bound) { return Next() % bound; }
  uint64_t Between(uint64_t low, uint64_t high) { return low + Below(high - low + 1); }
  bool Chance(uint64_t permille) { return Below(1000) < permille; }

 private:
  uint64_t state_;
};

template <typename T>
class Task;

namespace internal {

struct PromiseBase {
  std::coroutine_handle<> continuation;
  std::suspend_always initial_suspend() noexcept { return {}; }
  void unhandled_exception() { std::terminate(); }
  struct Final {
    bool await_ready() noexcept { return false; }
    template <typename P>
    std::coroutine_handle<> await_suspend(std::coroutine_handle<P> handle) noexcept {
      const std::coroutine_handle<> next = handle.promise().continuation;
      return next ? next : std::noop_coroutine();
    }
    void await_resume() noexcept {}
  };
  Final final_suspend() noexcept { return {}; }
};

template <typename T>
struct Promise : PromiseBase {
  std::optional<T> value;
  Task<T> get_return_object();
  void return_value(T result) { value = std::move(result); }
  T Take() { return std::move(*value); }
};
template <>
struct Promise<void> : PromiseBase {
  Task<void> get_return_object();
  void return_void() {}
  void Take() {}
};

}  // namespace internal

// A coroutine that runs when it is awaited; destroyed with its frame's owner.
template <typename T = void>
class [[nodiscard]] Task {
 public:
  using promise_type = internal::Promise<T>;
  using Handle = std::coroutine_handle<promise_type>;

  explicit Task(Handle handle) : handle_(handle) {}
  Task(Task&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Task(const Task&) = delete;
  Task& operator=(const Task&) = delete;
  Task& operator=(Task&&) = delete;
  ~Task() {
    if (handle_) {
      handle_.destroy();
    }
  }

  bool await_ready() const { return false; }
  std::coroutine_handle<> await_suspend(std::coroutine_handle<> caller) {
    handle_.promise().continuation = caller;
    return handle_;
  }
  T await_resume() { return handle_.promise().Take(); }

  Handle handle() const { return handle_; }

 private:
  Handle handle_;
};

template <typename T>
Task<T> internal::Promise<T>::get_return_object() {
  return Task<T>(Task<T>::Handle::from_promise(*this));
}
inline Task<void> internal::Promise<void>::get_return_object() {
  return Task<void>(Task<void>::Handle::from_promise(*this));
}

class Scheduler;
class Signal;

// What one await has in the queue.
class Pause {
 public:
  Pause(Scheduler& scheduler, Time until) : scheduler_(scheduler), until_(until) {}
  Pause(const Pause&) = delete;
  Pause& operator=(const Pause&) = delete;
  ~Pause();
  bool await_ready() const { return false; }
  void await_suspend(std::coroutine_handle<> handle);
  void await_resume() { slot_ = 0; }

 protected:
  friend class Signal;
  Scheduler& scheduler_;
  Time until_;
  uint64_t slot_ = 0;  // 0: none
  std::coroutine_handle<> handle_;
};

// Coroutines wait here until somebody notifies, or their deadline passes.
class Signal {
 public:
  class Waiting : public Pause {
   public:
    Waiting(Signal& signal, Scheduler& scheduler, Time until) : Pause(scheduler, until), signal_(&signal) {}
    ~Waiting() { Unlink(); }
    void await_suspend(std::coroutine_handle<> handle) {
      Pause::await_suspend(handle);
      signal_->waiting_.push_back(this);
      linked_ = true;
    }
    void await_resume() {
      Pause::await_resume();
      Unlink();
    }

   private:
    friend class Signal;
    void Unlink() {
      if (linked_ && signal_ != nullptr) {
        signal_->waiting_.remove(this);
      }
      linked_ = false;
    }
    Signal* signal_;
    bool linked_ = false;
  };

  explicit Signal(Scheduler& scheduler) : scheduler_(scheduler) {}
  Signal(const Signal&) = delete;
  Signal& operator=(const Signal&) = delete;
  ~Signal() {
    for (Waiting* waiting : waiting_) {
      waiting->signal_ = nullptr;
    }
  }
  Waiting Wait(Time until) { return Waiting(*this, scheduler_, until); }
  void Notify();

 private:
  Scheduler& scheduler_;
  std::list<Waiting*> waiting_;
};

// Coroutines that die together.
class Group {
 public:
  Group() = default;
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;
  void Sweep() {
    tasks_.remove_if([](const Member& member) { return member.task.handle().done(); });
  }
  void Clear() { tasks_.clear(); }

 private:
  friend class Scheduler;
  struct Member {
    Task<> task;
    std::shared_ptr<bool> alive;  // for the event that starts it
  };
  std::list<Member> tasks_;
};

class Scheduler {
 public:
  explicit Scheduler(uint64_t seed) : rng_(seed) {}

  Time now() const { return now_; }
  Rng& rng() { return rng_; }
  uint64_t events() const { return events_; }

  // A point where others may come between.
  Pause Step() { return Pause(*this, now_ + 1 + rng_.Below(30)); }
  Pause Sleep(Time duration) { return Pause(*this, now_ + duration); }

  void Spawn(Group& group, Task<> task) {
    group.Sweep();
    group.tasks_.push_back({std::move(task), std::make_shared<bool>(true)});
    At(now_ + 1 + rng_.Below(20),
       [handle = group.tasks_.back().task.handle(), alive = std::weak_ptr<bool>(group.tasks_.back().alive)] {
         if (!alive.expired()) {
           handle.resume();
         }
       });
  }
  void At(Time when, std::function<void()> call) { Schedule(when, nullptr, std::move(call)); }

  // False when nothing is left to do.
  bool RunOne();

 private:
  friend class Pause;
  friend class Signal;
  struct Entry {
    Time when;
    uint32_t tie;
    uint32_t index;
    uint32_t use;
    bool operator<(const Entry& other) const {
      return when != other.when ? when > other.when : tie > other.tie;
    }
  };
  struct Slot {
    uint32_t use = 0;
    bool taken = false;
    std::coroutine_handle<> handle;
    std::function<void()> call;
  };
  // The ticket of the entry, for Cancel; never 0.
  uint64_t Schedule(Time when, std::coroutine_handle<> handle, std::function<void()> call);
  void Cancel(uint64_t ticket);

  Rng rng_;
  Time now_ = 0;
  uint64_t events_ = 0;
  std::priority_queue<Entry> queue_;
  std::vector<Slot> slots_;
  std::vector<uint32_t> free_;
};

}  // namespace pmirror::sim
