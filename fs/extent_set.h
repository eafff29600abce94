// SPDX-License-Identifier: BSD-3-Clause
// A set of bytes of one file, as disjoint extents. Not thread-safe; allocates (daemon only).
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "replication/types.h"

namespace pmirror::fs {

class ExtentSet {
 public:
  void Add(Extent extent);
  void Add(const ExtentSet& other);
  void Remove(Extent extent);
  void Clear() { ends_.clear(); }

  bool empty() const { return ends_.empty(); }
  bool Overlaps(Extent extent) const;
  uint64_t bytes() const;
  size_t extent_count() const { return ends_.size(); }
  // Sorted, disjoint, not adjacent.
  std::vector<Extent> extents() const;
  // The part of the set inside `extent`.
  ExtentSet Within(Extent extent) const;

 private:
  std::map<uint64_t, uint64_t> ends_;  // offset -> end
};

}  // namespace pmirror::fs
