// SPDX-License-Identifier: BSD-3-Clause
// Batches for ip and nft.
#include "cli/network.h"

#include <fmt/format.h>

#include <filesystem>
#include <vector>

#include "cli/process.h"

namespace pmirror::cli {
namespace {

// Runs lines of ip(8) in a namespace (empty: the host's).
absl::Status Ip(const std::string& netns, const std::string& lines) {
  std::vector<std::string> words{"ip"};
  if (!netns.empty()) {
    words.insert(words.end(), {"-n", netns});
  }
  words.insert(words.end(), {"-batch", "-"});
  return RunTool(words, lines).status();
}

absl::Status Nft(const std::string& netns, const std::string& rules) {
  return RunTool({"ip", "netns", "exec", netns, "nft", "-f", "-"}, rules).status();
}

std::string TableOf(const SandboxNode& other) { return fmt::format("inet pmirror_cut_{}", other.name); }

absl::Status MakeSwitch(const Sandbox& sandbox) {
  if (absl::Status status = Ip("", fmt::format("netns add {}\n", sandbox.SwitchNamespace())); !status.ok()) {
    return status;
  }
  std::string lines = "link set lo up\n";
  for (int network = 0; network < kSandboxNetworks; ++network) {
    // No spanning tree, no snooping: the bridge forwards from its first moment on.
    lines +=
        fmt::format("link add br{0} type bridge stp_state 0 mcast_snooping 0\nlink set br{0} up\n", network);
  }
  return Ip(sandbox.SwitchNamespace(), lines);
}

absl::Status MakeNode(const Sandbox& sandbox, const SandboxNode& node, int number) {
  if (absl::Status status = Ip("", fmt::format("netns add {}\n", node.netns)); !status.ok()) {
    return status;
  }
  std::string at_switch;
  std::string at_node = "link set lo up\n";
  for (int network = 0; network < kSandboxNetworks; ++network) {
    const std::string port = fmt::format("{}p{}", node.name, network);
    at_switch += fmt::format(
        "link add {0} type veth peer name eth{1} netns {2}\nlink set {0} master br{1}\nlink set {0} up\n",
        port, network, node.netns);
    at_node += fmt::format("addr add {0} dev eth{1}\naddr add {2} dev eth{1} nodad\nlink set eth{1} up\n",
                           Ipv4(network, number, true), network, Ipv6(network, number, true));
  }
  if (absl::Status status = Ip(sandbox.SwitchNamespace(), at_switch); !status.ok()) {
    return status;
  }
  return Ip(node.netns, at_node);
}

}  // namespace

absl::Status MakeNetwork(const Sandbox& sandbox) {
  if (absl::Status status = MakeSwitch(sandbox); !status.ok()) {
    return status;
  }
  int number = 0;
  for (const SandboxNode& node : sandbox.nodes) {
    if (absl::Status status = MakeNode(sandbox, node, ++number); !status.ok()) {
      return status;
    }
  }
  return absl::OkStatus();
}

absl::Status RemoveNetwork(const Sandbox& sandbox) {
  absl::Status result;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/run/netns", error)) {
    const std::string name = entry.path().filename().string();
    if (name.rfind(sandbox.NamespacePrefix(), 0) == 0) {
      result.Update(RunTool({"ip", "netns", "delete", name}).status());
    }
  }
  return result;
}

// Everything is dropped where it arrives, so that the sender hears nothing at all: a rule on its own side
// would give it an error.
std::string DeafRules(const SandboxNode& other) {
  std::string rules =
      fmt::format("table {} {{\n chain arriving {{\n  type filter hook input priority 0\n", TableOf(other));
  for (const std::string& address : other.addresses) {
    rules +=
        fmt::format("  {} saddr {} drop\n", address.find(':') == std::string::npos ? "ip" : "ip6", address);
  }
  return rules + " }\n}\n";
}

absl::Status CutNetwork(const SandboxNode& a, const SandboxNode& b) {
  if (absl::Status status = HealNetwork(a, b); !status.ok()) {  // no rule twice
    return status;
  }
  if (absl::Status status = Nft(a.netns, DeafRules(b)); !status.ok()) {
    return status;
  }
  return Nft(b.netns, DeafRules(a));
}

absl::Status HealNetwork(const SandboxNode& a, const SandboxNode& b) {
  // Adding an existing table changes nothing, and lets the deletion succeed when there was none.
  const auto remove = [](const SandboxNode& node, const SandboxNode& other) {
    return Nft(node.netns, fmt::format("add table {0}\ndelete table {0}\n", TableOf(other)));
  };
  if (absl::Status status = remove(a, b); !status.ok()) {
    return status;
  }
  return remove(b, a);
}

}  // namespace pmirror::cli
