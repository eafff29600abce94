// SPDX-License-Identifier: BSD-3-Clause
// See own_descriptors.h. Identity is device and inode: enough to see that a number means something else now.
#include "interpose/own_descriptors.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>

namespace pmirror::interpose {
namespace {

constexpr int kBases[] = {768, 512, 64, 3};  // the first that the descriptor limit allows

uint64_t Identity(int fd) {
  struct stat status;
  if (::fstat(fd, &status) != 0) {
    return 0;
  }
  return (static_cast<uint64_t>(status.st_dev) << 40 ^ static_cast<uint64_t>(status.st_ino)) | uint64_t{1}
                                                                                                   << 63;
}

constinit OwnDescriptors g_own_descriptors;

}  // namespace

OwnDescriptors& own_descriptors() { return g_own_descriptors; }

int OwnDescriptors::MoveHigh(UniqueFd fd) {
  for (int base : kBases) {
    const int moved = static_cast<int>(::syscall(SYS_fcntl, fd.get(), F_DUPFD_CLOEXEC, base));
    if (moved >= 0) {
      return moved;
    }
  }
  ::syscall(SYS_fcntl, fd.get(), F_SETFD, FD_CLOEXEC);
  return fd.Release();
}

bool OwnDescriptors::Remember(int fd, OwnKind kind, uint32_t tag) {
  if (fd < 0 || static_cast<size_t>(fd) >= kMaxNumbers) {
    return false;
  }
  Entry& entry = entries_[static_cast<size_t>(fd)];
  entry.kind.store(static_cast<uint8_t>(kind), std::memory_order_relaxed);
  entry.tag.store(tag, std::memory_order_relaxed);
  entry.identity.store(Identity(fd), std::memory_order_release);
  below_.store(static_cast<int>(kMaxNumbers) - std::min(lowest(), fd), std::memory_order_release);
  above_.store(std::max(highest(), fd) + 1, std::memory_order_release);
  return true;
}

void OwnDescriptors::Forget(int fd) {
  entries_[static_cast<size_t>(fd)].identity.store(0, std::memory_order_release);
}

OwnDescriptors::Handle OwnDescriptors::Adopt(UniqueFd fd, OwnKind kind) {
  const SignalGuard guard(lock_);
  size_t free = 0;
  while (free < kMaxHandles && numbers_[free].load(std::memory_order_relaxed) != 0) {
    ++free;
  }
  if (free == kMaxHandles || !fd.valid()) {
    return 0;
  }
  const auto handle = static_cast<Handle>(free) + 1;
  UniqueFd moved(MoveHigh(std::move(fd)));
  if (!Remember(moved.get(), kind, static_cast<uint32_t>(handle))) {
    return 0;
  }
  numbers_[free].store(moved.Release() + 1, std::memory_order_release);
  Handle none = 0;
  single_[static_cast<size_t>(kind)].compare_exchange_strong(none, handle);
  return handle;
}

UniqueFd OwnDescriptors::AdoptSession(UniqueFd fd, uint32_t tag) {
  const SignalGuard guard(lock_);
  UniqueFd moved(MoveHigh(std::move(fd)));
  if (tag >= kMaxTags || !Remember(moved.get(), OwnKind::kSession, tag)) {
    moved.Reset();
    return moved;
  }
  session_identity_[tag].store(Identity(moved.get()), std::memory_order_release);
  return moved;
}

int OwnDescriptors::Number(Handle handle) const {
  return handle <= 0 ? -1 : numbers_[static_cast<size_t>(handle) - 1].load(std::memory_order_seq_cst) - 1;
}

int OwnDescriptors::Single(OwnKind kind) const {
  return Number(single_[static_cast<size_t>(kind)].load(std::memory_order_acquire));
}

void OwnDescriptors::Close(Handle handle) {
  if (handle <= 0) {
    return;
  }
  const SignalGuard guard(lock_);
  const int number = numbers_[static_cast<size_t>(handle) - 1].exchange(0, std::memory_order_seq_cst) - 1;
  if (number < 0) {
    return;
  }
  for (auto& single : single_) {
    Handle mine = handle;
    single.compare_exchange_strong(mine, 0);
  }
  in_use_.Wait();
  const bool still_ours =
      entries_[static_cast<size_t>(number)].identity.load(std::memory_order_acquire) == Identity(number);
  Forget(number);
  if (still_ours) {
    ::syscall(SYS_close, number);
  }
}

bool OwnDescriptors::Owns(int fd) {
  if (fd < lowest() || fd > highest()) {
    return false;
  }
  Entry& entry = entries_[static_cast<size_t>(fd)];
  uint64_t identity = entry.identity.load(std::memory_order_acquire);
  if (identity == 0) {
    return false;
  }
  const uint64_t now = Identity(fd);
  if (now == identity) {
    return true;
  }
  if (entry.kind.load(std::memory_order_relaxed) == static_cast<uint8_t>(OwnKind::kSession) && now != 0 &&
      now == session_identity_[entry.tag.load(std::memory_order_relaxed)].load(std::memory_order_acquire)) {
    return true;  // the session's next connection in the same place
  }
  entry.identity.compare_exchange_strong(identity, 0);
  return false;
}

int OwnDescriptors::NextOwned(int from) {
  const int last = highest();
  for (int fd = std::max(from, lowest()); fd <= last; ++fd) {
    if (entries_[static_cast<size_t>(fd)].identity.load(std::memory_order_relaxed) != 0 && Owns(fd)) {
      return fd;
    }
  }
  return -1;
}

OwnDescriptors::Vacated OwnDescriptors::Vacate(int fd) {
  const SignalGuard guard(lock_);
  Entry& entry = entries_[static_cast<size_t>(fd)];
  if (entry.identity.load(std::memory_order_acquire) == 0) {
    return {};
  }
  const auto kind = static_cast<OwnKind>(entry.kind.load(std::memory_order_relaxed));
  const uint32_t tag = entry.tag.load(std::memory_order_relaxed);
  if (kind == OwnKind::kSession) {
    Forget(fd);
    return {true, tag};
  }
  UniqueFd copy(static_cast<int>(::syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, kBases[0])));
  if (!copy.valid()) {
    copy.Reset(static_cast<int>(::syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 3)));
  }
  // Without room for another number the descriptor is lost: its users get -1, which each of them can bear.
  const bool moved = Remember(copy.get(), kind, tag);
  numbers_[tag - 1].store(moved ? copy.Release() + 1 : 0, std::memory_order_seq_cst);
  Forget(fd);
  in_use_.Wait();
  return {};
}

void OwnDescriptors::CloseInChild() {
  lock_.ResetAfterFork();
  in_use_.ResetInChild();
  const int last = highest();
  for (int fd = lowest(); fd <= last; ++fd) {
    Entry& entry = entries_[static_cast<size_t>(fd)];
    const auto kind = static_cast<OwnKind>(entry.kind.load(std::memory_order_relaxed));
    if (entry.identity.load(std::memory_order_relaxed) == 0 || kind == OwnKind::kLog ||
        kind == OwnKind::kBacking || !Owns(fd)) {
      continue;
    }
    if (kind != OwnKind::kSession) {
      numbers_[entry.tag.load(std::memory_order_relaxed) - 1].store(0, std::memory_order_relaxed);
      single_[static_cast<size_t>(kind)].store(0, std::memory_order_relaxed);
    }
    Forget(fd);
    ::syscall(SYS_close, fd);
  }
}

}  // namespace pmirror::interpose
