// SPDX-License-Identifier: BSD-3-Clause
// A set of ranges of one file, merged where they touch. Unbounded. Not thread-safe.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <utility>
#include <vector>

namespace pmirror::server {

class RangeSet {
 public:
  void Add(uint64_t begin, uint64_t end) {
    auto at = ranges_.upper_bound(begin);
    if (at != ranges_.begin() && std::prev(at)->second >= begin) {
      --at;
      begin = at->first;
    }
    while (at != ranges_.end() && at->first <= end) {
      end = std::max(end, at->second);
      at = ranges_.erase(at);
    }
    ranges_.emplace_hint(at, begin, end);
  }

  // What of [begin, end) is not in the set: (begin, end) in rising order.
  std::vector<std::pair<uint64_t, uint64_t>> Missing(uint64_t begin, uint64_t end) const {
    std::vector<std::pair<uint64_t, uint64_t>> missing;
    auto at = ranges_.upper_bound(begin);
    if (at != ranges_.begin()) {
      begin = std::max(begin, std::prev(at)->second);
    }
    for (; begin < end && at != ranges_.end() && at->first < end; ++at) {
      missing.emplace_back(begin, at->first);
      begin = at->second;
    }
    if (begin < end) {
      missing.emplace_back(begin, end);
    }
    return missing;
  }

 private:
  std::map<uint64_t, uint64_t> ranges_;  // begin -> end, disjoint and not touching
};

}  // namespace pmirror::server
