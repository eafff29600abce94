// SPDX-License-Identifier: BSD-3-Clause
// Copies that this node holds, or holds no more, because another node's primary asks for that (docs/internals/volumes.md). See daemon.h.
#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "fs/uuid_bytes.h"
#include "recovery/backing_owner.h"
#include "server/control_messages.h"
#include "server/daemon.h"
#include "server/daemon_change.h"
#include "server/event_log.h"
#include "server/volume_store.h"

namespace pmirror::server {
namespace {

constexpr char kNoUuid[] = "a uuid has 16 bytes";

// A copy is to be filled there: nothing of anybody else's may be in it.
absl::Status CheckForCopy(const VolumeConfig& volume, const std::string& node) {
  if (recovery::FindOwner(volume.backing.string()) == volume.uuid) {
    return absl::OkStatus();
  }
  const absl::StatusOr<bool> empty = recovery::IsEmptyBacking(volume.backing.string());
  if (empty.ok() && !*empty) {
    return absl::FailedPreconditionError(fmt::format(
        "the backing directory {} on {} is not empty, and no copy of this volume; name another, or empty it",
        volume.backing.string(), node));
  }
  return empty.status();
}

}  // namespace

absl::Status Daemon::HoldCopy(const control::HoldCopyRequest& request) {
  const std::lock_guard lock(copies_mutex_);
  const std::optional<Uuid> uuid = fs::UuidOf(request.volume());
  if (!uuid.has_value()) {
    return absl::InvalidArgumentError(kNoUuid);
  }
  std::optional<VolumeConfig> volume = Find(*uuid);
  const bool made = !volume.has_value();
  if (made || request.places_named()) {
    const absl::StatusOr<VolumeConfig> described =
        Read(request.section(), fmt::format("what {} asked for", request.node()), *uuid);
    if (!described.ok()) {
      return described.status();
    }
    if (described->uuid != *uuid) {
      return absl::InvalidArgumentError("the section is of another volume");
    }
    if (!made && (described->backing != volume->backing || described->mount != volume->mount)) {
      return absl::FailedPreconditionError(
          fmt::format("{} has volume {} in {} already, to be mounted at {}: leave --backing and --mount away",
                      config_.name, volume->name, volume->backing.string(), volume->mount.string()));
    }
    volume = made ? *described : *volume;
  }
  if (volume->primary == config_.name) {
    return absl::FailedPreconditionError(
        fmt::format("{} is itself the primary of volume {}", config_.name, volume->name));
  }
  SetMembers(request.members(), *volume);
  if (!HoldsCopy(config_, *volume)) {
    return absl::InvalidArgumentError(
        fmt::format("{} is none of the nodes of volume {}", config_.name, volume->name));
  }
  if (!Serves(*uuid)) {
    if (absl::Status status = BeginCopy(*volume, made); !status.ok()) {
      return status;
    }
    LogEvent(LogLevel::kInfo, "copy_held",
             {{"volume", volume->name}, {"node", request.node()}, {"backing", volume->backing.string()}});
  }
  return Update(*uuid, [&](VolumeConfig& known) { SetMembers(request.members(), known); });
}

// Served, then known; `made`: it was not known before, and is not after an error. A crash in between leaves a directory that the next request finds.
absl::Status Daemon::BeginCopy(const VolumeConfig& volume, bool made) {
  absl::Status status = MakeDirectories({volume.backing, volume.mount});
  if (status.ok()) {
    status = CheckForCopy(volume, config_.name);
  }
  if (status.ok()) {
    status = OpenReplica(volume);
  }
  if (!status.ok() || !made) {
    return status;
  }
  status = StoreVolume(config_, volume);
  if (!status.ok()) {
    const absl::StatusOr<bool> ended = EndCopy(volume.uuid);
    return WithWhatIsLeft(status, ended.status());
  }
  Remember(volume);
  return status;
}

bool Daemon::Serves(const Uuid& uuid) const {
  const std::vector<ServedVolume> served = served_.All();
  return std::any_of(served.begin(), served.end(),
                     [&](const ServedVolume& one) { return one.config->uuid == uuid; });
}

// True: it never took part. After an error it is served as before.
absl::StatusOr<bool> Daemon::EndCopy(const Uuid& uuid) {
  if (!Serves(uuid)) {
    return false;
  }
  ReplicaVolume* replica = nullptr;
  {
    const std::lock_guard volumes(volumes_mutex_);
    for (const std::unique_ptr<ReplicaVolume>& one : replicas_) {
      replica =
          one->options().uuid == uuid ? one.get() : replica;  // the last: those before it are served no more
    }
  }
  listener_->Remove(*replica);
  absl::StatusOr<bool> unused = replica->Retire();
  if (unused.ok()) {
    served_.Remove(uuid);
  } else {
    listener_->Add(*replica);
  }
  return unused;
}

absl::Status Daemon::DropCopy(const control::DropCopyRequest& request) {
  const std::lock_guard lock(copies_mutex_);
  const std::optional<Uuid> uuid = fs::UuidOf(request.volume());
  if (!uuid.has_value()) {
    return absl::InvalidArgumentError(kNoUuid);
  }
  std::optional<VolumeConfig> volume = Find(*uuid);
  if (!volume.has_value()) {
    return absl::OkStatus();
  }
  SetMembers(request.members(), *volume);
  if (HoldsCopy(config_, *volume)) {
    return absl::InvalidArgumentError(
        fmt::format("{} is one of the nodes of volume {}", config_.name, volume->name));
  }
  if (absl::Status status = Update(*uuid, [&](VolumeConfig& known) { SetMembers(request.members(), known); });
      !status.ok()) {
    return status;
  }
  const absl::StatusOr<bool> unused = EndCopy(*uuid);
  if (!unused.ok()) {
    return unused.status();
  }
  LogEvent(LogLevel::kInfo, "copy_dropped",
           {{"volume", volume->name}, {"node", request.node()}, {"backing", volume->backing.string()}});
  // One that was made and came to nothing leaves no trace: its name is free.
  const absl::StatusOr<bool> stored = IsStored(config_, *volume);
  return !stored.ok() ? stored.status() : *stored && *unused ? Forget(*volume) : absl::OkStatus();
}

}  // namespace pmirror::server
