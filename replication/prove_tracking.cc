// SPDX-License-Identifier: BSD-3-Clause
// The proof that write tracking tells the truth on a file system: every way in which it was seen to fail
// (FACTS.md) is tried on a scratch file, in a child, because some failures do not return.
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>

#include "replication/types.h"
#include "replication/write_tracker.h"

namespace pmirror {
namespace {

constexpr size_t kScratchBytes = 8 << 20;  // several huge pages: the case that reported nothing
constexpr size_t kPages = kScratchBytes / kPageSize;
constexpr size_t kMaxSeen = 64;

// An unnamed file of the file system, every byte allocated. Async-signal-safe.
UniqueFd ScratchFile(int directory_fd) {
  UniqueFd file(::openat(directory_fd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (!file.valid()) {
    constexpr char kName[] = ".pmirror-tracking-proof";
    ::unlinkat(directory_fd, kName, 0);
    file.Reset(::openat(directory_fd, kName, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600));
    ::unlinkat(directory_fd, kName, 0);
  }
  if (!file.valid() || ::fallocate(file.get(), 0, 0, kScratchBytes) != 0) {
    return UniqueFd();
  }
  return file;
}

// The proof itself, in the child.
class Proof {
 public:
  Proof(int file, Tracking mode) : file_(file), mode_(mode) {}

  bool Run() {
    return Map() && CleanAfterProtecting() && ReportsStores() && ReportsAbsentPages() &&
           ReportsKernelWrites() && SurvivesRemoval();
  }

 private:
  bool Map() {
    Result<WriteTracker> tracker = WriteTracker::Open();
    pagemap_.Reset(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
    void* base = ::mmap(nullptr, kScratchBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file_, 0);
    if (!tracker.ok() || !pagemap_.valid() || base == MAP_FAILED) {
      return false;
    }
    tracker_ = std::move(tracker).value();
    base_ = static_cast<volatile char*>(base);
    return tracker_.Register(Address(0), kScratchBytes, mode_).ok();
  }

  // What a mapping's start looks like: everything protected, most of it absent.
  bool CleanAfterProtecting() { return Scan() && Scan() && seen_count_ == 0; }

  bool ReportsStores() {
    for (size_t page : {size_t{0}, size_t{3}, size_t{700}, kPages - 1}) {
      Store(page);
    }
    return Scan() && Saw(0) && Saw(3) && Saw(700) && Saw(kPages - 1) && !Saw(4) && Scan() && seen_count_ == 0;
  }

  // Load first, then store: a load of a protected absent page was seen to spin.
  bool ReportsAbsentPages() {
    for (size_t page : {size_t{10}, size_t{1000}}) {
      if (base_[page * kPageSize] != 0) {
        return false;
      }
    }
    if (!Scan()) {  // whatever the loads brought in is protected now
      return false;
    }
    Store(10);
    Store(1000);
    return Scan() && Saw(10) && Saw(1000) && !Saw(11);
  }

  bool ReportsKernelWrites() {
    return ::pread(file_, const_cast<char*>(base_) + 20 * kPageSize, 64, 40 * kPageSize) == 64 && Scan() &&
           Saw(20);
  }

  // Pages that leave the page table by themselves keep their state. On fsdax protection has to be lifted
  // first.
  bool SurvivesRemoval() {
    Store(30);
    if (mode_ == Tracking::kWrittenPresent) {
      return true;
    }
    if (::madvise(const_cast<char*>(base_), kScratchBytes, MADV_DONTNEED) != 0) {
      return false;
    }
    Store(31);
    return Scan() && Saw(30) && Saw(31) && base_[30 * kPageSize] != 0;
  }

  uintptr_t Address(size_t page) const { return reinterpret_cast<uintptr_t>(base_) + page * kPageSize; }
  void Store(size_t page) { base_[page * kPageSize] = static_cast<char>(base_[page * kPageSize] + 1); }

  bool Scan() {
    seen_count_ = 0;
    return ScanAndProtect(pagemap_.get(), mode_, Address(0), Address(kPages),
                          [this](uintptr_t from, uintptr_t to) {
                            if (seen_count_ < kMaxSeen) {
                              seen_[seen_count_++] = {from, to};
                            }
                          })
        .ok();
  }
  bool Saw(size_t page) const {
    for (size_t i = 0; i < seen_count_; ++i) {
      if (seen_[i].from <= Address(page) && Address(page) < seen_[i].to) {
        return true;
      }
    }
    return false;
  }

  struct Range {
    uintptr_t from, to;
  };

  int file_;
  Tracking mode_;
  WriteTracker tracker_;
  UniqueFd pagemap_;
  volatile char* base_ = nullptr;
  Range seen_[kMaxSeen] = {};
  size_t seen_count_ = 0;
};

// Waits for the child until the deadline, then kills it. True when it said "proven".
bool Await(pid_t child, Deadline deadline) {
  UniqueFd handle(static_cast<int>(::syscall(SYS_pidfd_open, child, 0)));
  pollfd poll{.fd = handle.get(), .events = POLLIN, .revents = 0};
  int ready = 0;
  do {
    const timespec left = deadline.RemainingTimespec();
    ready = ::ppoll(&poll, 1, &left, nullptr);
  } while (ready < 0 && errno == EINTR);
  if (ready != 1) {
    ::kill(child, SIGKILL);
    // A child that spins in the kernel dies when it notices; one that never does is left to init.
    const timespec grace{.tv_sec = 2, .tv_nsec = 0};
    ::ppoll(&poll, 1, &grace, nullptr);
  }
  int status = 0;
  pid_t reaped = 0;
  do {
    reaped = ::waitpid(child, &status, __WALL | (ready == 1 ? 0 : WNOHANG));
  } while (reaped < 0 && errno == EINTR);
  return ready == 1 && reaped == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

bool Prove(int directory_fd, Tracking mode, Deadline deadline) {
  // A file per attempt: an attempt that hangs may leave pages that nobody should touch again.
  UniqueFd file = ScratchFile(directory_fd);
  if (!file.valid()) {
    return false;
  }
  // fork by system call: no atfork handler of the program or of a library may run, and the child only makes
  // system calls. No exit signal: nobody else's SIGCHLD handler or wait() may meet it.
  const pid_t child = static_cast<pid_t>(::syscall(SYS_clone, 0, nullptr, nullptr, nullptr, nullptr));
  if (child == 0) {
    ::syscall(SYS_exit_group, Proof(file.get(), mode).Run() ? 0 : 1);
  }
  return child > 0 && Await(child, deadline);
}

}  // namespace

Tracking ProveFileSystem(int directory_fd, Deadline deadline) {
  for (Tracking mode : {Tracking::kWritten, Tracking::kWrittenPresent}) {
    if (deadline.Expired()) {
      break;
    }
    // Each attempt gets its share of the time that is left, so that a hang of the first does not take the
    // second's.
    const Deadline share = mode == Tracking::kWritten ? Deadline::After(deadline.Remaining() / 2) : deadline;
    if (Prove(directory_fd, mode, share)) {
      return mode;
    }
  }
  return Tracking::kNone;
}

}  // namespace pmirror
