// SPDX-License-Identifier: BSD-3-Clause
#include "fs/extent_set.h"

#include <algorithm>
#include <iterator>

namespace pmirror::fs {

void ExtentSet::Add(Extent extent) {
  if (extent.empty()) {
    return;
  }
  uint64_t begin = extent.offset;
  uint64_t end = extent.end();
  auto it = ends_.upper_bound(begin);
  if (it != ends_.begin() && std::prev(it)->second >= begin) {
    --it;
  }
  while (it != ends_.end() && it->first <= end) {  // swallow everything that touches
    begin = std::min(begin, it->first);
    end = std::max(end, it->second);
    it = ends_.erase(it);
  }
  ends_.emplace(begin, end);
}

void ExtentSet::Add(const ExtentSet& other) {
  for (const auto& [begin, end] : other.ends_) {
    Add({begin, end - begin});
  }
}

void ExtentSet::Remove(Extent extent) {
  if (extent.empty()) {
    return;
  }
  auto it = ends_.upper_bound(extent.offset);
  if (it != ends_.begin()) {
    --it;
  }
  while (it != ends_.end() && it->first < extent.end()) {
    const auto [begin, end] = *it;
    if (end <= extent.offset) {
      ++it;
      continue;
    }
    it = ends_.erase(it);
    if (begin < extent.offset) {
      ends_.emplace(begin, extent.offset);
    }
    if (end > extent.end()) {
      ends_.emplace(extent.end(), end);
      break;
    }
  }
}

bool ExtentSet::Overlaps(Extent extent) const { return !Within(extent).empty(); }

uint64_t ExtentSet::bytes() const {
  uint64_t sum = 0;
  for (const auto& [begin, end] : ends_) {
    sum += end - begin;
  }
  return sum;
}

std::vector<Extent> ExtentSet::extents() const {
  std::vector<Extent> result;
  result.reserve(ends_.size());
  for (const auto& [begin, end] : ends_) {
    result.push_back({begin, end - begin});
  }
  return result;
}

ExtentSet ExtentSet::Within(Extent extent) const {
  ExtentSet result;
  auto it = ends_.upper_bound(extent.offset);
  if (it != ends_.begin()) {
    --it;
  }
  for (; it != ends_.end() && it->first < extent.end(); ++it) {
    const uint64_t begin = std::max(it->first, extent.offset);
    const uint64_t end = std::min(it->second, extent.end());
    if (begin < end) {
      result.Add({begin, end - begin});
    }
  }
  return result;
}

}  // namespace pmirror::fs
