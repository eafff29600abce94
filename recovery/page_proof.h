// SPDX-License-Identifier: BSD-3-Clause
// Says of a range that looked different in two copies whether it is, although programs go on storing to it. The argument is in
// docs/internals/verify.md.
// ---
// The proof of one attempt reads, in this order: the original, "not dirty", the copy, the original again. When both readings of the
// original are equal and at a moment between them nothing of the page was on its way, then the copy must have held the same bytes at that
// moment, and no store has come since: a copy that differs is wrong.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "recovery/block_checksums.h"
#include "replication/types.h"

namespace pmirror::recovery {

// The bytes of one copy: the backing directory of this node, or a replica behind the control protocol.
class ChecksumSource {
 public:
  virtual ~ChecksumSource() = default;
  // kNotFound when there is no regular file of that id any more.
  virtual absl::StatusOr<BlockChecksums> Checksums(FileId file, Extent extent, uint32_t block) = 0;
};

// What was stored to the original and has not been applied by the copy.
class PendingStores {
 public:
  virtual ~PendingStores() = default;
  // Sends what of the range is stored and not acknowledged, by any process; returns when the copy has applied it.
  virtual absl::Status Flush(FileId file, Extent extent) = 0;
  // For each range: true unless it is certain that at some moment during this call every store to it, and every change of the tree, had been
  // applied by the copy.
  virtual absl::StatusOr<std::vector<bool>> Dirty(FileId file, std::span<const Extent> ranges) = 0;
};

// The blocks of `extent` whose sums are not the same, each by itself; a sum that one side does not have is a difference.
std::vector<Extent> BlocksThatDiffer(const BlockChecksums& left, const BlockChecksums& right, Extent extent,
                                     uint32_t block);

constexpr uint32_t kVerifyPage = 4 << 10;  // of what is reported, bytes
constexpr int kVerifyProofs = 2;  // that it takes: a page stored to and restored in between would fool one

struct SettledRange {
  std::vector<Extent>
      different;  // proven; whole pages but for the last one of the range, in order, neighbours apart
  std::vector<Extent> busy;  // stored to during every attempt: neither equal nor different
  bool missing = false;      // the copy has no such file
};

// Blocks until every page of the range is equal, proven different, or looked at so many times. A file that the original has not any
// more has no differences. Fails when a side cannot be read or flushed: then nothing is known.
absl::StatusOr<SettledRange> SettleRange(ChecksumSource& original, ChecksumSource& copy,
                                         PendingStores& pending, FileId file, Extent extent, int attempts);

}  // namespace pmirror::recovery
