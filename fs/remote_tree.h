// SPDX-License-Identifier: BSD-3-Clause
// A replica's copy as one side of a comparison: asks that node's control service.
#pragma once

#include <chrono>
#include <string>

#include "proto/control_client.h"
#include "recovery/verifier.h"

namespace pmirror::fs {

class RemoteTree : public recovery::VerifySide {
 public:
  // `client` must outlive it. `timeout`: of one call; an inventory of a large tree takes long. `detail`: of
  // its inventories.
  RemoteTree(proto::ControlClient& client, const Uuid& volume, std::chrono::milliseconds timeout,
             recovery::InventoryDetail detail = recovery::InventoryDetail::kCompare);

  absl::StatusOr<recovery::Inventory> Inventory() override;
  absl::StatusOr<recovery::BlockChecksums> Checksums(FileId file, Extent extent, uint32_t block) override;

 private:
  proto::ControlClient& client_;
  const std::string volume_;  // 16 bytes
  const std::chrono::milliseconds timeout_;
  const recovery::InventoryDetail detail_;
};

}  // namespace pmirror::fs
