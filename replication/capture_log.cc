// SPDX-License-Identifier: BSD-3-Clause
// See capture_log.h.
#include "replication/capture_log.h"

namespace pmirror {

using namespace capture_log;  // NOLINT: one file's two halves

namespace {

// Where a room of so many units would begin: it lies in one piece.
constexpr uint32_t BeginOf(uint32_t unit, uint32_t units) {
  const uint32_t in_ring = unit % kCaptureUnits;
  return in_ring + units <= kCaptureUnits ? unit : unit + (kCaptureUnits - in_ring);
}

constexpr bool Fits(Position head, Position tail, uint32_t units) {
  return head.slot - tail.slot < kCaptureSlots &&
         BeginOf(head.unit, units) + units - tail.unit <= kCaptureUnits;
}

}  // namespace

std::optional<CaptureWriter::Room> CaptureWriter::Reserve(size_t bytes) {
  const uint32_t units = UnitsOf(bytes);
  uint64_t word = memory_.head.load(std::memory_order_acquire);
  Position head;
  uint32_t begin = 0;
  do {
    head = Unpack(word);
    if (!Fits(head, Unpack(memory_.tail.load(std::memory_order_acquire)), units)) {
      return std::nullopt;
    }
    begin = BeginOf(head.unit, units);
  } while (!memory_.head.compare_exchange_weak(word, Pack({.slot = head.slot + 1, .unit = begin + units}),
                                               std::memory_order_seq_cst));
  CaptureSlot& slot = SlotAt(memory_, head.slot);
  slot.begin = begin;
  slot.end = begin + units;
  uint64_t expected = State(head.slot, kFree);
  if (!slot.state.compare_exchange_strong(expected, State(head.slot, kReserved), std::memory_order_seq_cst)) {
    slot.state.store(State(head.slot, kLeft), std::memory_order_release);  // a cut went by just then
    return std::nullopt;
  }
  return Room{.slot = head.slot, .bytes = {UnitAt(memory_, begin), bytes}};
}

bool CaptureWriter::Full(size_t bytes) const {
  return !Fits(Unpack(memory_.head.load(std::memory_order_acquire)),
               Unpack(memory_.tail.load(std::memory_order_acquire)), UnitsOf(bytes));
}

bool CaptureWriter::Commit(const Room& room, const Entry& entry) {
  CaptureSlot& slot = SlotAt(memory_, room.slot);
  slot.file = Raw(entry.file);
  slot.number = entry.number;
  slot.range_count = entry.range_count;
  slot.payload_bytes = entry.payload_bytes;
  slot.crc = entry.crc;
  slot.skip = entry.skip;
  uint64_t expected = State(room.slot, kReserved);
  if (slot.state.compare_exchange_strong(expected, State(room.slot, kCommitted), std::memory_order_seq_cst)) {
    return true;
  }
  slot.state.store(State(room.slot, kLeft), std::memory_order_release);
  return false;
}

void CaptureWriter::Abandon(const Room& room) {
  SlotAt(memory_, room.slot).state.store(State(room.slot, kLeft), std::memory_order_release);
}

}  // namespace pmirror
