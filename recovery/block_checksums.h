// SPDX-License-Identifier: BSD-3-Clause
// A sum of each block of a file's range: what two copies are compared by without moving their bytes. 128 bits, so that blocks with equal sums may
// be taken for equal (nobody is assumed to look for two that collide).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "replication/types.h"

namespace pmirror::recovery {

constexpr uint32_t kMaxChecksumBlock = 1 << 20;  // bytes
constexpr size_t kMaxChecksumBlocks = 64 << 10;  // in one answer: fits a control message

struct BlockSum {
  uint64_t high = 0;
  uint64_t low = 0;
  friend bool operator==(const BlockSum&, const BlockSum&) = default;
};

// XXH3's 128 bits, which are the same on every machine and in every version.
BlockSum SumOf(std::span<const std::byte> bytes);

struct BlockChecksums {
  std::vector<BlockSum> sums;  // of each block; the last one may be cut by the end of the range or of the
                               // file; none beyond the end
  uint64_t size = 0;           // of the file, bytes
};

// Reads `extent` of `fd` in blocks of `block` bytes. Holes are not read: they count as the zeros that they
// are. kInvalidArgument when `block` is 0 or larger than kMaxChecksumBlock, or there would be more than
// kMaxChecksumBlocks. A store meanwhile is seen or not, block by block.
absl::StatusOr<BlockChecksums> ChecksumBlocks(int fd, Extent extent, uint32_t block);

}  // namespace pmirror::recovery
