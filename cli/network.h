// SPDX-License-Identifier: BSD-3-Clause
// The network of a sandbox with namespaces: one namespace a node, joined by bridges in a namespace of its
// own, so that nothing of it shows in the host's. Uses the tools ip and nft.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "cli/sandbox_plan.h"

namespace pmirror::cli {

// Makes namespaces, bridges, links and addresses. After an error RemoveNetwork() removes what was made.
absl::Status MakeNetwork(const Sandbox& sandbox);

// Removes every namespace of the sandbox, whether MakeNetwork had finished or not, and with them all links.
// Processes in them must be gone.
absl::Status RemoveNetwork(const Sandbox& sandbox);

// Drops, silently, everything that arrives at one node from the other; both directions. Idempotent.
absl::Status CutNetwork(const SandboxNode& a, const SandboxNode& b);
absl::Status HealNetwork(const SandboxNode& a, const SandboxNode& b);

// The rules for nft that make `node` deaf to `other`. For tests of the text.
std::string DeafRules(const SandboxNode& other);

}  // namespace pmirror::cli
