// SPDX-License-Identifier: BSD-3-Clause
// Says whether a replica's tree equals the primary's, without a false alarm while programs store to it. The
// argument is in docs/internals/verify.md.
// ---
// Trees are compared at one frozen point. Data are compared block by block beside live traffic; only what
// differs is looked at again, under a freeze, a bounded number of times: its dirty bytes are sent first, and
// it counts as different only when an attempt proves it. The proof of one attempt reads, in this order: the
// original, "not dirty", the copy, the original again. When both readings of the original are equal and at a
// moment between them nothing of the block was unacknowledged, then the copy must have held the same bytes at
// that moment, and no store has come since: a copy that differs is wrong.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "recovery/block_checksums.h"
#include "recovery/tree_compare.h"
#include "recovery/tree_item.h"
#include "replication/types.h"

namespace pmirror::recovery {

// One copy: the backing directory of this node, or a replica behind the control protocol.
class VerifySide {
 public:
  virtual ~VerifySide() = default;
  virtual absl::StatusOr<recovery::Inventory> Inventory() = 0;
  // kNotFound when there is no regular file of that id any more.
  virtual absl::StatusOr<BlockChecksums> Checksums(FileId file, Extent extent, uint32_t block) = 0;
};

// The primary's power over its volume. Calls nest nowhere: Freeze, then the others, then Thaw.
class Freezer {
 public:
  virtual ~Freezer() = default;
  // From its return to Thaw() no change of the tree and no write through a handle passes, and every one
  // before has been applied by the replicas. Stores to mappings, and syncs of them, go on.
  virtual absl::Status Freeze() = 0;
  virtual void Thaw() = 0;
  // Sends what of the range is stored and not acknowledged, by any process; returns when the replicas have
  // applied it.
  virtual absl::Status Flush(FileId file, Extent extent) = 0;
  // True unless it is certain that at some moment during this call every store to the range had been applied
  // by the replicas.
  virtual absl::StatusOr<bool> Dirty(FileId file, Extent extent) = 0;
};

struct VerifyResult {
  std::vector<Difference> differences;  // empty: the copy equals the original
  std::vector<Difference>
      busy;            // data that programs stored to during every attempt: neither equal nor different
  uint64_t files = 0;  // whose data were compared
  uint64_t bytes = 0;
};

// Called now and then, from the verifying thread; false gives up (kCancelled).
using VerifyProgress = std::function<bool(const char* phase, uint64_t done, uint64_t total)>;

constexpr uint32_t kVerifyBlock = 64 << 10;  // of the first look, bytes
constexpr uint32_t kVerifyPage = 4 << 10;    // of what is reported
constexpr uint64_t kVerifyChunk = 64 << 20;  // one question
constexpr int kVerifyAttempts = 64;          // at one page
constexpr int kVerifyProofs = 2;  // that it takes: a page stored to and restored in between would fool one
constexpr size_t kVerifyBlocksPerFreeze = 256;  // programs wait while the volume is frozen

// Blocks until done. Fails when a side cannot be read: then nothing is known. The volume is thawed when it
// returns.
absl::StatusOr<VerifyResult> Verify(VerifySide& original, VerifySide& copy, Freezer& freezer,
                                    const VerifyProgress& progress);

}  // namespace pmirror::recovery
