// SPDX-License-Identifier: BSD-3-Clause
// Reads the ticket table of a program (replication/ticket_table.h), which the program writes at the same time, perhaps nonsense. Nothing it
// holds is used before it was read once and checked.
#pragma once

#include "absl/functional/function_ref.h"
#include "replication/ticket_table.h"
#include "replication/types.h"

namespace pmirror::fs {

// No file has a byte at or beyond it (the kernel's MAX_LFS_FILESIZE).
constexpr uint64_t kMaxFileBytes = INT64_MAX;

// The part of [offset, offset + length) that a file can have; no overflow whatever the numbers.
constexpr Extent SaneExtent(uint64_t offset, uint64_t length) {
  if (offset >= kMaxFileBytes) {
    return {};
  }
  return {offset, length < kMaxFileBytes - offset ? length : kMaxFileBytes - offset};
}

// Calls `visit` for each ticket (open or redo) with bytes, of whatever volume and file it names; for some more than once. Every ticket that was there
// at one moment of the call has been visited when it answers true. False: the table did not hold still, and any ticket may be missing.
bool ReadTickets(const TicketTable& table,
                 absl::FunctionRef<void(uint32_t volume, FileId file, Extent extent)> visit);

// Grows with every ticket that is opened, and with every range that moves from one ticket to another.
inline uint64_t TicketSerial(const TicketTable& table) {
  return table.next_serial.load(std::memory_order_seq_cst);
}

// The process cannot say any more what is dirty: all that it mapped is.
inline bool HasAbandoned(const TicketTable& table) {
  return table.abandoned.load(std::memory_order_seq_cst) != 0;
}

}  // namespace pmirror::fs
