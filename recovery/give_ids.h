// SPDX-License-Identifier: BSD-3-Clause
// Makes objects that pmirror did not make objects of a volume.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace pmirror::recovery {

// Gives an id, of the mount before the first, to everything below the directory `root_fd` (not consumed) that has none; answers how many that were.
// Nobody else may change the tree meanwhile. After an error, which names the path, some have theirs: it may be called again. kFailedPrecondition: something
// in it belongs to another volume.
absl::StatusOr<uint64_t> GiveIds(int root_fd);

}  // namespace pmirror::recovery
