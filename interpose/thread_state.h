// SPDX-License-Identifier: BSD-3-Clause
// What pmirror keeps for each thread: plain data in the static thread block, so that it needs no allocation
// and works in signal handlers.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace pmirror::interpose {

// A range that was flushed and waits for its drain.
struct FlushedRange {
  uintptr_t address = 0;
  size_t length = 0;
  uintptr_t end() const { return address + length; }
};
constexpr size_t kMaxFlushed = 64;

// Where a sync or flush failed, for pmirror_get_error_info.
struct ErrorPlace {
  static constexpr uint32_t kNoVolume = UINT32_MAX;
  int action = 0;       // pmirror_action
  FlushedRange range;   // address 0: not known
  uint64_t file = 0;    // FileId, 0: not known
  uint64_t offset = 0;  // of the range in the file
  uint32_t volume = kNoVolume;
  int replica = -1;  // index, -1: none in particular, or not known
};

struct ThreadState {
  uint32_t sync_depth = 0;  // syncs of this thread under way: > 1 in a signal handler that interrupted one
  uint32_t gate_depth = 0;  // passes of this thread through the gate (sync_gate.h)
  uint32_t inside_pmem =
      0;  // calls of the real libpmem under way: what it calls of itself is already being looked after
  uint32_t flushed_count = 0;
  bool flushed_busy = false;  // the list is being changed: a signal handler must not touch it
  int last_error = 0;         // errno of this thread's last failed sync or flush, see pmirror_error
  const char* last_doing = "";
  ErrorPlace last_place;
  int failed_replica = -1;  // which one the sync under way met with a refusal or without an answer
  std::array<FlushedRange, kMaxFlushed> flushed{};  // sorted by address, not touching
};

ThreadState& thread_state();

}  // namespace pmirror::interpose
