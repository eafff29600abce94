// SPDX-License-Identifier: BSD-3-Clause
// Replicas that take the place of others by themselves (docs/internals/volumes.md). See daemon.h.
#include <algorithm>
#include <set>
#include <string>
#include <utility>

#include "server/daemon.h"
#include "server/daemon_change.h"
#include "server/event_log.h"

namespace pmirror::server {
namespace {

std::string Text(const absl::Status& status) { return std::string(status.message()); }

}  // namespace

// A replica that is to be replaced leaves when the one that comes is in sync.
void Daemon::FinishReplacing() {
  for (const VolumeConfig& seen : Known().volumes) {
    for (const auto& [old, fresh] : seen.replacing) {
      const fs::PrimaryVolume* const primary = PrimaryOf(seen);
      const bool filled = std::find(seen.filling.begin(), seen.filling.end(), fresh) == seen.filling.end();
      if (primary == nullptr || !filled || primary->StateOfReplica(fresh) != "in-sync") {
        continue;
      }
      const Change change(*this);
      const std::optional<VolumeConfig> volume = change.taken() ? Find(seen.uuid) : std::nullopt;
      if (!volume.has_value() || volume->replacing.count(old) == 0) {
        continue;
      }
      std::string note;
      const absl::Status status = Remove(*volume, old, /*force=*/false, note);
      LogEvent(status.ok() ? LogLevel::kInfo : LogLevel::kWarn, "replica_replaced",
               {{"volume", seen.name},
                {"node", fresh},
                {"old", old},
                {"reason", status.ok() ? note : Text(status)}});
    }
  }
}

// A spare takes the place of a replica that has been gone for longer than the volume's limit, which becomes a spare in its turn.
void Daemon::DraftSpares() {
  const auto now = std::chrono::steady_clock::now();
  std::set<std::string> reachable;
  for (const control::PeerStatus& peer : peers_->Peers()) {
    if (peer.reachable()) {
      reachable.insert(peer.node());
    }
  }
  for (const VolumeConfig& seen : Known().volumes) {
    const fs::PrimaryVolume* const primary = seen.spares.empty() ? nullptr : PrimaryOf(seen);
    if (primary == nullptr) {
      continue;
    }
    for (const std::string& node : seen.NodesBut(config_.name)) {
      const std::pair key(seen.name, node);
      if (reachable.contains(node) || seen.replacing.count(node) != 0) {
        gone_since_.erase(key);
        continue;
      }
      const auto since = gone_since_.try_emplace(key, now).first->second;
      const auto spare = std::find_if(seen.spares.begin(), seen.spares.end(),
                                      [&](const std::string& name) { return reachable.contains(name); });
      if (now - since < seen.spare_after || spare == seen.spares.end()) {
        continue;
      }
      const Change change(*this);
      const std::optional<VolumeConfig> volume = change.taken() ? Find(seen.uuid) : std::nullopt;
      if (!volume.has_value()) {
        continue;
      }
      const absl::Status status = Add(*volume, *spare, "", [&](VolumeConfig& edited) {
        edited.replacing[node] = *spare;
        edited.spares.push_back(node);
      });
      LogEvent(LogLevel::kWarn, "spare_drafted",
               {{"volume", seen.name},
                {"node", *spare},
                {"old", node},
                {"reason", status.ok() ? "" : Text(status)}});
      gone_since_.erase(key);  // after a failure: the time begins anew
    }
  }
}

}  // namespace pmirror::server
