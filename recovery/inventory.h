// SPDX-License-Identifier: BSD-3-Clause
// Walks the tree of a backing directory. Blocks for as long as the tree is large; opens one descriptor a
// level of depth.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "recovery/tree_item.h"

namespace pmirror::recovery {

// The xattr by which a backing object knows its id (docs/internals/architecture.md), and the prefix of all of
// pmirror's own.
constexpr char kIdXattr[] = "trusted.pmirror.id";
constexpr char kOwnXattrPrefix[] = "trusted.pmirror.";
constexpr char kOwnDirectory[] = ".pmirror";  // in the root; no part of the volume
constexpr char kOrphansPath[] = ".pmirror/orphans";

// Everything below the directory `root_fd` (not consumed), without kOwnDirectory, of which kFull lists the
// orphans. Each item is as it is when the walk comes by; the whole is one state only while nobody changes the
// tree. An object that vanishes meanwhile is left out. Fails with the errno of what could not be read, and its
// path.
absl::StatusOr<Inventory> TakeInventory(int root_fd, InventoryDetail detail = InventoryDetail::kCompare);

// The id of an open object, kNone when it carries none or one of a foreign form.
FileId IdOf(int fd);

}  // namespace pmirror::recovery
