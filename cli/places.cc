// SPDX-License-Identifier: BSD-3-Clause
// The person's words first, then the sandbox's layout.
#include "cli/places.h"

#include <fmt/format.h>

#include <algorithm>

namespace pmirror::cli {
namespace {

// Empty when nothing is said.
std::string Said(const std::vector<std::string>& words, const std::string& node) {
  std::string said;
  for (const std::string& word : words) {
    if (word.rfind(node + "=", 0) == 0) {
      return word.substr(node.size() + 1);
    }
    if (word.rfind('/', 0) == 0) {
      said = word;
    }
  }
  return said;
}

}  // namespace

absl::Status CheckPlaces(const std::vector<std::string>& words, const std::vector<std::string>& nodes) {
  for (const std::string& word : words) {
    const size_t equals = word.find('=');
    const bool of_one = equals != std::string::npos && word.rfind('/', 0) != 0;
    const std::string place = of_one ? word.substr(equals + 1) : word;
    if (place.rfind('/', 0) != 0) {
      return absl::InvalidArgumentError(fmt::format("'{}' is no absolute path; say DIR or NODE=DIR", word));
    }
    if (of_one && std::find(nodes.begin(), nodes.end(), word.substr(0, equals)) == nodes.end()) {
      return absl::InvalidArgumentError(
          fmt::format("'{}' names none of the volume's nodes ({})", word, fmt::join(nodes, ", ")));
    }
  }
  return absl::OkStatus();
}

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
