// SPDX-License-Identifier: BSD-3-Clause
// The two things the command line tool needs of a node's configuration file: where the daemon of this host
// listens for it and for programs. All else in the file, and what is wrong with it, is the daemon's business
// (`pmirrord --check`).
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace pmirror::cli {

constexpr char kDefaultConfig[] = "/etc/pmirror/pmirrord.toml";

struct NodeConfig {
  std::string control;  // "unix:/path"
  std::string socket;   // path
};

absl::StatusOr<NodeConfig> ReadNodeConfig(const std::string& file);
absl::StatusOr<NodeConfig> ParseNodeConfig(const std::string& text, const std::string& file);

}  // namespace pmirror::cli
