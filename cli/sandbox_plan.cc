// SPDX-License-Identifier: BSD-3-Clause
// Addresses, texts and JSON of a sandbox.
#include "cli/sandbox_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <regex>

#include "cli/volume_section.h"

namespace pmirror::cli {
namespace {

using Json = nlohmann::ordered_json;

// FNV-1a: short, stable, and two directories on one machine hardly ever meet.
std::string IdOf(const std::string& text) {
  uint32_t hash = 2166136261U;
  for (const char c : text) {
    hash = (hash ^ static_cast<unsigned char>(c)) * 16777619U;
  }
  return fmt::format("{:08x}", hash);
}

template <typename List>
auto FindNamed(List& list, const std::string& name) {
  const auto found =
      std::find_if(list.begin(), list.end(), [&name](const auto& entry) { return entry.name == name; });
  return found == list.end() ? nullptr : &*found;
}

void AddAddresses(SandboxNode& node, int number, const std::vector<uint16_t>& ports) {
  if (!node.netns.empty()) {
    for (int network = 0; network < kSandboxNetworks; ++network) {
      const std::string v4 = Ipv4(network, number);
      node.addresses.push_back(v4);
      node.control.push_back(fmt::format("{}:{}", v4, kControlPort));
      node.data.push_back(fmt::format("{}:{}", v4, kDataPort));
    }
    const std::string v6 = Ipv6(0, number);
    for (int network = 0; network < kSandboxNetworks; ++network) {
      node.addresses.push_back(Ipv6(network, number));
    }
    node.control.push_back(fmt::format("[{}]:{}", v6, kControlPort));
    node.data.push_back(fmt::format("[{}]:{}", v6, kDataPort));
    return;
  }
  const size_t first = 2 * static_cast<size_t>(number - 1);
  node.addresses = {"127.0.0.1"};
  node.control = {fmt::format("127.0.0.1:{}", ports.at(first))};
  node.data = {fmt::format("127.0.0.1:{}", ports.at(first + 1))};
}

Json DescribeVolume(const Sandbox& sandbox, const SandboxVolume& volume) {
  Json nodes = Json::array();
  for (const SandboxNode& node : sandbox.nodes) {
    nodes.push_back({{"name", node.name},
                     {"pid", node.pid},
                     {"control", node.Control()},
                     {"backing", sandbox.Backing(node, volume).string()},
                     {"mount", sandbox.Mount(node, volume).string()},
                     {"netns", node.netns}});
  }
  return {{"volume", volume.name}, {"primary", volume.primary}, {"nodes", nodes}};
}

}  // namespace

const SandboxNode* Sandbox::Node(const std::string& name) const { return FindNamed(nodes, name); }
SandboxNode* Sandbox::Node(const std::string& name) { return FindNamed(nodes, name); }
const SandboxVolume* Sandbox::Volume(const std::string& name) const { return FindNamed(volumes, name); }

std::filesystem::path Sandbox::BackingRoot() const {
  return options.backing_root.empty() ? std::filesystem::path() : options.backing_root / ("pmirror-" + id);
}

std::filesystem::path Sandbox::Backing(const SandboxNode& node, const SandboxVolume& volume) const {
  const std::filesystem::path base =
      options.backing_root.empty() ? node.directory : BackingRoot() / node.name;
  return base / volume.name / "backing";
}

std::filesystem::path Sandbox::Mount(const SandboxNode& node, const SandboxVolume& volume) const {
  return node.directory / volume.name / "mnt";
}

std::string Sandbox::Marker(const SandboxNode& node) const {
  return fmt::format("{}={}:{}", kMarkerName, options.directory.string(), node.name);
}

absl::Status CheckOptions(const SandboxOptions& options) {
  const auto refuse = [](std::string sentence) { return absl::InvalidArgumentError(sentence); };
  if (options.nodes < 1 || options.nodes > kMaxSandboxNodes) {
    return refuse(fmt::format("--nodes {}: allowed are 1 to {}", options.nodes, kMaxSandboxNodes));
  }
  if (options.volumes < 1 || options.volumes > kMaxSandboxVolumes) {
    return refuse(fmt::format("--volumes {}: allowed are 1 to {}", options.volumes, kMaxSandboxVolumes));
  }
  static const std::regex rpo("0|[0-9]+(us|ms|s|m|h|KiB|MiB|GiB|syncs)");
  if (!std::regex_match(options.rpo, rpo)) {
    return refuse(fmt::format(
        "--rpo {}: allowed: 0, a time as in 50ms, a size as in 1MiB, or a number of syncs as in 100syncs",
        options.rpo));
  }
  if (options.on_lag != "throttle" && options.on_lag != "proceed") {
    return refuse(fmt::format("--on-lag {}: allowed: throttle, proceed", options.on_lag));
  }
  if (options.arbiter == "etcd") {
    return refuse("--arbiter etcd: needs failover, which this version does not have; use manual");
  }
  if (options.arbiter != "manual") {
    return refuse(fmt::format("--arbiter {}: allowed: manual", options.arbiter));
  }
  return absl::OkStatus();
}

std::string Ipv4(int network, int node, bool prefix) {
  return fmt::format("10.77.{}.{}{}", network + 1, node, prefix ? "/24" : "");
}

std::string Ipv6(int network, int node, bool prefix) {
  return fmt::format("fd77:{}::{}{}", network + 1, node, prefix ? "/64" : "");
}

Sandbox PlanSandbox(const SandboxOptions& options, const std::vector<uint16_t>& ports,
                    const std::vector<std::string>& uuids) {
  Sandbox sandbox;
  sandbox.options = options;
  sandbox.id = IdOf(options.directory.string());
  for (int number = 1; number <= options.nodes; ++number) {
    SandboxNode node;
    node.name = fmt::format("n{}", number);
    node.directory = options.directory / node.name;
    node.netns = options.netns ? sandbox.NamespacePrefix() + node.name : "";
    AddAddresses(node, number, ports);
    sandbox.nodes.push_back(std::move(node));
  }
  for (int number = 0; number < options.volumes; ++number) {
    sandbox.volumes.push_back({fmt::format("v{}", number), uuids.at(static_cast<size_t>(number)),
                               fmt::format("n{}", number % options.nodes + 1)});
  }
  return sandbox;
}

std::string ConfigOf(const Sandbox& sandbox, const SandboxNode& node) {
  std::string text = fmt::format(
      "# Made by `pmirror sandbox up`.\n"
      "name = {}\ncontrol = {}\ndata = {}\nstate_dir = {}\nsocket = {}\n",
      Quote(node.name), QuoteList(node.control), QuoteList(node.data), Quote(node.State().string()),
      Quote(node.Socket().string()));
  std::vector<std::string> names;
  for (const SandboxNode& peer : sandbox.nodes) {
    names.push_back(peer.name);
    if (peer.name != node.name) {
      text += fmt::format("\n[[node]]\nname = {}\ncontrol = {}\n", Quote(peer.name), QuoteList(peer.control));
    }
  }
  for (const SandboxVolume& volume : sandbox.volumes) {
    const SandboxOptions& options = sandbox.options;
    text += "\n" + ToToml({.name = volume.name,
                           .uuid = volume.uuid,
                           .backing = sandbox.Backing(node, volume).string(),
                           .mount = sandbox.Mount(node, volume).string(),
                           .nodes = names,
                           .primary = volume.primary,
                           .rpo = options.rpo,
                           .on_lag = options.on_lag,
                           .on_loss = options.on_loss,
                           .deadline = options.deadline,
                           .suspend = options.suspend,
                           .domain = options.domain,
                           .check = options.check,
                           .credit = options.credit});
  }
  return text;
}

nlohmann::ordered_json Describe(const Sandbox& sandbox) {
  Json description = DescribeVolume(sandbox, sandbox.volumes.front());
  Json volumes = Json::array();
  for (const SandboxVolume& volume : sandbox.volumes) {
    volumes.push_back(DescribeVolume(sandbox, volume));
  }
  description["volumes"] = volumes;
  return description;
}

std::string Save(const Sandbox& sandbox) {
  Json saved = {{"directory", sandbox.options.directory.string()},
                {"netns", sandbox.options.netns},
                {"backing_root", sandbox.options.backing_root.string()}};
  saved["nodes"] = Json::array();
  for (const SandboxNode& node : sandbox.nodes) {
    saved["nodes"].push_back({{"name", node.name},
                              {"pid", node.pid},
                              {"netns", node.netns},
                              {"addresses", node.addresses},
                              {"control", node.control},
                              {"data", node.data}});
  }
  saved["volumes"] = Json::array();
  for (const SandboxVolume& volume : sandbox.volumes) {
    saved["volumes"].push_back({{"name", volume.name}, {"uuid", volume.uuid}, {"primary", volume.primary}});
  }
  return saved.dump(2) + "\n";
}

absl::StatusOr<Sandbox> Restore(const std::string& text) {
  try {
    const Json saved = Json::parse(text);
    Sandbox sandbox;
    sandbox.options.directory = saved.at("directory").get<std::string>();
    sandbox.options.netns = saved.at("netns").get<bool>();
    sandbox.options.backing_root = saved.at("backing_root").get<std::string>();
    sandbox.id = IdOf(sandbox.options.directory.string());
    for (const Json& entry : saved.at("nodes")) {
      SandboxNode node;
      node.name = entry.at("name").get<std::string>();
      node.pid = entry.at("pid").get<int>();
      node.netns = entry.at("netns").get<std::string>();
      node.addresses = entry.at("addresses").get<std::vector<std::string>>();
      node.control = entry.at("control").get<std::vector<std::string>>();
      node.data = entry.at("data").get<std::vector<std::string>>();
      node.directory = sandbox.options.directory / node.name;
      sandbox.nodes.push_back(std::move(node));
    }
    for (const Json& entry : saved.at("volumes")) {
      sandbox.volumes.push_back({entry.at("name").get<std::string>(), entry.at("uuid").get<std::string>(),
                                 entry.at("primary").get<std::string>()});
    }
    return sandbox;
  } catch (const nlohmann::json::exception& error) {
    return absl::DataLossError(fmt::format("is not what `pmirror sandbox up` wrote: {}", error.what()));
  }
}

}  // namespace pmirror::cli
