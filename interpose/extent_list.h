// SPDX-License-Identifier: BSD-3-Clause
// The ranges of one file that a sync has to send: sorted, not overlapping, not touching, in memory that the
// caller lends. When the memory is full the neighbours with the smallest gap between them become one: that
// sends bytes that were not dirty, which is legal (they are captured under the same order number as the
// rest), and never forgets any. Plain value semantics, no allocation, async-signal-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "replication/types.h"

namespace pmirror::interpose {

class ExtentList {
 public:
  // Requires: room.size() >= 2.
  explicit ExtentList(std::span<Extent> room) : room_(room) {}

  void Add(Extent extent);
  void Clear() { count_ = 0; }
  // Drops everything at and after `size`.
  void ClipToSize(uint64_t size);

  bool empty() const { return count_ == 0; }
  std::span<const Extent> extents() const { return room_.first(count_); }
  // From the first byte to the last; empty when the list is.
  Extent hull() const {
    return empty() ? Extent{} : Extent{room_[0].offset, room_[count_ - 1].end() - room_[0].offset};
  }

 private:
  void MergeSmallGaps();

  std::span<Extent> room_;
  size_t count_ = 0;
};

}  // namespace pmirror::interpose
