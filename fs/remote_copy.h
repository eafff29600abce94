// SPDX-License-Identifier: BSD-3-Clause
// The control protocol's part of a resync: asks that node's daemon to change its copy. Used by one thread.
#pragma once

#include <string>

#include "fs/remote_tree.h"
#include "fs/resync_peer.h"
#include "proto/control_client.h"

namespace pmirror::fs {

class RemoteCopy : public ResyncPeer {
 public:
  struct Terms {
    Uuid volume{};
    std::string primary_node;
    Epoch epoch{};
    uint64_t mount_number = 0;
    uint64_t generation = 0;
  };
  // `client` must outlive it.
  RemoteCopy(proto::ControlClient& client, const Terms& terms);

  absl::Status Begin() override;
  absl::StatusOr<recovery::Inventory> Inventory() override;
  absl::Status ChangeTree(std::span<const NamespaceOp> operations) override;
  absl::Status AdoptMount(uint64_t operation) override;
  absl::StatusOr<recovery::BlockChecksums> Checksums(FileId file, Extent extent, uint32_t block) override;
  absl::Status End() override;

 private:
  proto::ControlClient& client_;
  const Terms terms_;
  RemoteTree tree_;
  RemoteTree checksums_;
  uint64_t token_ = 0;
};

}  // namespace pmirror::fs
