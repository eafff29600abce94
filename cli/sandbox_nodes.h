// SPDX-License-Identifier: BSD-3-Clause
// The daemons of a sandbox: starting, waiting for, and ending them.
#pragma once

#include <sys/types.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cli/sandbox_plan.h"

namespace pmirror::cli {

// The daemon's own word on the node's configuration file, before anything is started.
absl::Status CheckConfig(const SandboxNode& node);

// Starts the node's daemon, as a child of this process.
absl::StatusOr<pid_t> StartNode(const Sandbox& sandbox, const SandboxNode& node);

// Requires: node.pid is a child of this process. Errors show the end of the daemon's log.
absl::Status WaitUntilItAnswers(const SandboxNode& node);

// Until every replica of every volume is in sync, by the word of the primaries.
absl::Status WaitUntilInSync(const Sandbox& sandbox);

// SIGKILL of every process of the node: its daemon, what has its marker, and what is in its namespace.
absl::Status KillNode(const Sandbox& sandbox, const SandboxNode& node);

}  // namespace pmirror::cli
