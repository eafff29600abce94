// SPDX-License-Identifier: BSD-3-Clause
// Where a node has its copy of a volume: as the person says, or as a sandbox has it. Pure.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/sandbox_plan.h"

namespace pmirror::cli {

struct Places {
  std::string backing;
  std::string mount;
};

// `backing`, `mount`: words as "DIR" for every node or "NODE=DIR" for one, which wins. kInvalidArgument names the option that is missing.
absl::StatusOr<Places> PlacesOf(const std::optional<Sandbox>& sandbox, const SandboxVolume& volume,
                                const std::string& node, const std::vector<std::string>& backing,
                                const std::vector<std::string>& mount);

}  // namespace pmirror::cli
