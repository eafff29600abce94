// SPDX-License-Identifier: BSD-3-Clause
// The page(s) through which the daemon tells every process of the node what a volume's state is. Written by the daemon only; processes
// map it read-only (the memfd is sealed with F_SEAL_FUTURE_WRITE). Every field is read with one atomic load: no locks, async-signal-safe.
#pragma once

#include <atomic>
#include <cstdint>

#include "replication/types.h"

namespace pmirror {

// What a sync does when the in-sync set cannot be reached within the deadline (promise P6).
enum class OnLoss : uint32_t { kSuspend = 1, kFail = 2, kProceed = 3 };

enum class VolumeState : uint32_t {
  kServing = 1,
  kFenced = 2,   // a successor exists or may exist: every sync fails
  kClosing = 3,  // the daemon is shutting down cleanly
};

// Who has to receive a capture: packed so that one load is consistent.
// bits 0..7 in-sync members, 8..15 announced joiners, 16..23 replicas that trail (RPO > 0), 24..63 set version.
struct SetWord {
  uint64_t raw = 0;
  uint8_t members() const { return static_cast<uint8_t>(raw); }
  uint8_t joiners() const { return static_cast<uint8_t>(raw >> 8); }
  uint8_t trailing() const { return static_cast<uint8_t>(raw >> 16); }
  SetVersion version() const { return SetVersion{raw >> 24}; }
  // Those who are sent what is synced.
  uint8_t sent_to() const { return members() | joiners(); }
  static SetWord Make(uint8_t members, uint8_t joiners, SetVersion version, uint8_t trailing = 0) {
    return {uint64_t{members} | uint64_t{joiners} << 8 | uint64_t{trailing} << 16 | Raw(version) << 24};
  }
};

// What a sync does when a replica that trails is older than its RPO (docs/internals/rpo.md).
enum class OnLag : uint32_t { kThrottle = 1, kProceed = 2 };

// The RPO of one replica. What is not limited is 0 (time) or UINT64_MAX.
struct TrailLimits {
  uint64_t rpo_ns;  // fixed while mounted, as on_lag
  uint32_t on_lag;  // OnLag
  uint32_t reserved;
  std::atomic<uint64_t> bytes;  // CaptureClock::bytes may not be beyond this
  std::atomic<uint64_t> syncs;  // likewise
};
static_assert(sizeof(TrailLimits) == 32);

// FileSlot::flags
constexpr uint32_t kFileShared =
    1;  // more than one process maps the file for writing: a sync must ask the daemon (trap 4)
constexpr uint32_t kFileDaemonDirty =
    2;  // the daemon holds dirty ranges of it (a mapper left or died): likewise

struct FileSlot {
  std::atomic<uint64_t> file;             // FileId, kNone when the slot is free
  std::atomic<uint64_t> size_generation;  // odd while a size operation is under way
  std::atomic<uint64_t> size;   // bytes; may be older than the file for the moment of a size operation
  std::atomic<uint32_t> flags;  // kFile*
  uint32_t reserved;
};
static_assert(sizeof(FileSlot) == 32);

constexpr uint32_t kVolumePageMagic = 0x47505650;  // "PVPG"
constexpr size_t kMaxFileSlots = 65536;            // files mapped or open at the same time in one volume

constexpr size_t kReplicaNameBytes = 64;

struct VolumePage {
  uint32_t magic;
  uint32_t version;  // 1
  std::atomic<uint64_t> epoch;
  std::atomic<uint64_t> set;        // SetWord::raw; also a futex word (low half) for waits on a change
  std::atomic<uint32_t> state;      // VolumeState
  std::atomic<uint32_t> congested;  // bit a replica: it asks for patience
  uint32_t on_loss;                 // OnLoss, fixed while mounted
  std::atomic<uint32_t>
      configured;  // bit a replica that the volume has: a place once given to a node is never another's in this mount
  uint64_t deadline_ns;  // a blip shorter than this changes no state
  uint64_t suspend_ns;   // kSuspend waits this much longer, then fails
  uint32_t domain;       // Domain of the local backing directory (persistence.h)
  uint32_t tracking;     // Tracking proven for the backing file system (tracker.h)
  std::atomic<uint32_t>
      unproven;  // bit a replica: a member whose copy has not been found good in this mount yet
  std::atomic<uint32_t> trail_acks;  // futex word: counted up when a replica that trails has caught up some
  std::atomic<uint32_t> trails;      // bit a replica: it trails while it is well
  // Bit a replica: without it no sync succeeds unless the policy is kProceed. Of those that are configured all but who are filled for the first
  // time.
  std::atomic<uint32_t> required;
  // Number of the last cut, twice; and 1 while another is announced (docs/internals/rpo.md).
  std::atomic<uint64_t> cut;
  TrailLimits trail[kMaxReplicas];
  std::byte padding[4096 - 88 - kMaxReplicas * (sizeof(TrailLimits) + kReplicaNameBytes)];
  // Of nodes, NUL-terminated, cut where they are longer; written before the bit in `configured`.
  char replica_names[kMaxReplicas][kReplicaNameBytes];
  FileSlot slots[kMaxFileSlots];
};
static_assert(offsetof(VolumePage, slots) == 4096);

inline SetWord LoadSet(const VolumePage& page) { return {page.set.load(std::memory_order_acquire)}; }

// Whether a sync that every member and joiner of `set` has may succeed (docs/internals/resync.md): under kProceed always, else only when no
// required replica is missing among the members and those that trail.
inline bool MaySucceed(const VolumePage& page, SetWord set) {
  return page.on_loss == static_cast<uint32_t>(OnLoss::kProceed) ||
         (page.required.load(std::memory_order_acquire) & ~uint32_t{set.members()} &
          ~uint32_t{set.trailing()}) == 0;
}

// For whoever makes a page: the volume has the replicas 0 to count - 1.
inline void ConfigureReplicas(VolumePage& page, size_t count) {
  page.configured.store((1U << count) - 1);
  page.required.store((1U << count) - 1);
}

}  // namespace pmirror
