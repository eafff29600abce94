// SPDX-License-Identifier: BSD-3-Clause
// The descriptors that belong to pmirror inside somebody else's program (trap 14): kept at high numbers,
// hidden from close(2) and its kin, and moved away when the program wants one of their numbers.
//
// Users keep a handle and ask for the number each time; a number may be used only inside a section of
// `in_use` (or under a lock that the mover takes), because it can move. Data sessions are the exception: they
// keep the number (and put later connections in its place, tcp_transport.h), and are disconnected instead of
// moved. Thread-safe, async-signal-safe, no allocation.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "interpose/quiescence.h"
#include "interpose/signal_lock.h"
#include "replication/unique_fd.h"

namespace pmirror::interpose {

enum class OwnKind : uint8_t {
  kNone = 0,
  kLog,
  kChannel,
  kUserfault,
  kPagemap,
  kTickets,
  kBacking,
  kSession
};
constexpr size_t kOwnKinds = 8;

class OwnDescriptors {
 public:
  using Handle = int;  // 0: none
  static constexpr size_t kMaxNumbers = 65536;

  constexpr OwnDescriptors() = default;

  // Moves the descriptor to a high number (close-on-exec) and remembers it. 0 when the table is full: `fd`
  // is closed then.
  Handle Adopt(UniqueFd fd, OwnKind kind);
  // The same for a session's socket, whose owner keeps the number. `tag` says which session, below kMaxTags.
  UniqueFd AdoptSession(UniqueFd fd, uint32_t tag);
  // The current number; -1 for handle 0 or after Close().
  int Number(Handle handle) const;
  // The number of the only (first) descriptor of its kind.
  int Single(OwnKind kind) const;
  void Close(Handle handle);

  // Whether the number is one of ours now. Forgets numbers that were closed behind our back.
  bool Owns(int fd);
  // The next number >= `from` that is ours; -1 when there is none.
  int NextOwned(int from);

  // Makes room at `fd`, one of ours, for the program's own: the descriptor moves and its users have left the
  // old number when this returns. For a session returns its tag: the caller disconnects it. Afterwards `fd`
  // is no longer ours (and may still be open).
  struct Vacated {
    bool session = false;
    uint32_t tag = 0;
  };
  Vacated Vacate(int fd);

  // In a forked child: closes all of them (but the log and backing files) without telling anybody; handles of
  // what was closed give -1.
  void CloseInChild();

  Quiescence& in_use() { return in_use_; }

 private:
  struct Entry {
    std::atomic<uint64_t> identity{0};  // of the open file, 0: not ours
    std::atomic<uint32_t> tag{0};       // handle, or a session's tag
    std::atomic<uint8_t> kind{0};
  };
  static constexpr size_t kMaxHandles = 8192;
  static constexpr size_t kMaxTags = 256;

  int MoveHigh(UniqueFd fd);
  bool Remember(int fd, OwnKind kind, uint32_t tag);
  void Forget(int fd);

  FutexMutex lock_;
  Quiescence in_use_;
  int lowest() const { return static_cast<int>(kMaxNumbers) - below_.load(std::memory_order_acquire); }
  int highest() const { return above_.load(std::memory_order_acquire) - 1; }

  // Everything starts as zero bytes: the object costs nothing until it is used.
  std::atomic<int> below_{0};  // kMaxNumbers minus the lowest number ever ours
  std::atomic<int> above_{0};  // the highest number ever ours, plus 1
  std::array<std::atomic<Handle>, kOwnKinds> single_{};
  std::array<std::atomic<int>, kMaxHandles> numbers_{};             // by handle - 1: number + 1, 0: free
  std::array<std::atomic<uint64_t>, kMaxTags> session_identity_{};  // of the latest connection
  std::array<Entry, kMaxNumbers> entries_{};
};

// The process's one.
OwnDescriptors& own_descriptors();

}  // namespace pmirror::interpose
