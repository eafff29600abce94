// SPDX-License-Identifier: BSD-3-Clause
// Says whether a replica's tree equals the primary's, without a false alarm while programs store to it. The
// argument is in docs/internals/verify.md.
// ---
// Trees are compared at one frozen point. Data are compared block by block beside live traffic; only what
// differs is looked at again, under a freeze, a bounded number of times (recovery/page_proof.h): its dirty
// bytes are sent first, and it counts as different only when an attempt proves it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "recovery/page_proof.h"
#include "recovery/tree_compare.h"
#include "recovery/tree_item.h"
#include "replication/types.h"

namespace pmirror::recovery {

// One copy as a whole.
class VerifySide : public ChecksumSource {
 public:
  virtual absl::StatusOr<recovery::Inventory> Inventory() = 0;
};

// The primary's power over its volume. Calls nest nowhere: Freeze, then the others, then Thaw.
class Freezer : public PendingStores {
 public:
  // From its return to Thaw() no change of the tree and no write through a handle passes, and every one
  // before has been applied by the replicas. Stores to mappings, and syncs of them, go on.
  virtual absl::Status Freeze() = 0;
  virtual void Thaw() = 0;
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

constexpr uint32_t kVerifyBlock = 64 << 10;     // of the first look, bytes
constexpr uint64_t kVerifyChunk = 64 << 20;     // one question
constexpr int kVerifyAttempts = 64;             // at one page
constexpr size_t kVerifyBlocksPerFreeze = 256;  // programs wait while the volume is frozen

// Blocks until done. Fails when a side cannot be read: then nothing is known. The volume is thawed when it
// returns.
absl::StatusOr<VerifyResult> Verify(VerifySide& original, VerifySide& copy, Freezer& freezer,
                                    const VerifyProgress& progress);

}  // namespace pmirror::recovery
