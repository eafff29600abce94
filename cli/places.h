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

// Whether they are words as "DIR" for every node or "NODE=DIR" for one of `nodes`. kInvalidArgument names the one that is not.
absl::Status CheckPlaces(const std::vector<std::string>& words, const std::vector<std::string>& nodes);

// `backing`, `mount`: words that CheckPlaces found good; what is said of one node wins. kInvalidArgument names the option that is missing.
absl::StatusOr<Places> PlacesOf(const std::optional<Sandbox>& sandbox, const SandboxVolume& volume,
                                const std::string& node, const std::vector<std::string>& backing,
                                const std::vector<std::string>& mount);

}  // namespace pmirror::cli
