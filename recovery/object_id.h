// SPDX-License-Identifier: BSD-3-Clause
// How the id of an object is made: `mount number << 40 | counter` (docs/internals/architecture.md).
#pragma once

#include "replication/types.h"

namespace pmirror::recovery {

constexpr int kMountShift = 40;

// `counter`: from 1, of the objects that the mount makes.
constexpr FileId ObjectId(uint64_t mount, uint64_t counter) { return FileId{mount << kMountShift | counter}; }
// The mount in which it was made.
constexpr uint64_t MountOf(FileId id) { return Raw(id) >> kMountShift; }

}  // namespace pmirror::recovery
