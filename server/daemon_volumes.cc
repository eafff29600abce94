// SPDX-License-Identifier: BSD-3-Clause
// Volumes and copies that come and go while the daemon runs (docs/internals/volumes.md). See daemon.h.
#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "proto/control_client.h"
#include "recovery/backing_owner.h"
#include "recovery/give_ids.h"
#include "replication/unique_fd.h"
#include "server/control_messages.h"
#include "server/daemon.h"
#include "server/daemon_change.h"
#include "server/event_log.h"
#include "server/volume_store.h"

namespace pmirror::server {
namespace {

constexpr std::chrono::milliseconds kTellTimeout{20000};
constexpr char kPrivateDirectory[] = ".pmirror";

std::string Text(const absl::Status& status) { return std::string(status.message()); }

std::string BytesOf(const Uuid& uuid) { return {reinterpret_cast<const char*>(uuid.data()), uuid.size()}; }

absl::StatusOr<Uuid> UuidOf(const std::string& bytes) {
  Uuid uuid{};
  if (bytes.size() != uuid.size()) {
    return absl::InvalidArgumentError("a uuid has 16 bytes");
  }
  std::copy(bytes.begin(), bytes.end(), reinterpret_cast<char*>(uuid.data()));
  return uuid;
}

absl::Status MakeDirectories(const VolumeConfig& volume) {
  for (const std::filesystem::path& path : {volume.backing, volume.mount}) {
    std::error_code error;
    std::filesystem::create_directories(path, error);
    if (error) {
      return absl::ErrnoToStatus(error.value(), fmt::format("cannot make {}", path.string()));
    }
  }
  return absl::OkStatus();
}

bool IsEmpty(const std::filesystem::path& directory) {
  std::error_code error;
  return std::all_of(std::filesystem::directory_iterator(directory, error),
                     std::filesystem::directory_iterator(),
                     [](const auto& entry) { return entry.path().filename() == kPrivateDirectory; });
}

absl::Status GiveIds(const std::filesystem::path& directory) {
  const UniqueFd root(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  return root.valid() ? recovery::GiveIds(root.get()).status()
                      : absl::ErrnoToStatus(errno, fmt::format("cannot open {}", directory.string()));
}

// Who has a copy or stands ready for one.
std::vector<std::string> Holders(const VolumeConfig& volume) {
  std::vector<std::string> nodes = volume.nodes;
  nodes.insert(nodes.end(), volume.spares.begin(), volume.spares.end());
  return nodes;
}

}  // namespace

// --- what is known ---

Config Daemon::Known() const {
  Config known = config_;
  const std::lock_guard lock(volumes_mutex_);
  known.volumes = volumes_;
  return known;
}

std::optional<VolumeConfig> Daemon::Find(const Uuid& uuid) const {
  const std::lock_guard lock(volumes_mutex_);
  const auto found = std::find_if(volumes_.begin(), volumes_.end(),
                                  [&](const VolumeConfig& volume) { return volume.uuid == uuid; });
  return found == volumes_.end() ? std::nullopt : std::optional(*found);
}

std::optional<VolumeConfig> Daemon::FindNamed(const std::string& name) const {
  const Config known = Known();
  const VolumeConfig* const found = known.Volume(name);
  return found == nullptr ? std::nullopt : std::optional(*found);
}

// Of a known volume: durably first, then for everybody who looks.
absl::Status Daemon::Update(const Uuid& uuid, Edit edit) {
  const std::lock_guard lock(volumes_mutex_);
  const auto found = std::find_if(volumes_.begin(), volumes_.end(),
                                  [&](const VolumeConfig& volume) { return volume.uuid == uuid; });
  VolumeConfig edited = *found;
  edit(edited);
  if (absl::Status status = StoreMembers(config_, edited); !status.ok()) {
    return status;
  }
  *found = std::move(edited);
  served_.SetConfig(*found);
  return absl::OkStatus();
}

fs::PrimaryVolume* Daemon::PrimaryOf(const VolumeConfig& volume) const {
  const std::lock_guard lock(volumes_mutex_);
  const auto found = std::find_if(primaries_.begin(), primaries_.end(), [&](const Primary& primary) {
    return primary.volume->uuid() == volume.uuid;
  });
  return found == primaries_.end() ? nullptr : found->volume.get();
}

fs::PrimaryVolume::Replica Daemon::Described(const VolumeConfig& volume, const std::string& node) const {
  return {.node = node,
          .control = config_.Peer(node)->control,
          .rpo = volume.RpoOf(node),
          .filling = std::find(volume.filling.begin(), volume.filling.end(), node) != volume.filling.end()};
}

// --- what other nodes ask for ---

absl::Status Daemon::HoldCopy(const control::HoldCopyRequest& request) {
  const absl::StatusOr<Uuid> uuid = UuidOf(request.volume());
  if (!uuid.ok()) {
    return uuid.status();
  }
  std::optional<VolumeConfig> volume = Find(*uuid);
  const bool made = !volume.has_value();
  if (made) {
    Config known = Known();
    if (absl::Status status =
            AddVolume(request.section(), fmt::format("what {} asked for", request.node()), known);
        !status.ok()) {
      return status;
    }
    volume = known.volumes.back();
    if (volume->uuid != *uuid) {
      return absl::InvalidArgumentError("the section is of another volume");
    }
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
  const std::vector<ServedVolume> served = served_.All();
  if (std::none_of(served.begin(), served.end(),
                   [&](const auto& one) { return one.config->uuid == *uuid; })) {
    absl::Status status = MakeDirectories(*volume);
    if (status.ok()) {
      status = OpenReplica(*volume, /*must_be_empty=*/true);
    }
    if (status.ok() && made) {
      status = StoreVolume(config_, *volume);
    }
    if (!status.ok()) {
      return status;
    }
    if (made) {
      const std::lock_guard lock(volumes_mutex_);
      volumes_.push_back(*volume);
    }
    LogEvent(LogLevel::kInfo, "copy_held",
             {{"volume", volume->name}, {"node", request.node()}, {"backing", volume->backing.string()}});
  }
  return Update(*uuid, [&](VolumeConfig& known) { SetMembers(request.members(), known); });
}

absl::Status Daemon::DropCopy(const control::DropCopyRequest& request) {
  const absl::StatusOr<Uuid> uuid = UuidOf(request.volume());
  if (!uuid.ok()) {
    return uuid.status();
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
  served_.Remove(*uuid);
  ReplicaVolume* replica = nullptr;
  {
    const std::lock_guard lock(volumes_mutex_);
    for (const std::unique_ptr<ReplicaVolume>& one : replicas_) {
      replica =
          one->options().uuid == *uuid ? one.get() : replica;  // the last: those before it are served no more
    }
  }
  if (replica == nullptr) {
    return absl::OkStatus();
  }
  listener_->Remove(*replica);
  LogEvent(LogLevel::kInfo, "copy_dropped",
           {{"volume", volume->name}, {"node", request.node()}, {"backing", volume->backing.string()}});
  return replica->Shutdown();
}

// --- what people ask for ---

absl::Status Daemon::TellHold(const VolumeConfig& volume, const std::string& node,
                              const std::string& section) const {
  control::HoldCopyRequest request;
  request.set_volume(BytesOf(volume.uuid));
  request.set_node(config_.name);
  request.set_section(section);
  *request.mutable_members() = MembersOf(volume);
  return proto::ControlClient(config_.Peer(node)->control).HoldCopy(request, kTellTimeout).status();
}

absl::Status Daemon::TellDrop(const VolumeConfig& volume, const std::string& node) const {
  control::DropCopyRequest request;
  request.set_volume(BytesOf(volume.uuid));
  request.set_node(config_.name);
  *request.mutable_members() = MembersOf(volume);
  return proto::ControlClient(config_.Peer(node)->control).DropCopy(request, kTellTimeout).status();
}

// Those that do not answer now are told with the next change.
void Daemon::TellOthers(const VolumeConfig& volume) const {
  for (const std::string& node : Holders(volume)) {
    absl::Status status = node == config_.name ? absl::OkStatus() : TellHold(volume, node, "");
    if (!status.ok()) {
      LogEvent(LogLevel::kWarn, "members_not_told",
               {{"volume", volume.name}, {"node", node}, {"reason", Text(status)}});
    }
  }
}

// On a link's thread, which a removal waits for: takes nothing but the leaf.
absl::Status Daemon::NoteFilled(const Uuid& uuid, const std::string& node) {
  return Find(uuid).has_value()
             ? Update(uuid, [&](VolumeConfig& volume) { std::erase(volume.filling, node); })
             : absl::OkStatus();  // the volume is being made: nothing of it is filling
}

absl::Status Daemon::CheckNew(const control::CreateVolumeRequest& request, VolumeConfig& volume) const {
  const auto own = request.sections().find(config_.name);
  if (own == request.sections().end()) {
    return absl::InvalidArgumentError(fmt::format("{} is to be the primary; ask its daemon", config_.name));
  }
  Config known = Known();
  if (absl::Status status = AddVolume(own->second, "the new volume", known); !status.ok()) {
    return status;
  }
  volume = known.volumes.back();
  if (volume.primary != config_.name) {
    return absl::InvalidArgumentError(fmt::format("{} is to be the primary; ask its daemon", volume.primary));
  }
  for (const std::string& node : Holders(volume)) {
    if (request.sections().find(node) == request.sections().end()) {
      return absl::InvalidArgumentError(fmt::format("nothing is said about the copy on {}", node));
    }
  }
  if (absl::Status status = MakeDirectories(volume); !status.ok()) {
    return status;
  }
  if (recovery::FindOwner(volume.backing.string()).has_value()) {
    return absl::FailedPreconditionError(
        fmt::format("{} belongs to a volume already; serve that volume, or name another directory",
                    volume.backing.string()));
  }
  const bool empty = IsEmpty(volume.backing);
  if (empty != !request.adopt()) {
    return absl::FailedPreconditionError(
        empty ? fmt::format("{} is empty: there is nothing to adopt; use `pmirror volume create`",
                            volume.backing.string())
              : fmt::format("{} is not empty; use `pmirror volume adopt` to make a volume of what is in it",
                            volume.backing.string()));
  }
  return CheckDirectories(volume);
}

absl::Status Daemon::CreateVolume(const control::CreateVolumeRequest& request) {
  const Change change(*this);
  if (!change.taken()) {
    return Change::Busy();
  }
  VolumeConfig volume;
  if (absl::Status status = CheckNew(request, volume); !status.ok()) {
    return status;
  }
  std::vector<std::string> told;
  absl::Status status = request.adopt() ? GiveIds(volume.backing) : absl::OkStatus();
  for (const std::string& node : Holders(volume)) {
    if (!status.ok()) {
      break;
    }
    status = node == config_.name ? absl::OkStatus() : TellHold(volume, node, request.sections().at(node));
    if (status.ok()) {
      told.push_back(node);
    }
  }
  if (status.ok()) {
    status = StoreVolume(config_, volume);
  }
  if (status.ok()) {
    status = MountPrimary(volume);
  }
  if (status.ok()) {
    const std::lock_guard lock(volumes_mutex_);
    volumes_.push_back(volume);
    LogEvent(LogLevel::kInfo, "volume_created",
             {{"volume", volume.name}, {"backing", volume.backing.string()}});
    return status;
  }
  // What cannot be undone is in the way of nobody: a file of a volume that is not mounted, copies to which nobody sends.
  ForgetVolume(config_, volume).IgnoreError();
  VolumeConfig without = volume;
  without.nodes = {config_.name};
  without.spares.clear();
  for (const std::string& node : told) {
    if (node != config_.name) {
      TellDrop(without, node).IgnoreError();
    }
  }
  return status;
}

absl::Status Daemon::ChangeMembers(const control::ChangeMembersRequest& request,
                                   control::ChangeMembersReply& reply) {
  const Change change(*this);
  if (!change.taken()) {
    return Change::Busy();
  }
  const std::optional<VolumeConfig> volume = FindNamed(request.volume());
  if (!volume.has_value()) {
    return absl::NotFoundError(fmt::format("{} has no volume '{}'", config_.name, request.volume()));
  }
  if (PrimaryOf(*volume) == nullptr) {
    return absl::FailedPreconditionError(
        fmt::format("volume {} is primary on {}; change it there", volume->name, volume->primary));
  }
  if (!request.remove().empty() && (!volume->HasNode(request.remove()) || request.remove() == config_.name)) {
    return absl::NotFoundError(fmt::format("volume {} has no replica on {}; it has {}", volume->name,
                                           request.remove(),
                                           fmt::join(volume->NodesBut(config_.name), ", ")));
  }
  if (request.add().empty()) {
    return Remove(*volume, request.remove(), request.force(), *reply.mutable_note());
  }
  VolumeConfig there = *volume;
  there.backing = request.backing().empty() ? volume->backing : std::filesystem::path(request.backing());
  there.mount = request.mount().empty() ? volume->mount : std::filesystem::path(request.mount());
  there.nodes.push_back(request.add());
  std::erase(there.spares, request.add());
  return Add(*volume, request.add(), ToToml(there), [&](VolumeConfig& edited) {
    if (!request.remove().empty()) {
      edited.replacing[request.remove()] = request.add();
    }
  });
}

// The node holds the copy, then the record names it, then it is filled: a crash in between leaves a copy that nobody sends to, or one that the next
// mount fills.
absl::Status Daemon::Add(const VolumeConfig& volume, const std::string& node, const std::string& section,
                         Edit edit) {
  if (volume.HasNode(node)) {
    return absl::AlreadyExistsError(fmt::format("volume {} has a copy on {} already", volume.name, node));
  }
  if (config_.Peer(node) == nullptr) {
    return absl::NotFoundError(
        fmt::format("{} is no node of {}; add its [[node]] there", node, config_.file));
  }
  const auto with = [&](VolumeConfig& edited) {
    edited.nodes.push_back(node);
    edited.filling.push_back(node);
    std::erase(edited.spares, node);
    edit(edited);
  };
  VolumeConfig wanted = volume;
  with(wanted);
  if (absl::Status status = TellHold(wanted, node, section); !status.ok()) {
    return status;
  }
  if (absl::Status status = Update(volume.uuid, with); !status.ok()) {
    return status;
  }
  if (absl::Status status = PrimaryOf(volume)->AddReplica(Described(wanted, node)); !status.ok()) {
    absl::Status back = Update(volume.uuid, [&](VolumeConfig& edited) {
      std::erase(edited.nodes, node);
      std::erase(edited.filling, node);
      std::erase_if(edited.replacing, [&](const auto& pair) { return pair.second == node; });
      edited.spares = volume.spares;
    });
    return back.ok() ? status : back;
  }
  TellOthers(*Find(volume.uuid));
  return absl::OkStatus();
}

absl::Status Daemon::Remove(const VolumeConfig& volume, const std::string& node, bool force,
                            std::string& note) {
  fs::PrimaryVolume& primary = *PrimaryOf(volume);
  const std::vector<std::string> counting = primary.RequiredNodes();
  const bool another = std::any_of(counting.begin(), counting.end(), [&](const std::string& other) {
    return other != node && primary.StateOfReplica(other) == "in-sync";
  });
  if (!another && !force) {
    return absl::FailedPreconditionError(
        fmt::format("no other copy of volume {} is in sync: it would have none but its primary's; add one "
                    "first, or use --force",
                    volume.name));
  }
  absl::Status status = Update(volume.uuid, [&](VolumeConfig& edited) {
    std::erase(edited.nodes, node);
    std::erase(edited.filling, node);
    edited.replacing.erase(node);
    std::erase_if(edited.replacing, [&](const auto& pair) { return pair.second == node; });
  });
  if (status.ok()) {
    status = primary.RemoveReplica(node);
  }
  if (!status.ok()) {
    return status;
  }
  const VolumeConfig now = *Find(volume.uuid);
  TellOthers(now);
  const bool spare = std::find(now.spares.begin(), now.spares.end(), node) != now.spares.end();
  const absl::Status told = spare ? TellHold(now, node, "") : TellDrop(now, node);
  if (!told.ok()) {
    note = fmt::format(
        "{} could not be told, and still serves a copy that nobody sends to: take the volume out of its "
        "configuration ({})",
        node, Text(told));
  }
  return absl::OkStatus();
}

}  // namespace pmirror::server
