// SPDX-License-Identifier: BSD-3-Clause
// The replica that is being brought to what the primary has, as the one who does it sees it. Every call blocks, ends at a deadline of its
// own, and says in a sentence why it failed. Used by one thread.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "recovery/block_checksums.h"
#include "recovery/tree_item.h"
#include "replication/namespace_op.h"
#include "replication/types.h"

namespace pmirror::fs {

class ResyncPeer {
 public:
  virtual ~ResyncPeer() = default;

  // The operation of this mount up to which its tree is ours, when that is known and the log holds all behind it: then the trees need no
  // comparison.
  virtual std::optional<uint64_t> TreeAsOf() = 0;
  // The mount that its copy followed last; none when nothing of it counts: it is blank, or everything is to be compared.
  virtual std::optional<uint64_t> FollowedMount() = 0;
  virtual absl::Status Begin() = 0;
  virtual absl::StatusOr<recovery::Inventory> Inventory() = 0;
  virtual absl::Status ChangeTree(std::span<const NamespaceOp> operations) = 0;
  virtual absl::Status AdoptMount(uint64_t operation) = 0;
  // The daemon's session is connected anew, and every operation of the log so far is applied.
  virtual absl::Status Connect() = 0;
  // Every operation of the log so far is applied.
  virtual absl::Status DeliverAll() = 0;
  virtual absl::StatusOr<recovery::BlockChecksums> Checksums(FileId file, Extent extent, uint32_t block) = 0;
  virtual absl::Status End() = 0;
  // False: it has been silent for the volume's deadline since Connect(). Then a call that waits for it has ended with an error.
  virtual bool Alive() = 0;
  // True: give up, the volume is being left or the replica was cut off.
  virtual bool GivenUp() = 0;
};

}  // namespace pmirror::fs
