// SPDX-License-Identifier: BSD-3-Clause
// See ticket_reader.h; the writer is interpose/ticket_log.cc.
#include "fs/ticket_reader.h"

namespace pmirror::fs {
namespace {

constexpr int kPasses = 64;  // over a table in which tickets are opened all the time
constexpr int kTriesOfOneSlot = 64;

struct SlotCopy {
  uint32_t volume;
  FileId file;
  Extent extent;
};

enum class SlotRead { kFree, kTicket, kUnstable };

// Plain fields that another process writes.
template <typename T>
T LoadOnce(const T& field) {
  return __atomic_load_n(&field, __ATOMIC_ACQUIRE);
}

// One incarnation of one slot. The owner narrows its open ticket by writing a length that holds old and new range, the offset, the new
// length: two equal lengths around the offset make a range that holds what is still owed.
SlotRead ReadSlot(const Ticket& ticket, SlotCopy& copy) {
  constexpr auto kFree = static_cast<uint32_t>(TicketState::kFree);
  for (int attempt = 0; attempt < kTriesOfOneSlot; ++attempt) {
    if (ticket.state.load(std::memory_order_seq_cst) == kFree) {
      return SlotRead::kFree;
    }
    const uint64_t serial = ticket.serial.load(std::memory_order_acquire);
    const uint64_t length = LoadOnce(ticket.length);
    const uint64_t offset = LoadOnce(ticket.offset);
    const bool narrowed_meanwhile = LoadOnce(ticket.length) != length;
    copy = {LoadOnce(ticket.volume), FileId{LoadOnce(ticket.file)}, SaneExtent(offset, length)};
    // Closed meanwhile: acknowledged, or handed on under a new serial of the table, which the next pass sees. A state that
    // is none of ours counts as a ticket.
    if (ticket.state.load(std::memory_order_seq_cst) == kFree) {
      return SlotRead::kFree;
    }
    if (ticket.serial.load(std::memory_order_acquire) == serial && !narrowed_meanwhile) {
      return SlotRead::kTicket;
    }
  }
  return SlotRead::kUnstable;
}

}  // namespace

bool ReadTickets(const TicketTable& table,
                 absl::FunctionRef<void(uint32_t volume, FileId file, Extent extent)> visit) {
  for (int pass = 0; pass < kPasses; ++pass) {
    const uint64_t serial = TicketSerial(table);
    bool stable = true;
    for (const Ticket& ticket : table.tickets) {
      SlotCopy copy{};
      const SlotRead read = ReadSlot(ticket, copy);
      if (read == SlotRead::kTicket && !copy.extent.empty()) {
        visit(copy.volume, copy.file, copy.extent);
      }
      stable = stable && read != SlotRead::kUnstable;
    }
    if (stable && TicketSerial(table) == serial) {
      return true;
    }
  }
  return false;
}

}  // namespace pmirror::fs
