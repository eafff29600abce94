// SPDX-License-Identifier: BSD-3-Clause
// libpmirror: asynchronous flushes. A queue and a few threads that call pmirror_flush: whatever holds for that holds
// here, with the preload library and without it. docs/internals/programs.md argues the choice.
//
// Threads: `mutex` guards the queue and every completion; it is not held across a flush. Fork: the handlers hold it,
// and the child starts with an empty queue, no threads, and every flush of its parent cancelled. Never destroyed.
#include <fcntl.h>
#include <pthread.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <deque>
#include <list>
#include <memory>
#include <mutex>
#include <new>
#include <span>
#include <vector>

#include "interpose/api_parts.h"
#include "interpose/describe_volume.h"

using namespace pmirror::interpose;  // NOLINT: the C API of it

struct pmirror_completion {
  // Guarded by the queue's mutex:
  std::vector<pmirror_range> ranges;
  unsigned flags = 0;
  int volume = -1;  // flushes of one volume may travel together
  bool done = false;
  bool released = false;  // by the caller: it goes when it is done
  int error = 0;
  int fd = -1;  // a timerfd
  pmirror_error_info info{};
  std::list<std::unique_ptr<pmirror_completion>>::iterator place;
};

namespace {

constexpr size_t kMaxWorkers = 4;       // flushes that wait for replicas at the same time
constexpr size_t kMaxRanges = 1024;     // of one flush
constexpr size_t kRangesTogether = 64;  // that several flushes may have to travel together: one capture
constexpr size_t kStackBytes = 512 << 10;

class Queue {
 public:
  Queue() : pid_(::getpid()) {}

  pmirror_completion* Add(std::unique_ptr<pmirror_completion> made, int& error);
  bool Done(pmirror_completion& completion, int* error);
  bool Wait(pmirror_completion& completion, int timeout_ms, int* error);
  int Descriptor(pmirror_completion& completion);
  bool Info(pmirror_completion& completion, pmirror_error_info& info);
  void Release(pmirror_completion& completion);

  void BeforeFork() { mutex_.lock(); }
  void AfterForkInParent() { mutex_.unlock(); }
  void AfterForkInChild(bool announced);
  pid_t pid() const { return pid_; }

 private:
  using Lock = std::unique_lock<std::mutex>;

  bool StartWorker();
  static void* Work(void* queue);
  void Work();
  struct Batch {
    std::array<pmirror_completion*, kRangesTogether> flushes;
    size_t count = 0;
    std::array<pmirror_range, kMaxRanges> ranges;
    size_t range_count = 0;
    std::span<pmirror_completion* const> all() const { return std::span(flushes).first(count); }
    void Add(pmirror_completion& flush);
  };
  void TakeBatch(Batch& batch);
  void FinishEach(Lock& lock, const Batch& batch, unsigned flags);
  void Finish(pmirror_completion& completion, int error);
  void Destroy(pmirror_completion& completion);

  std::mutex mutex_;
  std::condition_variable queued_;
  std::condition_variable finished_;
  pid_t pid_;
  std::list<std::unique_ptr<pmirror_completion>> all_;
  std::deque<pmirror_completion*> waiting_;
  size_t workers_ = 0;
  size_t idle_ = 0;
};

// Never destroyed: threads may use it to the last instruction of the process.
Queue& TheQueue() {
  alignas(Queue) static std::array<std::byte, sizeof(Queue)> memory;
  static Queue* const queue = [] {
    auto* made = new (memory.data()) Queue;
    ::pthread_atfork([] { TheQueue().BeforeFork(); }, [] { TheQueue().AfterForkInParent(); },
                     [] { TheQueue().AfterForkInChild(/*announced=*/true); });
    return made;
  }();
  return *queue;
}

// The queue of this process, also in a child that no handler announced (a raw clone).
Queue& OwnQueue() {
  Queue& queue = TheQueue();
  if (queue.pid() != ::getpid()) {
    queue.AfterForkInChild(/*announced=*/false);
  }
  return queue;
}

// A descriptor that the program has closed, and the number perhaps used for a file of its own, is not touched: these
// calls fail on everything but a timer. An eventfd would write eight bytes into that file.
bool IsTimer(int fd) {
  itimerspec now;
  return fd >= 0 && ::timerfd_gettime(fd, &now) == 0;
}

void MakeReadable(int fd) {
  const itimerspec at_once{.it_interval = {}, .it_value = {.tv_sec = 0, .tv_nsec = 1}};
  ::timerfd_settime(fd, 0, &at_once, nullptr);
}

int MakeTimer() { return ::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK); }

int Flush(std::span<const pmirror_range> ranges, unsigned flags) {
  const auto flush = (flags & PMIRROR_VERIFY) != 0   ? &::pmirror_flush_verify
                     : (flags & PMIRROR_ATOMIC) != 0 ? &::pmirror_flush_atomic
                                                     : &::pmirror_flush;
  const int result = flush(ranges.data(), ranges.size());
  return result == 0 ? 0 : errno;
}

pmirror_completion* Queue::Add(std::unique_ptr<pmirror_completion> made, int& error) {
  const Lock lock(mutex_);
  const bool first = workers_ == 0;
  if (all_.size() >= PMIRROR_MAX_IN_FLIGHT || (first && !StartWorker())) {
    error = EAGAIN;
    return nullptr;
  }
  if (!first && idle_ <= waiting_.size() && workers_ < kMaxWorkers) {
    (void)StartWorker();  // without one more it takes longer
  }
  pmirror_completion* completion = made.get();
  waiting_.push_back(completion);  // first: when the other one finds no memory, this is undone
  try {
    all_.push_front(std::move(made));
  } catch (const std::bad_alloc&) {
    waiting_.pop_back();
    throw;
  }
  completion->place = all_.begin();
  queued_.notify_one();
  return completion;
}

// Requires: the mutex is held.
bool Queue::StartWorker() {
  pthread_attr_t attributes;
  ::pthread_attr_init(&attributes);
  ::pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  ::pthread_attr_setstacksize(&attributes, kStackBytes);
  // The program's handlers run on its own threads; a fault is the faulting thread's.
  sigset_t blocked;
  sigset_t before;
  ::sigfillset(&blocked);
  for (const int fault : {SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGTRAP, SIGSYS}) {
    ::sigdelset(&blocked, fault);
  }
  ::pthread_sigmask(SIG_SETMASK, &blocked, &before);
  pthread_t thread;
  const bool started = ::pthread_create(&thread, &attributes, &Queue::Work, this) == 0;
  if (started) {
    ::pthread_setname_np(thread, "pmirror-flush");
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  ::pthread_attr_destroy(&attributes);
  workers_ += started ? 1 : 0;
  return started;
}

void* Queue::Work(void* queue) {
  static_cast<Queue*>(queue)->Work();
  return nullptr;
}

void Queue::Work() {
  Batch batch;  // on the stack: a thread of its own has nobody to tell that there is no memory
  Lock lock(mutex_);
  for (;;) {
    while (waiting_.empty()) {
      ++idle_;
      queued_.wait(lock);
      --idle_;
    }
    TakeBatch(batch);
    const unsigned flags = batch.flushes[0]->flags;
    lock.unlock();
    const int error = Flush(std::span(batch.ranges).first(batch.range_count), flags);
    pmirror_error_info info{};
    info.size = sizeof(info);
    if (error != 0) {
      ::pmirror_get_error_info(&info);
    }
    lock.lock();
    if (error == EINVAL && batch.count > 1) {  // one has been unmapped: the others are not to suffer for it
      FinishEach(lock, batch, flags);
      continue;
    }
    for (pmirror_completion* flush : batch.all()) {
      flush->info = info;
      Finish(*flush, error);
    }
  }
}

// Each flush of the batch by itself.
void Queue::FinishEach(Lock& lock, const Batch& batch, unsigned flags) {
  for (pmirror_completion* flush : batch.all()) {
    lock.unlock();  // nobody else touches the ranges of a flush that is taken
    const int error = Flush(flush->ranges, flags);
    pmirror_error_info info{};
    info.size = sizeof(info);
    if (error != 0) {
      ::pmirror_get_error_info(&info);
    }
    lock.lock();
    flush->info = info;
    Finish(*flush, error);
  }
}

void Queue::Batch::Add(pmirror_completion& flush) {
  flushes[count++] = &flush;
  std::copy(flush.ranges.begin(), flush.ranges.end(), ranges.begin() + static_cast<ptrdiff_t>(range_count));
  range_count += flush.ranges.size();
}

// Requires: the mutex is held, something waits.
void Queue::TakeBatch(Batch& batch) {
  batch.count = batch.range_count = 0;
  batch.Add(*waiting_.front());
  waiting_.pop_front();
  if ((batch.flushes[0]->flags & PMIRROR_ATOMIC) != 0) {
    return;  // a group is one by itself
  }
  for (auto at = waiting_.begin(); at != waiting_.end() && batch.range_count < kRangesTogether;) {
    pmirror_completion& next = **at;
    if (next.volume != batch.flushes[0]->volume || next.flags != batch.flushes[0]->flags ||
        batch.range_count + next.ranges.size() > kRangesTogether) {
      ++at;
      continue;
    }
    batch.Add(next);
    at = waiting_.erase(at);
  }
}

// Requires: the mutex is held.
void Queue::Finish(pmirror_completion& completion, int error) {
  completion.done = true;
  completion.error = error;
  completion.ranges = {};
  if (completion.released) {
    Destroy(completion);
    return;
  }
  if (completion.fd >= 0) {
    MakeReadable(completion.fd);
  }
  finished_.notify_all();
}

void Queue::Destroy(pmirror_completion& completion) {
  if (IsTimer(completion.fd)) {
    ::close(completion.fd);
  }
  all_.erase(completion.place);
}

bool Queue::Done(pmirror_completion& completion, int* error) { return Wait(completion, 0, error); }

bool Queue::Wait(pmirror_completion& completion, int timeout_ms, int* error) {
  Lock lock(mutex_);
  const auto done = [&] { return completion.done; };
  if (timeout_ms < 0) {
    finished_.wait(lock, done);
  } else if (timeout_ms > 0) {
    finished_.wait_for(lock, std::chrono::milliseconds(timeout_ms), done);
  }
  if (completion.done && error != nullptr) {
    *error = completion.error;
  }
  return completion.done;
}

int Queue::Descriptor(pmirror_completion& completion) {
  const Lock lock(mutex_);
  if (completion.fd < 0) {
    completion.fd = MakeTimer();
    if (completion.fd >= 0 && completion.done) {
      MakeReadable(completion.fd);
    }
  }
  return completion.fd;
}

bool Queue::Info(pmirror_completion& completion, pmirror_error_info& info) {
  const Lock lock(mutex_);
  info = completion.info;
  return completion.done;
}

void Queue::Release(pmirror_completion& completion) {
  const Lock lock(mutex_);
  completion.released = true;
  if (completion.done) {
    Destroy(completion);
  }
}

// No other thread is here. What is under way is the parent's; its descriptors are shared with it, so that the child
// gets others of the same numbers.
void Queue::AfterForkInChild(bool announced) {
  if (!announced) {
    new (&mutex_) std::mutex;  // whoever held it does not exist here
    mutex_.lock();
  }
  new (&queued_) std::condition_variable;
  new (&finished_) std::condition_variable;
  pid_ = ::getpid();
  workers_ = idle_ = 0;
  waiting_.clear();
  for (auto at = all_.begin(); at != all_.end();) {
    pmirror_completion& completion = **at++;
    if (IsTimer(completion.fd)) {
      const int own = MakeTimer();
      if (own >= 0) {
        MakeReadable(own);
        ::dup3(own, completion.fd, O_CLOEXEC);
        ::close(own);
      }
    }
    if (!completion.done) {
      completion.info = {};
      completion.info.error = ECANCELED;
      completion.info.replica = -1;
      Finish(completion, ECANCELED);
    }
  }
  mutex_.unlock();
}

// 0, or the errno with which a flush of this list is refused.
int Check(const pmirror_range* ranges, size_t count, unsigned flags) {
  constexpr unsigned kKnown = PMIRROR_VERIFY | PMIRROR_ATOMIC;
  if (ranges == nullptr || count == 0 || count > kMaxRanges || (flags & ~kKnown) != 0 || flags == kKnown) {
    return EINVAL;
  }
  const PreloadTable* preload = Preload();
  if (flags != 0 && preload == nullptr) {
    return ENOTSUP;
  }
  const bool all = preload == nullptr || std::all_of(ranges, ranges + count, [&](const pmirror_range& range) {
                     return preload->is_replicated(range.address, range.length) != 0;
                   });
  return all ? 0 : EINVAL;
}

}  // namespace

extern "C" {

pmirror_completion* pmirror_flush_async(const pmirror_range* ranges, size_t count, unsigned flags) {
  int error = Check(ranges, count, flags);
  if (error != 0) {
    errno = error;
    return nullptr;
  }
  pmirror_completion* completion = nullptr;
  try {
    auto made = std::make_unique<pmirror_completion>();
    const PreloadTable* preload = Preload();
    made->ranges.assign(ranges, ranges + count);
    made->flags = flags;
    made->volume = preload != nullptr ? preload->volume_of(ranges[0].address) : -1;
    completion = OwnQueue().Add(std::move(made), error);
  } catch (const std::bad_alloc&) {
    error = ENOMEM;
  }
  if (completion == nullptr) {
    errno = error;
  }
  return completion;
}

int pmirror_completion_done(pmirror_completion* completion, int* error) {
  return OwnQueue().Done(*completion, error) ? 1 : 0;
}

int pmirror_completion_wait(pmirror_completion* completion, int timeout_ms, int* error) {
  return OwnQueue().Wait(*completion, timeout_ms, error) ? 1 : 0;
}

int pmirror_completion_fd(pmirror_completion* completion) { return OwnQueue().Descriptor(*completion); }

int pmirror_completion_error_info(pmirror_completion* completion, pmirror_error_info* info) {
  pmirror_error_info full{};
  if (!OwnQueue().Info(*completion, full)) {
    errno = EAGAIN;
    return -1;
  }
  if (!CopyOut(&full, sizeof(full), offsetof(pmirror_error_info, action), info)) {
    errno = EINVAL;
    return -1;
  }
  return 0;
}

void pmirror_completion_release(pmirror_completion* completion) {
  if (completion != nullptr) {
    OwnQueue().Release(*completion);
  }
}
}
