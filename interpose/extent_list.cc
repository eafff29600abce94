// SPDX-License-Identifier: BSD-3-Clause
// Insertion keeps the list sorted; scans add in ascending order, so the usual case is an append.
#include "interpose/extent_list.h"

#include <algorithm>

namespace pmirror::interpose {

void ExtentList::Add(Extent extent) {
  if (extent.empty()) {
    return;
  }
  // The first entry that ends at or after the new one's start: everything before stays as it is.
  size_t first = count_;
  if (count_ != 0 && room_[count_ - 1].end() >= extent.offset) {
    first = static_cast<size_t>(
        std::partition_point(room_.begin(), room_.begin() + static_cast<ptrdiff_t>(count_),
                             [&](const Extent& e) { return e.end() < extent.offset; }) -
        room_.begin());
  }
  size_t last = first;  // past the entries that touch the new one
  uint64_t start = extent.offset;
  uint64_t end = extent.end();
  for (; last < count_ && room_[last].offset <= extent.end(); ++last) {
    start = std::min(start, room_[last].offset);
    end = std::max(end, room_[last].end());
  }
  const Extent joined{start, end - start};
  if (last > first) {
    room_[first] = joined;
    std::copy(room_.begin() + static_cast<ptrdiff_t>(last), room_.begin() + static_cast<ptrdiff_t>(count_),
              room_.begin() + static_cast<ptrdiff_t>(first + 1));
    count_ -= last - first - 1;
    return;
  }
  if (count_ == room_.size()) {
    MergeSmallGaps();
    Add(extent);
    return;
  }
  std::copy_backward(room_.begin() + static_cast<ptrdiff_t>(first),
                     room_.begin() + static_cast<ptrdiff_t>(count_),
                     room_.begin() + static_cast<ptrdiff_t>(count_ + 1));
  room_[first] = joined;
  ++count_;
}

// Frees at least one entry, and usually half of them: doubles the gap it is ready to send until enough
// neighbours joined.
void ExtentList::MergeSmallGaps() {
  for (uint64_t gap = kPageSize; count_ > room_.size() / 2; gap *= 2) {
    size_t kept = 0;
    for (size_t i = 1; i < count_; ++i) {
      if (gap == 0 ||
          room_[i].offset - room_[kept].end() <= gap) {  // gap 0: it has overflowed, everything joins
        room_[kept].length = room_[i].end() - room_[kept].offset;
      } else {
        room_[++kept] = room_[i];
      }
    }
    count_ = kept + 1;
    if (gap == 0) {
      return;
    }
  }
}

void ExtentList::ClipToSize(uint64_t size) {
  while (count_ > 0 && room_[count_ - 1].offset >= size) {
    --count_;
  }
  if (count_ > 0 && room_[count_ - 1].end() > size) {
    room_[count_ - 1].length = size - room_[count_ - 1].offset;
  }
}

}  // namespace pmirror::interpose
