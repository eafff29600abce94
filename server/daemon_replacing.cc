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

constexpr std::chrono::milliseconds kPause{250};
constexpr std::chrono::seconds kTryAgain{10};

std::string Text(const absl::Status& status) { return std::string(status.message()); }

}  // namespace

void Daemon::WatchReplicas() {
  std::unique_lock lock(watch_mutex_);
  while (!watch_ends_.wait_for(lock, kPause, [this] { return !watching_; })) {
    lock.unlock();
    FinishReplacing();
    DraftSpares();
    lock.lock();
  }
}

// A replica that is to be replaced leaves when the one that comes is in sync, and syncs need it.
void Daemon::FinishReplacing() {
  for (const VolumeConfig& seen : Volumes()) {
    for (const auto& [old, fresh] : seen.replacing) {
      const fs::PrimaryVolume* const primary = PrimaryOf(seen);
      if (primary == nullptr || !watching_ || Clock::now() < replace_again_) {
        continue;
      }
      const std::vector<std::string> needed = primary->RequiredNodes();
      if (std::find(needed.begin(), needed.end(), fresh) == needed.end() ||
          primary->StateOfReplica(fresh) != "in-sync") {
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
      if (!status.ok()) {
        replace_again_ = Clock::now() + kTryAgain;
      }
    }
  }
}

// A spare takes the place of a replica that has been gone for longer than the volume's limit, which becomes a spare in its turn.
void Daemon::DraftSpares() {
  const Clock::time_point now = Clock::now();
  const std::set<std::string> reachable = Reachable();
  for (const VolumeConfig& seen : Volumes()) {
    if (seen.spares.empty() || !watching_ || PrimaryOf(seen) == nullptr) {
      continue;
    }
    for (const std::string& node : seen.NodesBut(config_.name)) {
      const std::pair key(seen.name, node);
      if (reachable.contains(node) || seen.replacing.count(node) != 0) {
        gone_since_.erase(key);
        continue;
      }
      if (now - gone_since_.try_emplace(key, now).first->second < seen.spare_after) {
        continue;
      }
      const Change change(*this);
      const std::optional<VolumeConfig> volume = change.taken() ? Find(seen.uuid) : std::nullopt;
      if (!volume.has_value() || !volume->HasNode(node) || volume->replacing.count(node) != 0) {
        continue;
      }
      const auto spare = std::find_if(volume->spares.begin(), volume->spares.end(),
                                      [&](const std::string& name) { return reachable.contains(name); });
      if (spare == volume->spares.end()) {
        continue;
      }
      const absl::Status status = Add(*volume, *spare, {}, [&](VolumeConfig& edited) {
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
