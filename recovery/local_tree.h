// SPDX-License-Identifier: BSD-3-Clause
// A backing directory of this node as one side of a comparison.
#pragma once

#include <map>
#include <string>

#include "recovery/verifier.h"
#include "replication/unique_fd.h"

namespace pmirror::recovery {

// Finds a file by the path that the last walk saw it under, and walks again when it is not there. Not
// thread-safe.
class LocalTree : public VerifySide {
 public:
  // `root`: descriptor of the backing directory. `detail`: of its inventories.
  explicit LocalTree(UniqueFd root, InventoryDetail detail = InventoryDetail::kCompare)
      : root_(std::move(root)), detail_(detail) {}

  absl::StatusOr<recovery::Inventory> Inventory() override;
  absl::StatusOr<BlockChecksums> Checksums(FileId file, Extent extent, uint32_t block) override;
  // The file where the last walk saw it, open for reading; an invalid descriptor when it is not there any more.
  UniqueFd OpenKnown(FileId file) const;
  // The last walk saw it.
  bool Knows(FileId file) const { return paths_.contains(file); }

 private:
  absl::StatusOr<UniqueFd> Open(FileId file);

  UniqueFd root_;
  const InventoryDetail detail_;
  std::map<FileId, std::string> paths_;  // of regular files
};

}  // namespace pmirror::recovery
