// SPDX-License-Identifier: BSD-3-Clause
// The person's words first, then the sandbox's layout.
#include "cli/places.h"

#include <fmt/format.h>

namespace pmirror::cli {
namespace {

// Empty when nothing is said.
std::string Said(const std::vector<std::string>& words, const std::string& node) {
  std::string said;
  for (const std::string& word : words) {
    if (word.front() == '/' && said.empty()) {
      said = word;
    }
  }
  for (const std::string& word : words) {
    if (word.rfind(node + "=", 0) == 0) {
      said = word.substr(node.size() + 1);
    }
  }
  return said;
}

}  // namespace

absl::StatusOr<Places> PlacesOf(const std::optional<Sandbox>& sandbox, const SandboxVolume& volume,
                                const std::string& node, const std::vector<std::string>& backing,
                                const std::vector<std::string>& mount) {
  Places places{.backing = Said(backing, node), .mount = Said(mount, node)};
  if (sandbox.has_value()) {
    const SandboxNode* const known = sandbox->Node(node);
    if (known == nullptr) {
      return absl::NotFoundError(fmt::format("the sandbox has no node '{}'", node));
    }
    places.backing = places.backing.empty() ? sandbox->Backing(*known, volume).string() : places.backing;
    places.mount = places.mount.empty() ? sandbox->Mount(*known, volume).string() : places.mount;
  }
  if (places.backing.empty() || places.mount.empty()) {
    return absl::InvalidArgumentError(fmt::format("where is the volume on {}? Say {} DIR, or {} {}=DIR", node,
                                                  places.backing.empty() ? "--backing" : "--mount",
                                                  places.backing.empty() ? "--backing" : "--mount", node));
  }
  return places;
}

}  // namespace pmirror::cli
