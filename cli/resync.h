// SPDX-License-Identifier: BSD-3-Clause
// Asks the primary's daemon for a resync and follows it to its end.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "cli/target.h"

namespace pmirror::cli {

struct ResyncOrder {
  std::string volume;
  std::string node;   // of the replica; empty: every replica
  bool full = false;  // the whole tree and every file, also where the copy counts as in sync
};

// Blocks until the replicas are in sync, with a progress bar on standard error when that is a terminal. An error when one of them cannot be
// brought back by itself, and says why.
absl::Status Resync(const Endpoint& primary, const ResyncOrder& order);

}  // namespace pmirror::cli
