// SPDX-License-Identifier: BSD-3-Clause
// Processes that begin and end: the constructor, fork, and the handing over before exec and exit.
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>

#include <csignal>

#include "interpose/kernel.h"
#include "interpose/log.h"
#include "interpose/map_file.h"
#include "interpose/next_call.h"
#include "interpose/runtime.h"
#include "interpose/thread_state.h"

extern "C" {
// libc's own registration calls: with no library named, a handler runs at its place in the order of
// registration and not when our library is finalised.
int __cxa_atexit(void (*function)(void*), void* argument, void* library) noexcept;
int __cxa_at_quick_exit(void (*function)(void*), void* library) noexcept;
}

namespace pmirror::interpose {
namespace {

// Marks a saved mask as set: the bit of SIGKILL, which nobody can block.
constexpr KernelSignalMask kForkAnnounced = KernelSignalMask{1} << (SIGKILL - 1);

constexpr uintptr_t kEverywhere = ~uintptr_t{0};

KernelSignalMask BlockEverySignal() {
  const KernelSignalMask all = ~KernelSignalMask{0};
  KernelSignalMask before = 0;
  ::syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &before, sizeof(all));
  return before;
}

void RestoreSignals(KernelSignalMask mask) {
  ::syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, nullptr, sizeof(mask));
}

void AtExit(void*) {
  if (Runtime* runtime = Runtime::Get(); runtime != nullptr) {
    runtime->HandOverAll();
  }
}

void BeforeFork() {
  if (Runtime* runtime = Runtime::Get(); runtime != nullptr) {
    runtime->BeforeFork();
  }
}
void AfterForkInParent() {
  if (Runtime* runtime = Runtime::Get(); runtime != nullptr) {
    runtime->AfterForkInParent();
  }
}
void AfterForkInChild() { static_cast<void>(Runtime::Get()); }  // it notices

// Before the constructors of the program and of other libraries: our handlers are registered first, and so
// run last.
__attribute__((constructor(101))) void Construct() {
  const int saved_errno = errno;
  OpenLog();
  WarmUp();
  Runtime::Start();
  if (Runtime::Get() != nullptr) {
    ::pthread_atfork(BeforeFork, AfterForkInParent, AfterForkInChild);
    __cxa_atexit(AtExit, nullptr, nullptr);
    __cxa_at_quick_exit(AtExit, nullptr);
  }
  errno = saved_errno;
}

}  // namespace

void Runtime::BeforeFork() {
  const KernelSignalMask mask = BlockEverySignal();
  map_lock_.Lock();
  fork_mask_ = mask | kForkAnnounced;
}

void Runtime::AfterForkInParent() {
  const KernelSignalMask mask = fork_mask_;
  fork_mask_ = 0;
  map_lock_.Unlock();
  RestoreSignals(mask);
}

// Everything the child inherited speaks for the parent: connections, sessions, tickets, and a page map
// descriptor that would take the parent's dirty pages (trap 6). No allocation: an allocator's own fork
// handlers may not have run yet.
void Runtime::StartInChild() {
  const bool announced_fork = fork_mask_ != 0;
  const int saved_errno = errno;
  alive_->store(1, std::memory_order_relaxed);
  maps_.ResetInChild();
  gate_.ResetInChild();
  for (uint32_t i = 0; i < volume_count(); ++i) {
    volumes_[i].ResetInChild();
  }
  if (staging_ != nullptr) {
    staging_->ResetAfterFork();
  }
  own_descriptors().CloseInChild();
  link_.ResetInChild();
  map_lock_.ResetAfterFork();
  const Error announced = Announce();
  if (!announced.ok()) {
    LogLine(LogLevel::kError)
        .Text("a forked child has no link to the daemon, its syncs will fail: ")
        .Text(announced.doing)
        .Field("errno", static_cast<uint64_t>(announced.code));
  }
  RestoreFilesInChild();
  RestoreMappingsInChild(/*may_have_stored=*/!announced_fork);
  if (announced_fork) {
    const KernelSignalMask mask = fork_mask_;
    fork_mask_ = 0;
    RestoreSignals(mask);
  }
  errno = saved_errno;
}

void Runtime::RestoreFilesInChild() {
  for (uint32_t i = 0; i < files_.limit(); ++i) {
    FileEntry& entry = files_.at(i);
    if (entry.id.load(std::memory_order_relaxed) == 0) {
      continue;
    }
    // Syncs under way in other threads of the parent do not exist here. One pin is ours until the mappings
    // have been gone through.
    entry.pins.store((entry.mapped_bytes.load(std::memory_order_relaxed) != 0 ? 1 : 0) + 1,
                     std::memory_order_relaxed);
    const Error opened = ServeFile(i);
    if (!opened.ok()) {
      LogLine(LogLevel::kError)
          .Text("a forked child could not open a file of its parent: ")
          .Text(opened.doing)
          .Field("errno", static_cast<uint64_t>(opened.code));
    }
  }
}

// `may_have_stored`: the child ran for a while before we noticed it, untracked.
void Runtime::RestoreMappingsInChild(bool may_have_stored) {
  Mapping mapping;
  for (uintptr_t at = 0; maps_.Next(at, mapping); at = mapping.end()) {
    FileEntry& entry = files_.at(mapping.file);
    maps_.Remove(mapping.address, mapping.end());
    if ((mapping.flags & kMapDontFork) != 0) {
      if (entry.mapped_bytes.fetch_sub(mapping.length, std::memory_order_relaxed) == mapping.length) {
        Unpin(mapping.file, /*holding_map_lock=*/false);
      }
      continue;
    }
    Track(*this, mapping, /*populate_after=*/false);
    const Error told = TellMapped(*this, mapping);
    if (!told.ok()) {
      LogLine(LogLevel::kError).Text("a forked child could not announce a mapping: ").Text(told.doing);
    }
    maps_.Insert(mapping);
    constexpr uint32_t kStores = kMapShared | kMapStored;
    if (may_have_stored && (mapping.flags & kStores) == kStores) {
      tickets_.MarkRedo(entry.volume.load(std::memory_order_relaxed), entry.file_id(), mapping.extent());
    }
  }
  for (uint32_t i = 0; i < files_.limit(); ++i) {
    if (files_.at(i).id.load(std::memory_order_relaxed) != 0) {
      Unpin(i, /*holding_map_lock=*/false);
    }
  }
}

void Runtime::HandOverAll() {
  if (static_cast<int>(::syscall(SYS_getpid)) != pid_ || maps_.empty() || !link_.connected()) {
    return;
  }
  const int saved_errno = errno;
  {
    const SignalGuard guard(map_lock_);
    static_cast<void>(RelinkLocked());  // without a daemon there is nobody to hand over to
    HandOver(*this, 0, kEverywhere, Leaving::kStay);
  }
  errno = saved_errno;
}

void Runtime::TakeBack() {
  if (static_cast<int>(::syscall(SYS_getpid)) != pid_ || maps_.empty()) {
    return;
  }
  const int saved_errno = errno;
  {
    const SignalGuard guard(map_lock_);
    Mapping mapping;
    for (uintptr_t at = 0; maps_.Next(at, mapping); at = mapping.end()) {
      const Error told = TellMapped(*this, mapping);
      if (!told.ok()) {
        tickets_.Abandon();
      }
    }
  }
  errno = saved_errno;
}

}  // namespace pmirror::interpose
