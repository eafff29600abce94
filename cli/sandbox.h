// SPDX-License-Identifier: BSD-3-Clause
// The test bed: a whole cluster on this host, one daemon a node. Makes, kills, starts, cuts and removes.
// Needs root.
//
// Everything a sandbox leaves on the host can be found again from its directory alone: processes by a marker
// in their environment and by their network namespace, mounts by their path, namespaces and backing
// directories by a name made from the directory. So Down() also removes what a command that was killed in its
// middle had made.
#pragma once

#include <filesystem>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cli/sandbox_plan.h"

namespace pmirror::cli {

// Makes one and waits until all replicas are in sync. After an error nothing is left of it.
absl::StatusOr<Sandbox> SandboxUp(const SandboxOptions& options);

// SIGKILL of the node's daemon and of every process that runs on the node, then its dead mounts are detached.
// Idempotent.
absl::Status SandboxKill(const std::filesystem::path& directory, const std::string& node);

// Starts the daemon of a node that was killed, and waits until it answers.
absl::Status SandboxStart(const std::filesystem::path& directory, const std::string& node);

// Cuts or mends the network between two nodes.
absl::Status SandboxSetReachable(const std::filesystem::path& directory, const std::string& a,
                                 const std::string& b, bool reachable);

// Removes everything; `keep`: but the nodes' directories (backing directories, logs). Idempotent.
absl::Status SandboxDown(const std::filesystem::path& directory, bool keep);

}  // namespace pmirror::cli
