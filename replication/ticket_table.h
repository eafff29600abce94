// SPDX-License-Identifier: BSD-3-Clause
// Captures under way in one process, in memory that the local daemon reads: what a scan has made to look clean although the replica does
// not have it yet (traps 2, 3, 4). A ticket is opened before the scan and closed when the capture is acknowledged; a capture that failed
// leaves a redo ticket, which counts as dirty for every later sync of any process.
//
// Written by the process (its threads, under the process's own capture lock), read by the daemon at any time, also after the process died.
// Async-signal-safe, no allocation.
#pragma once

#include <atomic>
#include <cstdint>

#include "replication/types.h"

namespace pmirror {

enum class TicketState : uint32_t { kFree = 0, kOpen = 1, kRedo = 2 };

struct Ticket {
  std::atomic<uint32_t>
      state;  // TicketState, published last; also the futex word that waiters of an open ticket sleep on
  uint32_t volume;  // index in the process's mount list
  std::atomic<uint64_t>
      serial;       // grows with each opening in this process: a waiter waits for serials below its own
  uint64_t file;    // FileId
  uint64_t offset;  // hull of the ranges, bytes
  uint64_t length;
};
static_assert(sizeof(Ticket) == 40);

constexpr size_t kMaxTickets =
    1024;  // redo tickets of one file are merged into their hull before the table runs full

struct TicketTable {
  std::atomic<uint64_t> next_serial;
  std::atomic<uint64_t>
      acknowledged_syncs[32];  // by volume index: what `pmirror status` counts as durable_seq
  std::atomic<uint64_t>
      abandoned;  // set when a process cannot say any more what is dirty: everything it mapped is
  Ticket tickets[kMaxTickets];
};

}  // namespace pmirror
