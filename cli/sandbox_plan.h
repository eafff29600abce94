// SPDX-License-Identifier: BSD-3-Clause
// What a sandbox is to look like, and what one looks like: its nodes, volumes, addresses and configuration
// files. Pure: makes and reads texts, touches nothing.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace pmirror::cli {

// The words of `pmirror sandbox up`. Texts are as the person wrote them; the daemon checks what it
// understands itself.
struct SandboxOptions {
  std::filesystem::path directory;  // absolute
  int nodes = 2;
  int volumes = 1;
  bool netns = false;
  std::string rpo = "0";
  std::string on_lag = "throttle";
  std::string on_loss = "suspend";
  std::string arbiter = "manual";
  std::string deadline = "5s";
  std::string suspend = "60s";
  std::string domain = "file";
  std::string check;                   // empty: the daemon's default
  std::string credit;                  // empty: the daemon's default
  std::filesystem::path backing_root;  // empty: in the nodes' directories
};

struct SandboxNode {
  std::string name;                    // "n1", ...
  int pid = 0;                         // of its daemon; 0: killed
  std::filesystem::path directory;     // DIR/n1
  std::string netns;                   // name of its network namespace; empty: that of the host
  std::vector<std::string> addresses;  // of its network interfaces, without ports
  std::vector<std::string> control;    // where peers reach its control service
  std::vector<std::string> data;

  std::filesystem::path Config() const { return directory / "pmirrord.toml"; }
  std::filesystem::path Log() const { return directory / "pmirrord.log"; }
  std::filesystem::path State() const { return directory / "state"; }
  std::filesystem::path Socket() const { return State() / "local.sock"; }
  // Address of the control service for tools of this host.
  std::string Control() const { return "unix:" + (State() / "control.sock").string(); }
};

struct SandboxVolume {
  std::string name;  // "v0", ...
  std::string uuid;
  std::string primary;
};

struct Sandbox {
  SandboxOptions options;
  std::string id;  // eight hexadecimal digits made from the directory: names what lies outside of it
  std::vector<SandboxNode> nodes;
  std::vector<SandboxVolume> volumes;

  // Nullptr when there is none of that name.
  const SandboxNode* Node(const std::string& name) const;
  SandboxNode* Node(const std::string& name);
  const SandboxVolume* Volume(const std::string& name) const;

  std::filesystem::path Backing(const SandboxNode& node, const SandboxVolume& volume) const;
  std::filesystem::path Mount(const SandboxNode& node, const SandboxVolume& volume) const;
  // What lies below --backing-root; empty without it.
  std::filesystem::path BackingRoot() const;
  // The environment entry of every process that belongs to a node: its daemon, and what `pmirror run` starts
  // there.
  std::string Marker(const SandboxNode& node) const;
  // Prefix of its network namespaces' names, and the one in which the networks meet.
  std::string NamespacePrefix() const { return "pmir-" + id + "-"; }
  std::string SwitchNamespace() const { return NamespacePrefix() + "sw"; }
};

constexpr int kMaxSandboxNodes = 9;
constexpr int kMaxSandboxVolumes = 32;
constexpr int kSandboxNetworks = 2;
constexpr uint16_t kControlPort = 7400;
constexpr uint16_t kDataPort = 7401;
constexpr char kMarkerName[] = "PMIRROR_SANDBOX_NODE";

// Nothing, or why this version cannot make such a sandbox. The message names the option and what is allowed.
absl::Status CheckOptions(const SandboxOptions& options);

// Requires: CheckOptions() found nothing. `ports`: two free ports of the loopback interface for each node;
// not used with netns. `uuids`: one for each volume.
Sandbox PlanSandbox(const SandboxOptions& options, const std::vector<uint16_t>& ports,
                    const std::vector<std::string>& uuids);

// "10.77.1.2" for network 0 of the second node, and so on; `prefix`: with its length, for `ip addr add`.
std::string Ipv4(int network, int node, bool prefix = false);
std::string Ipv6(int network, int node, bool prefix = false);

// The TOML file of a node's daemon.
std::string ConfigOf(const Sandbox& sandbox, const SandboxNode& node);

// What `sandbox up` prints: the state of v0 first, all volumes under "volumes".
nlohmann::ordered_json Describe(const Sandbox& sandbox);

// DIR/sandbox.json, from which the other commands know the sandbox.
std::string Save(const Sandbox& sandbox);
absl::StatusOr<Sandbox> Restore(const std::string& text);

}  // namespace pmirror::cli
