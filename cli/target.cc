// SPDX-License-Identifier: BSD-3-Clause
// Resolving --sandbox and --config.
#include "cli/target.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "cli/node_config.h"
#include "cli/sandbox_files.h"

namespace pmirror::cli {

void TargetOptions::AddTo(CLI::App& command) {
  CLI::Option* directory =
      command.add_option("--sandbox", sandbox, "Directory of a sandbox, instead of this host's daemon");
  config = kDefaultConfig;
  command.add_option("--config", config, "Configuration file of this host's daemon")
      ->capture_default_str()
      ->excludes(directory);
}

absl::StatusOr<Target> Target::Resolve(const TargetOptions& options) {
  Target target;
  if (!options.sandbox.empty()) {
    absl::StatusOr<Sandbox> sandbox = OpenSandbox(options.sandbox);
    if (!sandbox.ok()) {
      return sandbox.status();
    }
    target.sandbox_ = *std::move(sandbox);
    return target;
  }
  absl::StatusOr<NodeConfig> config = ReadNodeConfig(options.config);
  if (!config.ok()) {
    return config.status();
  }
  target.control_ = config->control;
  target.local_socket_ = config->socket;
  return target;
}

std::vector<Endpoint> Target::All() const {
  if (!sandbox_) {
    return {{"", control_}};
  }
  std::vector<Endpoint> endpoints;
  for (const SandboxNode& node : sandbox_->nodes) {
    endpoints.push_back({node.name, node.Control()});
  }
  return endpoints;
}

absl::StatusOr<Endpoint> Target::PrimaryOf(const std::string& volume) const {
  if (!sandbox_) {
    return Endpoint{"", control_};
  }
  const SandboxVolume* found = sandbox_->Volume(volume);
  if (found == nullptr) {
    std::vector<std::string> names;
    for (const SandboxVolume& known : sandbox_->volumes) {
      names.push_back(known.name);
    }
    return absl::NotFoundError(
        fmt::format("there is no volume '{}'; there are {}", volume, fmt::join(names, ", ")));
  }
  return Endpoint{found->primary, sandbox_->Node(found->primary)->Control()};
}

}  // namespace pmirror::cli
