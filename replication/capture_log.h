// SPDX-License-Identifier: BSD-3-Clause
// Where a sync leaves what it captured for replicas that trail (RPO > 0, docs/internals/rpo.md): a ring in memory that one process and the
// daemon share, and the clock that numbers the captures of a whole volume.
//
// Any number of threads of the process write, without a lock: a thread may be stopped, or die, anywhere, and keeps nobody else from writing
// or the daemon from reading. One thread of the daemon reads at a time. The writing half is async-signal-safe and allocates nothing.
//
// What a process writes is believed only after it was checked: a fault makes the log useless, and its replicas are brought back by a resync.
// ---
// For maintainers. `head` and `tail` are pairs (slot, unit of the ring), packed into one word so that a reservation is one step. A slot's state
// carries the number of the slot, counted without end, so that nothing of an earlier lap is taken for this one. Rooms are given back in the order
// of the slots: one that its owner has not left holds up those behind it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "replication/frame.h"
#include "replication/types.h"

namespace pmirror {

// Of one volume; every process writes to it.
struct CaptureClock {
  std::atomic<uint64_t> next;   // number of the next capture, from 1
  std::atomic<uint64_t> bytes;  // captured, ever
  std::atomic<uint64_t> syncs;  // that captured something, ever
  // Of each replica that trails: CLOCK_MONOTONIC nanoseconds at about the first capture that it may lack; 0: it lacks none.
  std::atomic<uint64_t> active_since[kMaxReplicas];
  std::atomic<uint32_t> wake;  // futex word of the daemon: counted up when it has something to do
};
static_assert(std::atomic<uint64_t>::is_always_lock_free);

constexpr size_t kCaptureUnit = 64;             // bytes; rooms begin and end at multiples
constexpr uint32_t kCaptureSlots = 8192;        // a power of two
constexpr uint32_t kCaptureUnits = 128 * 1024;  // 8 MiB, a power of two
// Of one capture, ranges included: what is larger is several captures.
constexpr size_t kMaxCapture = 256 * 1024;

struct CaptureSlot {
  std::atomic<uint64_t> state;  // slot number and phase
  uint64_t file;
  uint64_t number;
  uint32_t begin;  // units, counted without end modulo 2^32
  uint32_t end;
  uint32_t range_count;
  uint32_t payload_bytes;
  uint32_t crc;   // of the payload followed by the ranges
  uint32_t skip;  // bytes of the room before the ranges
  uint32_t reserved[4];
};
static_assert(sizeof(CaptureSlot) == 64);

struct CaptureLogMemory {
  std::atomic<uint64_t> head;  // written by the process
  std::atomic<uint64_t> tail;  // written by the daemon
  std::atomic<uint32_t> room;  // futex word, counted up when rooms are given back
  std::byte padding[4096 - 20];
  CaptureSlot slots[kCaptureSlots];
  std::byte ring[size_t{kCaptureUnits} * kCaptureUnit];
};
static_assert(offsetof(CaptureLogMemory, ring) % 4096 == 0);

// How the words of the log are made up; for the two halves only.
namespace capture_log {

enum Phase : uint64_t {
  kFree = 0,       // nobody's yet
  kReserved = 1,   // its owner is writing
  kCommitted = 2,  // the daemon may take it
  kRevoked = 3,    // a cut went by: the owner has to begin again
  kLeft = 4,       // taken by the daemon, or left by its owner: the room may be given back
};
constexpr uint64_t State(uint32_t slot, Phase phase) { return uint64_t{slot} << 3 | phase; }

struct Position {
  uint32_t slot = 0;
  uint32_t unit = 0;
};
constexpr Position Unpack(uint64_t word) {
  return {.slot = static_cast<uint32_t>(word >> 32), .unit = static_cast<uint32_t>(word)};
}
constexpr uint64_t Pack(Position position) { return uint64_t{position.slot} << 32 | position.unit; }

constexpr uint32_t UnitsOf(size_t bytes) {
  return static_cast<uint32_t>((bytes + kCaptureUnit - 1) / kCaptureUnit);
}
inline CaptureSlot& SlotAt(CaptureLogMemory& memory, uint32_t slot) {
  return memory.slots[slot % kCaptureSlots];
}
inline std::byte* UnitAt(CaptureLogMemory& memory, uint32_t unit) {
  return memory.ring + size_t{unit % kCaptureUnits} * kCaptureUnit;
}

}  // namespace capture_log

// The process's half.
class CaptureWriter {
 public:
  struct Room {
    uint32_t slot = 0;
    std::span<std::byte> bytes;
  };
  explicit CaptureWriter(CaptureLogMemory& memory) : memory_(memory) {}

  // Nothing while there is not so much room, or when the slot was revoked at once: look at Full(). Requires: bytes <= kMaxCapture.
  std::optional<Room> Reserve(size_t bytes);
  // Whether a reservation of so many bytes has to wait until rooms are given back.
  bool Full(size_t bytes) const;
  uint32_t room_word() const { return memory_.room.load(std::memory_order_acquire); }
  const void* room_address() const { return &memory_.room; }

  struct Entry {
    FileId file{};
    uint64_t number = 0;
    uint32_t skip = 0;           // bytes of the room
    uint32_t range_count = 0;    // WireRanges behind them
    uint32_t payload_bytes = 0;  // behind the ranges
    uint32_t crc = 0;            // as CaptureSlot::crc
  };
  // False: it was revoked, capture again. The room is left in every case.
  bool Commit(const Room& room, const Entry& entry);
  void Abandon(const Room& room);

 private:
  CaptureLogMemory& memory_;
};

}  // namespace pmirror
