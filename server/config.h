// SPDX-License-Identifier: BSD-3-Clause
// What an operator decided for one node: the contents of its TOML file, checked. docs/configuration.md
// describes every key. Plain values; whoever holds a Config may rely on everything that CheckConfig-time
// rules say (names resolve, paths are absolute and apart).
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "replication/persistence.h"
#include "replication/rpo.h"
#include "replication/types.h"
#include "replication/volume_page.h"

namespace pmirror::server {

enum class LogLevel { kDebug, kInfo, kWarn, kError };

struct PeerConfig {
  std::string name;
  std::vector<std::string> control;  // "host:port", "[v6]:port", "unix:/path", tried in order
};

struct VolumeConfig {
  std::string name;
  Uuid uuid{};
  std::filesystem::path backing;
  std::filesystem::path mount;
  std::vector<std::string> nodes;  // those that hold a copy
  std::string primary;             // of the first mount
  std::vector<std::string>
      spares;  // nodes that stand ready; the first that answers takes the place of a replica that is gone
  std::chrono::nanoseconds spare_after{};
  std::string rpo;                    // as in the file: "0", "50ms", "1MiB", "100syncs"
  std::map<std::string, Rpo> rpo_of;  // of nodes; "": of all that are not named
  OnLoss on_loss = OnLoss::kSuspend;
  std::chrono::nanoseconds deadline{};
  std::chrono::nanoseconds suspend{};
  Domain domain = Domain::kFile;
  std::chrono::nanoseconds check{};  // in which the background check goes once through all files; 0: never
  uint64_t credit = 0;  // bytes a sender may have under way to this node's replica in one session

  // What was decided while daemons ran (volume_store.h). Of `nodes`: those whose copies have never been whole; and those that leave the volume when
  // another has been filled (who leaves -> who comes).
  std::vector<std::string> filling;
  std::map<std::string, std::string> replacing;

  // The nodes but `node`, in the file's order.
  std::vector<std::string> NodesBut(std::string_view node) const;
  bool HasNode(std::string_view node) const;
  // None when every sync waits for it.
  std::optional<Rpo> RpoOf(const std::string& node) const;
};

struct Config {
  std::string file;                  // where it was read from, for messages
  std::string name;                  // of this node
  std::vector<std::string> control;  // where the control service listens
  std::vector<std::string> data;     // where replicas accept data sessions
  std::filesystem::path state_dir;
  std::filesystem::path socket;  // for programs of this node
  LogLevel log_level = LogLevel::kInfo;
  std::vector<PeerConfig> peers;
  std::vector<VolumeConfig> volumes;

  // Nullptr when there is none of that name.
  const PeerConfig* Peer(std::string_view name) const;
  const VolumeConfig* Volume(std::string_view name) const;
  // Where this node's own command line tool finds the control service: "unix:<state dir>/control.sock".
  std::string ControlSocket() const;
};

// kInvalidArgument with "FILE:LINE:COLUMN: key: what is wrong; allowed: ..." for the first thing that is
// wrong. Touches no file.
absl::StatusOr<Config> ParseConfig(std::string_view text, const std::string& file);

// One [[volume]] more, written as in the file of this node; the config stays as it was after an error.
absl::Status AddVolume(std::string_view text, const std::string& file, Config& config);

// Reads and parses; kNotFound or kPermissionDenied when the file cannot be read.
absl::StatusOr<Config> LoadConfig(const std::string& file);

}  // namespace pmirror::server
