// SPDX-License-Identifier: BSD-3-Clause
// Two keys of a TOML file.
#include "cli/node_config.h"

#define TOML_EXCEPTIONS 0
#define TOML_HEADER_ONLY 1
#include <fmt/format.h>
#include <toml++/toml.h>

#include <cerrno>
#include <fstream>
#include <iterator>

namespace pmirror::cli {

absl::StatusOr<NodeConfig> ParseNodeConfig(const std::string& text, const std::string& file) {
  const toml::parse_result parsed = toml::parse(text, file);
  if (!parsed) {
    return absl::InvalidArgumentError(
        fmt::format("{} is no TOML; see: pmirrord --config {} --check", file, file));
  }
  const std::string state = parsed["state_dir"].value_or(std::string("/var/lib/pmirror"));
  return NodeConfig{"unix:" + state + "/control.sock", parsed["socket"].value_or(state + "/local.sock")};
}

absl::StatusOr<NodeConfig> ReadNodeConfig(const std::string& file) {
  std::ifstream in(file, std::ios::binary);
  if (!in.is_open()) {
    return absl::ErrnoToStatus(
        errno, fmt::format("cannot read {}; name another with --config, or a sandbox with --sandbox", file));
  }
  return ParseNodeConfig({std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()}, file);
}

}  // namespace pmirror::cli
