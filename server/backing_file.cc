// SPDX-License-Identifier: BSD-3-Clause
// Allocated ranges and the mapping of a backing file. See backing_file.h.
#include "server/backing_file.h"

#include <libpmem.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <utility>

namespace pmirror::server {
namespace {

// Address space is plenty; mapping again for each append is not cheap.
constexpr uint64_t kLeastMapping = uint64_t{64} << 20;

}  // namespace

bool AllocatedRanges::Contains(uint64_t begin, uint64_t end) const {
  auto after = ranges_.upper_bound(begin);
  return after != ranges_.begin() && std::prev(after)->second >= end;
}

void AllocatedRanges::Add(uint64_t begin, uint64_t end) {
  auto at = ranges_.upper_bound(begin);
  if (at != ranges_.begin() && std::prev(at)->second >= begin) {
    --at;
  }
  while (at != ranges_.end() && at->first <= end) {
    begin = std::min(begin, at->first);
    end = std::max(end, at->second);
    at = ranges_.erase(at);
  }
  if (ranges_.size() >= kMaxRanges) {
    ranges_.clear();
  }
  ranges_.emplace(begin, end);
}

int FileMapping::Cover(int fd, uint64_t end) {
  if (base_ != nullptr && end <= length_) {
    return 0;
  }
  Unmap();
  const uint64_t length =
      std::max(kLeastMapping, (end * 2 + kLeastMapping - 1) / kLeastMapping * kLeastMapping);
  bool durable_by_flush = true;
  void* base = ::mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED_VALIDATE | MAP_SYNC, fd, 0);
  if (base == MAP_FAILED) {
    base = ::mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) {
      return errno;
    }
    durable_by_flush = ::pmem_is_pmem(base, kPageSize) != 0;  // PMEM_IS_PMEM_FORCE, as for programs
  }
  base_ = static_cast<std::byte*>(base);
  length_ = length;
  is_pmem_ = durable_by_flush;
  return 0;
}

void FileMapping::Unmap() {
  if (base_ != nullptr) {
    ::munmap(std::exchange(base_, nullptr), std::exchange(length_, 0));
  }
}

}  // namespace pmirror::server
