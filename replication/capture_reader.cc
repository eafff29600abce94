// SPDX-License-Identifier: BSD-3-Clause
// See capture_reader.h.
#include "replication/capture_reader.h"

#include <climits>
#include <cstring>

#include "replication/crc32c.h"
#include "replication/futex_mutex.h"

namespace pmirror {

using namespace capture_log;  // NOLINT: one log's two halves

void CaptureReader::Initialise(CaptureLogMemory& memory) {
  for (uint32_t slot = 0; slot < kCaptureSlots; ++slot) {
    memory.slots[slot].state.store(State(slot, kFree), std::memory_order_relaxed);
  }
}

CaptureReader::Found CaptureReader::Look(uint32_t number, uint64_t cut) {
  CaptureSlot& slot = SlotAt(memory_, number);
  uint64_t state = slot.state.load(std::memory_order_acquire);
  while (state == State(number, kFree) || state == State(number, kReserved)) {
    if (slot.state.compare_exchange_strong(state, State(number, kRevoked), std::memory_order_seq_cst)) {
      return Found::kNothing;
    }
  }
  if (state == State(number, kRevoked) || state == State(number, kLeft)) {
    return Found::kNothing;
  }
  if (state != State(number, kCommitted)) {
    return Found::kFault;
  }
  const uint64_t taken = slot.number;
  if (taken > cut) {
    return Found::kNothing;  // the next cut's
  }
  const uint32_t begin = slot.begin;
  const uint32_t range_count = slot.range_count;
  const size_t payload_bytes = slot.payload_bytes;
  const size_t ranges_bytes = size_t{range_count} * sizeof(WireRange);
  const size_t skip = slot.skip;
  if (range_count > kMaxRanges || payload_bytes > kMaxCapture || skip > kMaxCapture ||
      begin % kCaptureUnits + UnitsOf(skip + ranges_bytes + payload_bytes) > kCaptureUnits) {
    return Found::kFault;
  }
  copy_.resize(ranges_bytes + payload_bytes);
  std::memcpy(copy_.data(), UnitAt(memory_, begin) + skip, copy_.size());
  const auto ranges_part = std::span<const std::byte>(copy_).first(ranges_bytes);
  const auto payload = std::span<const std::byte>(copy_).subspan(ranges_bytes);
  if (Crc32c(Crc32c(0, payload), ranges_part) != slot.crc) {
    return Found::kFault;
  }
  capture_ = {.file = FileId{slot.file},
              .number = taken,
              .ranges = {reinterpret_cast<const WireRange*>(copy_.data()), range_count},
              .payload = payload};
  uint64_t sum = 0;
  for (const WireRange& range : capture_.ranges) {
    if (range.length == 0 || range.length > payload_bytes || range.offset > INT64_MAX - range.length) {
      return Found::kFault;
    }
    sum += range.length;
  }
  if (sum != payload_bytes) {
    return Found::kFault;
  }
  slot.state.store(State(number, kLeft), std::memory_order_release);
  return Found::kCapture;
}

bool CaptureReader::Pass(uint64_t cut, const std::function<void(const Capture&)>& take) {
  const Position head = Unpack(memory_.head.load(std::memory_order_seq_cst));
  const Position tail = Unpack(memory_.tail.load(std::memory_order_relaxed));
  if (head.slot - tail.slot > kCaptureSlots || head.unit - tail.unit > kCaptureUnits) {
    return false;
  }
  for (uint32_t number = tail.slot; number != head.slot; ++number) {
    switch (Look(number, cut)) {
      case Found::kFault:
        return false;
      case Found::kCapture:
        take(capture_);
        break;
      case Found::kNothing:
        break;
    }
  }
  return Release();
}

bool CaptureReader::Release() {
  const Position head = Unpack(memory_.head.load(std::memory_order_acquire));
  const Position old = Unpack(memory_.tail.load(std::memory_order_relaxed));
  Position tail = old;
  while (tail.slot != head.slot) {
    CaptureSlot& slot = SlotAt(memory_, tail.slot);
    if (slot.state.load(std::memory_order_acquire) != State(tail.slot, kLeft)) {
      break;
    }
    const uint32_t end = slot.end;
    if (end - tail.unit > kCaptureUnits || head.unit - end > kCaptureUnits) {
      return false;
    }
    slot.state.store(State(tail.slot + kCaptureSlots, kFree), std::memory_order_relaxed);
    tail = {.slot = tail.slot + 1, .unit = end};
  }
  if (tail.slot != old.slot) {
    memory_.tail.store(Pack(tail), std::memory_order_release);
    memory_.room.fetch_add(1, std::memory_order_release);
    FutexWake(&memory_.room, INT_MAX, FutexScope::kShared);
  }
  return true;
}

double CaptureReader::fill() const {
  const Position head = Unpack(memory_.head.load(std::memory_order_relaxed));
  const Position tail = Unpack(memory_.tail.load(std::memory_order_relaxed));
  const double units = static_cast<double>(head.unit - tail.unit) / kCaptureUnits;
  const double slots = static_cast<double>(head.slot - tail.slot) / kCaptureSlots;
  return units > slots ? units : slots;
}

}  // namespace pmirror
