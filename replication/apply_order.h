// SPDX-License-Identifier: BSD-3-Clause
// What of a data frame a replica applies to one file (docs/internals/architecture.md "Order numbers and size
// generations"): per range the newest order number that was applied, so that a frame that comes late does not
// undo a newer one. No I/O, no locks: the caller serialises the calls for one file, and holds its lock from
// Plan() over the writing to Record().
//
// Invariants:
//   - I1: entries are sorted by offset, do not overlap, are not empty, and neighbours that touch differ in
//     their number
//   - I2: no byte outside the entries was written with a number above `floor`
//   - I3: at most max_entries entries
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "replication/frame.h"

namespace pmirror {

// A part of a frame that is to be written: `length` bytes at `offset` of the file, which stand at
// `payload_offset` of the payload.
struct ApplyPiece {
  uint64_t offset = 0;
  uint64_t length = 0;
  uint64_t payload_offset = 0;
  friend bool operator==(const ApplyPiece&, const ApplyPiece&) = default;
};

class ApplyOrder {
 public:
  static constexpr size_t kMaxEntries = 1024;

  explicit ApplyOrder(size_t max_entries = kMaxEntries) : max_entries_(max_entries) {}

  enum class Verdict { kApply, kRecapture, kWaitForOperation };
  // The table of size generations. `applied_operation`: the highest operation number that the volume has
  // applied.
  Verdict Judge(uint64_t size_generation, uint64_t applied_operation) const;

  // Appends to `pieces` what of `ranges` is to be written for a capture numbered `number`; nothing when all
  // of it is older than what is there. False, and `pieces` as before, when that cannot be told any more for
  // some byte: the sender captures again. A number that is there already is applied again: frames of one
  // capture come from one session, in order.
  bool Plan(uint64_t number, std::span<const WireRange> ranges, std::vector<ApplyPiece>& pieces) const;

  // The newest number that was applied to any byte of `ranges`, as far as that is known: for bytes outside the
  // entries the floor, which their number is not above.
  uint64_t Newest(std::span<const WireRange> ranges) const;

  // Plan() said true and its pieces were written.
  void Record(uint64_t number, std::span<const WireRange> ranges);

  // A size operation was applied. It empties the map: frames that were captured before it are refused by
  // Judge().
  void SizeChanged(uint64_t operation);

  // Gives the memory of the entries back; older frames are answered with recapture from now on.
  void Compact();

  size_t entries() const { return entries_.size(); }
  uint64_t floor() const { return floor_; }

 private:
  struct Entry {
    uint64_t begin;
    uint64_t end;
    uint64_t number;
  };
  using Entries = std::vector<Entry>;

  Entries::const_iterator FirstEndingAfter(uint64_t offset) const;
  bool PlanOne(uint64_t number, const WireRange& range, uint64_t payload_offset,
               std::vector<ApplyPiece>& pieces, size_t first) const;
  void RecordAscending(uint64_t number, std::span<const WireRange> ranges);
  void Append(Entry entry);
  void MakeRoom();

  size_t max_entries_;
  uint64_t size_operation_ = 0;
  uint64_t floor_ = 0;
  Entries entries_;
  Entries scratch_;  // of RecordAscending, kept for its memory
};

}  // namespace pmirror
