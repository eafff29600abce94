// SPDX-License-Identifier: BSD-3-Clause
// Takes a copy back to the consistency point that its undo log leads to (undo_log.h): tree, attributes, times and bytes.
//
// It is the same from any state between, also from one that a crash left in its middle: call it again.
#pragma once

#include <cstdint>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "recovery/log_storage.h"
#include "server/undo_format.h"

namespace pmirror::server {

struct RolledBack {
  UndoPoint point;
  uint64_t operations = 0;    // of the tree
  uint64_t bytes = 0;         // of files
  uint64_t brought_back = 0;  // files that had been removed
};

// Where the log leads, and that all of it can be read. `id`: of the log. Changes nothing. kNotFound: there is no log; kDataLoss: it is
// damaged, naming it.
absl::StatusOr<UndoPoint> ReadUndoLog(const std::string& backing, uint64_t& id,
                                      recovery::LogStorage& storage = recovery::LogStorage::Real());

// Durable when it returns OK. The log stays: the caller records first that the copy is whole, and then removes it (RemoveUndoLog). Requires:
// nobody else uses the directory. kNotFound and kDataLoss as above: nothing was changed; kFailedPrecondition: an object without an id is in
// the way, naming it. `before_step`: called before each change; an error ends it there (tests).
absl::StatusOr<RolledBack> RollBack(
    const std::string& backing, recovery::LogStorage& storage = recovery::LogStorage::Real(),
    absl::FunctionRef<absl::Status()> before_step = [] { return absl::OkStatus(); });

}  // namespace pmirror::server
