// SPDX-License-Identifier: BSD-3-Clause
// Volumes and copies that come and go while the daemon runs (docs/internals/volumes.md). See daemon.h.
#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <set>
#include <utility>

#include "fs/uuid_bytes.h"
#include "proto/control_client.h"
#include "recovery/backing_owner.h"
#include "recovery/give_ids.h"
#include "recovery/inventory.h"
#include "recovery/replace_file.h"
#include "replication/unique_fd.h"
#include "server/control_messages.h"
#include "server/daemon.h"
#include "server/daemon_change.h"
#include "server/event_log.h"
#include "server/volume_store.h"

namespace pmirror::server {
namespace {

constexpr std::chrono::milliseconds kTellTimeout{20000};
constexpr std::array kOfACopy = {".copy", ".marks"};  // files of the state directory

std::string Text(const absl::Status& status) { return std::string(status.message()); }

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

std::vector<VolumeConfig> Daemon::Volumes() const {
  const std::lock_guard lock(volumes_mutex_);
  return volumes_;
}

// What the volume would be that the section describes, beside the others that there are.
absl::StatusOr<VolumeConfig> Daemon::Read(const std::string& section, const std::string& whence,
                                          const Uuid& uuid) const {
  Config known = config_;
  known.volumes = Volumes();
  std::erase_if(known.volumes, [&](const VolumeConfig& volume) { return volume.uuid == uuid; });
  if (absl::Status status = AddVolume(section, whence, known); !status.ok()) {
    return status;
  }
  return std::move(known.volumes.back());
}

std::optional<VolumeConfig> Daemon::Find(const Uuid& uuid) const {
  const std::lock_guard lock(volumes_mutex_);
  const auto found = std::find_if(volumes_.begin(), volumes_.end(),
                                  [&](const VolumeConfig& volume) { return volume.uuid == uuid; });
  return found == volumes_.end() ? std::nullopt : std::optional(*found);
}

std::optional<VolumeConfig> Daemon::FindNamed(const std::string& name) const {
  for (VolumeConfig& volume : Volumes()) {
    if (volume.name == name) {
      return std::move(volume);
    }
  }
  return std::nullopt;
}

// A volume more, or one less.
void Daemon::Remember(const VolumeConfig& volume) {
  const std::lock_guard lock(volumes_mutex_);
  volumes_.push_back(volume);
}

absl::Status Daemon::Forget(const VolumeConfig& volume) {
  {
    const std::lock_guard lock(volumes_mutex_);
    std::erase_if(volumes_, [&](const VolumeConfig& known) { return known.uuid == volume.uuid; });
  }
  return ForgetVolume(config_, volume);
}

// Durably first, then for everybody who looks.
absl::Status Daemon::Update(const Uuid& uuid, Edit edit) {
  const std::lock_guard lock(volumes_mutex_);
  const auto found = std::find_if(volumes_.begin(), volumes_.end(),
                                  [&](const VolumeConfig& volume) { return volume.uuid == uuid; });
  if (found == volumes_.end()) {
    return absl::NotFoundError(fmt::format("{} does not know the volume", config_.name));
  }
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

// --- what people ask for; daemon_copies.cc has what other nodes ask for ---

absl::Status Daemon::TellHold(const VolumeConfig& volume, const std::string& node, const std::string& section,
                              bool places_named) const {
  control::HoldCopyRequest request;
  request.set_volume(fs::UuidBytes(volume.uuid));
  request.set_node(config_.name);
  request.set_section(section);
  request.set_places_named(places_named);
  *request.mutable_members() = MembersOf(volume);
  return proto::ControlClient(config_.Peer(node)->control).HoldCopy(request, kTellTimeout).status();
}

absl::Status Daemon::TellDrop(const VolumeConfig& volume, const std::string& node) const {
  control::DropCopyRequest request;
  request.set_volume(fs::UuidBytes(volume.uuid));
  request.set_node(config_.name);
  *request.mutable_members() = MembersOf(volume);
  return proto::ControlClient(config_.Peer(node)->control).DropCopy(request, kTellTimeout).status();
}

// The peers that have answered the last heartbeat.
std::set<std::string> Daemon::Reachable() const {
  std::set<std::string> reachable;
  for (const control::PeerStatus& peer : peers_->Peers()) {
    if (peer.reachable()) {
      reachable.insert(peer.node());
    }
  }
  return reachable;
}

// Those that do not answer now are told with the next change.
void Daemon::TellOthers(const VolumeConfig& volume) const {
  const std::set<std::string> reachable = Reachable();
  for (const std::string& node : Holders(volume)) {
    if (node == config_.name) {
      continue;
    }
    const absl::Status status = reachable.contains(node) ? TellHold(volume, node, "", /*places_named=*/false)
                                                         : absl::UnavailableError("it does not answer");
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
  absl::StatusOr<VolumeConfig> described = Read(own->second, "the new volume", Uuid{});
  if (!described.ok()) {
    return described.status();
  }
  volume = *std::move(described);
  if (volume.primary != config_.name) {
    return absl::InvalidArgumentError(fmt::format("{} is to be the primary; ask its daemon", volume.primary));
  }
  for (const std::string& node : Holders(volume)) {
    if (request.sections().find(node) == request.sections().end()) {
      return absl::InvalidArgumentError(fmt::format("nothing is said about the copy on {}", node));
    }
  }
  if (absl::Status status = MakeDirectories({volume.backing, volume.mount}); !status.ok()) {
    return status;
  }
  for (const char* suffix : kOfACopy) {
    const std::filesystem::path left = config_.state_dir / (volume.name + suffix);
    if (std::filesystem::exists(left)) {
      return absl::FailedPreconditionError(
          fmt::format("{} is of a copy that was called {}, too; choose another name, or move it away",
                      left.string(), volume.name));
    }
  }
  if (recovery::FindOwner(volume.backing.string()).has_value()) {
    return absl::FailedPreconditionError(
        fmt::format("{} belongs to a volume already; serve that volume, or name another directory",
                    volume.backing.string()));
  }
  const absl::StatusOr<bool> empty = recovery::IsEmptyBacking(volume.backing.string());
  if (!empty.ok()) {
    return empty.status();
  }
  if (*empty != !request.adopt()) {
    return absl::FailedPreconditionError(
        *empty ? fmt::format("{} is empty: there is nothing to adopt; use `pmirror volume create`",
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
    if (node != config_.name) {
      status = TellHold(volume, node, request.sections().at(node), /*places_named=*/true);
      told.push_back(node);  // also after an error: it may have done so, and its answer be lost
    }
  }
  absl::Status undone;
  if (status.ok()) {
    status = Make(volume, request.sections().at(config_.name), undone);
  }
  if (status.ok()) {
    LogEvent(LogLevel::kInfo, "volume_created",
             {{"volume", volume.name}, {"backing", volume.backing.string()}});
    return status;
  }
  VolumeConfig without = volume;
  without.nodes = {config_.name};
  without.spares.clear();
  for (const std::string& node : told) {
    undone.Update(TellDrop(without, node));
  }
  return WithWhatIsLeft(status, undone);
}

// Here; the others hold their copies. `undone`: after an error, what came of undoing it.
absl::Status Daemon::Make(const VolumeConfig& volume, const std::string& section, absl::Status& undone) {
  const std::lock_guard lock(copies_mutex_);  // somebody else's volume of that name may have come meanwhile
  absl::Status status = Read(section, "the new volume", Uuid{}).status();
  if (!status.ok()) {
    return status;
  }
  status = StoreVolume(config_, volume);
  if (status.ok()) {
    status = MountPrimary(volume);
  }
  if (status.ok()) {
    Remember(volume);
  } else {
    undone = Unmake(volume);
  }
  return status;
}

// Of a volume that could not be mounted as its primary for the first time: nothing is left but what was there before, the ids of files that were adopted,
// and empty directories.
absl::Status Daemon::Unmake(const VolumeConfig& volume) {
  absl::Status status = Forget(volume);
  for (const char* suffix : kOfACopy) {
    status.Update(recovery::RemoveFile((config_.state_dir / (volume.name + suffix)).string()));
  }
  if (recovery::FindOwner(volume.backing.string()) != volume.uuid) {
    return status;
  }
  const std::string own = (volume.backing / recovery::kOwnDirectory).string();
  const UniqueFd directory(::open(own.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (directory.valid()) {
    status.Update(recovery::DisownBackingDirectory(directory.get(), volume.backing.string()));
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
  const bool places_named = !request.backing().empty() || !request.mount().empty();
  return Add(*volume, request.add(), {ToToml(there), places_named}, [&](VolumeConfig& edited) {
    if (!request.remove().empty()) {
      edited.replacing[request.remove()] = request.add();
    }
  });
}

// The node holds the copy, then the record names it, then it is filled: a crash in between leaves a copy that nobody sends to, or one that the next
// mount fills.
absl::Status Daemon::Add(const VolumeConfig& volume, const std::string& node, const Section& section,
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
  absl::Status status = TellHold(wanted, node, section.toml, section.places_named);
  if (status.ok()) {
    status = Update(volume.uuid, with);
  }
  if (status.ok()) {
    status = PrimaryOf(volume)->AddReplica(Described(wanted, node));
  }
  if (status.ok()) {
    TellOthers(*Find(volume.uuid));
    return status;
  }
  absl::Status undone = Update(volume.uuid, [&](VolumeConfig& edited) {
    std::erase(edited.nodes, node);
    std::erase(edited.filling, node);
    std::erase_if(edited.replacing, [&](const auto& pair) { return pair.second == node; });
    edited.spares = volume.spares;
  });
  const bool spare = std::find(volume.spares.begin(), volume.spares.end(), node) != volume.spares.end();
  undone.Update(spare ? TellHold(volume, node, "", /*places_named=*/false) : TellDrop(volume, node));
  return WithWhatIsLeft(status, undone);
}

absl::Status Daemon::Remove(const VolumeConfig& volume, const std::string& node, bool force,
                            std::string& note) {
  fs::PrimaryVolume& primary = *PrimaryOf(volume);
  const std::vector<std::string> counting = primary.RequiredNodes();
  const bool counts = std::find(counting.begin(), counting.end(), node) != counting.end();
  const bool another = std::any_of(counting.begin(), counting.end(), [&](const std::string& other) {
    return other != node && primary.StateOfReplica(other) == "in-sync";
  });
  if (counts && !another && !force) {
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
  TellOthers(now);  // also the node itself, when it is a spare from here on
  const bool spare = std::find(now.spares.begin(), now.spares.end(), node) != now.spares.end();
  const absl::Status told = spare                        ? absl::OkStatus()
                            : Reachable().contains(node) ? TellDrop(now, node)
                                                         : absl::UnavailableError("it does not answer");
  if (!told.ok()) {
    note = fmt::format(
        "{} could not be told, and still serves a copy that nobody sends to: take the volume out of its "
        "configuration ({})",
        node, Text(told));
  }
  return absl::OkStatus();
}

}  // namespace pmirror::server
