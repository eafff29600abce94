// SPDX-License-Identifier: BSD-3-Clause
// The keys of a node's TOML file and the rules among them.
#include "server/config.h"

#include <fmt/format.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <iterator>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "replication/local_protocol.h"
#include "server/config_values.h"
#include "server/toml_section.h"

namespace pmirror::server {
namespace {

using std::chrono::nanoseconds;
using namespace std::chrono_literals;

constexpr nanoseconds kMinDeadline = 10ms;
constexpr nanoseconds kMaxWait = 24h;
constexpr nanoseconds kMinCheck = 1s;
constexpr nanoseconds kMaxCheck = 24h * 366;
constexpr uint64_t kMinCredit = 64 << 10;
constexpr uint64_t kMaxCredit = uint64_t{1} << 30;
constexpr size_t kMaxSocketPath = sizeof(sockaddr_un::sun_path) - 1;
constexpr std::string_view kNameRule =
    "is no name; allowed: letters, digits, '-', '_' and '.', beginning with a letter or digit, at most 63";

bool Contains(const std::vector<std::string>& list, std::string_view entry) {
  return std::find(list.begin(), list.end(), entry) != list.end();
}

// True when one is the other or lies below it.
bool Overlap(const std::filesystem::path& a, const std::filesystem::path& b) {
  const auto [left, right] = std::mismatch(a.begin(), a.end(), b.begin(), b.end());
  return left == a.end() || right == b.end();
}

std::string Sentence(const absl::Status& status) { return std::string(status.message()); }

std::string ReadName(TomlSection& section) {
  std::string name = section.String("name");
  if (!IsName(name)) {
    section.Wrong("name", kNameRule);
  }
  return name;
}

std::filesystem::path ReadPath(TomlSection& section, std::string_view key,
                               std::optional<std::string> fallback = std::nullopt) {
  const std::filesystem::path path =
      std::filesystem::path(section.String(key, std::move(fallback))).lexically_normal();
  if (!path.is_absolute()) {
    section.Wrong(key, "is no absolute path; allowed: a path that begins with /");
  }
  return path.has_filename() ? path : path.parent_path();
}

nanoseconds ReadDuration(TomlSection& section, std::string_view key, std::string fallback,
                         nanoseconds least) {
  const absl::StatusOr<nanoseconds> value = ParseDuration(section.String(key, std::move(fallback)));
  if (!value.ok()) {
    section.Wrong(key, Sentence(value.status()));
    return {};
  }
  if (*value < least || *value > kMaxWait) {
    section.Wrong(key, fmt::format("is out of range; allowed: {}ms to 24h", least / 1ms));
  }
  return *value;
}

// 0: it is off.
nanoseconds ReadCheck(TomlSection& section) {
  const std::string text = section.String("check", "24h");
  if (text == "off") {
    return {};
  }
  const absl::StatusOr<nanoseconds> period = ParseDuration(text);
  if (!period.ok() || *period < kMinCheck || *period > kMaxCheck) {
    section.Wrong("check",
                  fmt::format("is no period; allowed: \"off\", or a time from {}s to {}h, as in \"24h\"",
                              kMinCheck / 1s, kMaxCheck / 1h));
    return {};
  }
  return *period;
}

std::vector<std::string> ReadAddresses(TomlSection& section, std::string_view key, bool unix_too) {
  std::vector<std::string> addresses = section.Strings(key, 1);
  for (size_t i = 0; i < addresses.size(); ++i) {
    if (unix_too && absl::StartsWith(addresses[i], "unix:/")) {
      continue;
    }
    if (const absl::StatusOr<HostPort> parsed = ParseHostPort(addresses[i]); !parsed.ok()) {
      section.WrongEntry(key, i, Sentence(parsed.status()));
    }
  }
  return addresses;
}

PeerConfig ReadPeer(TomlSection& section, const Config& config) {
  PeerConfig peer;
  section.AllowOnly({"name", "control"});
  peer.name = ReadName(section);
  if (peer.name == config.name) {
    section.Wrong("name", "is this file's own node; a [[node]] is one of the others");
  } else if (config.Peer(peer.name) != nullptr) {
    section.Wrong("name", "names a second [[node]]; each has its own name");
  }
  peer.control = ReadAddresses(section, "control", /*unix_too=*/true);
  return peer;
}

void ReadNodes(TomlSection& section, const Config& config, VolumeConfig& volume) {
  volume.nodes = section.Strings("nodes", 1);
  for (size_t i = 0; i < volume.nodes.size(); ++i) {
    const std::string& node = volume.nodes[i];
    if (node != config.name && config.Peer(node) == nullptr) {
      std::vector<std::string> known{config.name};
      std::transform(config.peers.begin(), config.peers.end(), std::back_inserter(known),
                     [](const PeerConfig& peer) { return peer.name; });
      section.WrongEntry(
          "nodes", i, fmt::format("is not known; allowed: {}, or add its [[node]]", fmt::join(known, ", ")));
    } else if (std::count(volume.nodes.begin(), volume.nodes.end(), node) > 1) {
      section.WrongEntry("nodes", i, "stands there twice; a node holds one copy");
    }
  }
  if (volume.nodes.size() > kMaxReplicas + 1) {
    section.Wrong("nodes", fmt::format("are too many; allowed: at most {}", kMaxReplicas + 1));
  }
  volume.spares = section.Strings("spares", 0);
  for (size_t i = 0; i < volume.spares.size(); ++i) {
    const std::string& node = volume.spares[i];
    if (node != config.name && config.Peer(node) == nullptr) {
      section.WrongEntry("spares", i, "is not known; add its [[node]]");
    } else if (Contains(volume.nodes, node)) {
      section.WrongEntry("spares", i, "holds a copy; a spare is a node that does not yet");
    }
  }
  volume.spare_after = ReadDuration(section, "spare_after", "10m", 1s);
  if (!Contains(volume.nodes, config.name) && !Contains(volume.spares, config.name)) {
    section.Wrong(
        "nodes",
        fmt::format(
            "does not name this node, \"{}\"; a volume stands only in the files of its nodes and spares",
            config.name));
  }
  volume.primary = section.String("primary");
  if (!Contains(volume.nodes, volume.primary)) {
    section.Wrong("primary",
                  fmt::format("is none of the volume's nodes; allowed: {}", fmt::join(volume.nodes, ", ")));
  }
}

// One for all replicas, and others by name.
void ReadRpo(TomlSection& section, VolumeConfig& volume) {
  const auto on_lag = static_cast<OnLag>(section.OneOf(
      "on_lag", "throttle",
      {{"throttle", static_cast<int>(OnLag::kThrottle)}, {"proceed", static_cast<int>(OnLag::kProceed)}}));
  const auto keep = [&](const std::string& node, const Rpo& rpo) {
    volume.rpo_of[node] = rpo;
    volume.rpo_of[node].on_lag = on_lag;
  };
  volume.rpo = section.String("rpo", "0");
  const absl::StatusOr<Rpo> rpo = ParseRpo(volume.rpo);
  if (!rpo.ok()) {
    section.Wrong("rpo", Sentence(rpo.status()));
    return;
  }
  keep("", *rpo);
  const std::vector<std::string> of = section.Strings("replica_rpo", 0);
  for (size_t i = 0; i < of.size(); ++i) {
    const size_t equals = of[i].find('=');
    const std::string node = of[i].substr(0, equals);
    const absl::StatusOr<Rpo> own = ParseRpo(equals == std::string::npos ? "" : of[i].substr(equals + 1));
    if (!Contains(volume.nodes, node) && !Contains(volume.spares, node)) {
      section.WrongEntry("replica_rpo", i,
                         "names none of the volume's nodes; allowed: \"NODE=RPO\", as in \"n3=30s\"");
    } else if (!own.ok()) {
      section.WrongEntry("replica_rpo", i, Sentence(own.status()));
    } else {
      keep(node, *own);
    }
  }
}

void ReadPolicy(TomlSection& section, VolumeConfig& volume) {
  ReadRpo(section, volume);
  volume.on_loss = static_cast<OnLoss>(section.OneOf("on_loss", "suspend",
                                                     {{"suspend", static_cast<int>(OnLoss::kSuspend)},
                                                      {"fail", static_cast<int>(OnLoss::kFail)},
                                                      {"proceed", static_cast<int>(OnLoss::kProceed)}}));
  volume.deadline = ReadDuration(section, "deadline", "5s", kMinDeadline);
  volume.suspend = ReadDuration(section, "suspend", "60s", 0ms);
  volume.domain = static_cast<Domain>(section.OneOf("domain", "file",
                                                    {{"file", static_cast<int>(Domain::kFile)},
                                                     {"pmem", static_cast<int>(Domain::kPmem)},
                                                     {"volatile", static_cast<int>(Domain::kVolatile)}}));
  volume.check = ReadCheck(section);
  const absl::StatusOr<uint64_t> credit = ParseSize(section.String("credit", "8MiB"));
  if (!credit.ok()) {
    section.Wrong("credit", Sentence(credit.status()));
  } else if (*credit < kMinCredit || *credit > kMaxCredit) {
    section.Wrong("credit", "is out of range; allowed: 64KiB to 1GiB");
  } else {
    volume.credit = *credit;
  }
}

// No directory of the daemon may lie in another: a volume that contains its own mount would replicate itself.
void CheckPlaces(TomlSection& section, const Config& config, const VolumeConfig& volume) {
  struct Place {
    std::string what;
    std::filesystem::path path;
  };
  std::vector<Place> others{{"state_dir", config.state_dir}};
  for (const VolumeConfig& other : config.volumes) {
    others.push_back({fmt::format("backing of volume {}", other.name), other.backing});
    others.push_back({fmt::format("mount of volume {}", other.name), other.mount});
  }
  const auto check = [&](std::string_view key, const std::filesystem::path& path) {
    for (const Place& other : others) {
      if (Overlap(path, other.path)) {
        section.Wrong(key, fmt::format("overlaps {} ({}); allowed: a directory of its own", other.what,
                                       other.path.string()));
      }
    }
  };
  check("backing", volume.backing);
  others.push_back({"backing of the same volume", volume.backing});
  check("mount", volume.mount);
}

VolumeConfig ReadVolume(TomlSection& section, const Config& config) {
  VolumeConfig volume;
  section.AllowOnly({"name", "uuid", "backing", "mount", "nodes", "primary", "spares", "spare_after", "rpo",
                     "replica_rpo", "on_lag", "on_loss", "deadline", "suspend", "domain", "check", "credit"});
  volume.name = ReadName(section);
  const absl::StatusOr<Uuid> uuid = ParseUuid(section.String("uuid"));
  if (uuid.ok()) {
    volume.uuid = *uuid;
  } else {
    section.Wrong("uuid", Sentence(uuid.status()));
  }
  volume.backing = ReadPath(section, "backing");
  volume.mount = ReadPath(section, "mount");
  for (const VolumeConfig& other : config.volumes) {
    if (other.name == volume.name) {
      section.Wrong("name", "names a second [[volume]]; each has its own name");
    }
    if (other.uuid == volume.uuid) {
      section.Wrong("uuid", fmt::format("is that of volume {} too; make one with `uuidgen`", other.name));
    }
  }
  CheckPlaces(section, config, volume);
  ReadNodes(section, config, volume);
  ReadPolicy(section, volume);
  return volume;
}

void ReadOwnNode(TomlSection& root, Config& config) {
  root.AllowOnly({"name", "control", "data", "state_dir", "socket", "log_level", "node", "volume"});
  config.name = ReadName(root);
  config.control = ReadAddresses(root, "control", /*unix_too=*/false);
  config.data = ReadAddresses(root, "data", /*unix_too=*/false);
  config.state_dir = ReadPath(root, "state_dir", "/var/lib/pmirror");
  config.socket = ReadPath(root, "socket", (config.state_dir / "local.sock").string());
  if (config.socket.native().size() > kMaxSocketPath) {
    root.Wrong("socket", fmt::format("is too long for a socket; allowed: at most {} bytes", kMaxSocketPath));
  }
  if (config.ControlSocket().size() - std::string_view("unix:").size() > kMaxSocketPath) {
    root.Wrong("state_dir", fmt::format("is too long for the socket in it; allowed: at most {} bytes",
                                        kMaxSocketPath - std::string_view("/control.sock").size()));
  }
  config.log_level = static_cast<LogLevel>(root.OneOf("log_level", "info",
                                                      {{"debug", static_cast<int>(LogLevel::kDebug)},
                                                       {"info", static_cast<int>(LogLevel::kInfo)},
                                                       {"warn", static_cast<int>(LogLevel::kWarn)},
                                                       {"error", static_cast<int>(LogLevel::kError)}}));
}

}  // namespace

std::vector<std::string> VolumeConfig::NodesBut(std::string_view node) const {
  std::vector<std::string> others;
  std::copy_if(nodes.begin(), nodes.end(), std::back_inserter(others),
               [node](const std::string& other) { return other != node; });
  return others;
}

bool VolumeConfig::HasNode(std::string_view node) const { return Contains(nodes, node); }

std::optional<Rpo> VolumeConfig::RpoOf(const std::string& node) const {
  auto found = rpo_of.find(node);
  found = found == rpo_of.end() ? rpo_of.find("") : found;
  if (found == rpo_of.end() ||
      (found->second.time.count() == 0 && found->second.bytes == 0 && found->second.syncs == 0)) {
    return std::nullopt;
  }
  return found->second;
}

const VolumeConfig* Config::Volume(std::string_view volume) const {
  const auto found = std::find_if(volumes.begin(), volumes.end(),
                                  [volume](const VolumeConfig& entry) { return entry.name == volume; });
  return found == volumes.end() ? nullptr : &*found;
}

const PeerConfig* Config::Peer(std::string_view peer) const {
  const auto found = std::find_if(peers.begin(), peers.end(),
                                  [peer](const PeerConfig& entry) { return entry.name == peer; });
  return found == peers.end() ? nullptr : &*found;
}

std::string Config::ControlSocket() const {
  return fmt::format("unix:{}", (state_dir / "control.sock").string());
}

absl::StatusOr<Config> ParseConfig(std::string_view text, const std::string& file) {
  Config config;
  config.file = file;
  const absl::Status status = ReadToml(text, file, [&config](TomlSection& root, TomlErrors& errors) {
    ReadOwnNode(root, config);
    for (TomlSection& section : root.Sections("node")) {
      config.peers.push_back(ReadPeer(section, config));
    }
    for (TomlSection& section : root.Sections("volume")) {
      config.volumes.push_back(ReadVolume(section, config));
    }
    if (config.volumes.size() > local::kMaxVolumes) {
      errors.Add(0, 0, "volume",
                 fmt::format("there are {}; allowed: at most {}", config.volumes.size(), local::kMaxVolumes));
    }
  });
  if (!status.ok()) {
    return status;
  }
  return config;
}

absl::Status AddVolume(std::string_view text, const std::string& file, Config& config) {
  std::vector<VolumeConfig> found;
  absl::Status status = ReadToml(text, file, [&](TomlSection& root, TomlErrors& errors) {
    root.AllowOnly({"volume"});
    for (TomlSection& section : root.Sections("volume")) {
      found.push_back(ReadVolume(section, config));
    }
    if (found.size() != 1 || config.volumes.size() == local::kMaxVolumes) {
      errors.Add(0, 0, "volume",
                 fmt::format("there is one in such a file, and at most {} on a node", local::kMaxVolumes));
    }
  });
  if (status.ok()) {
    config.volumes.push_back(std::move(found.front()));
  }
  return status;
}

absl::StatusOr<Config> LoadConfig(const std::string& file) {
  std::ifstream in(file, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  if (!in.is_open() || in.bad()) {
    return absl::ErrnoToStatus(errno, fmt::format("cannot read the configuration file {}", file));
  }
  return ParseConfig(text, file);
}

}  // namespace pmirror::server
