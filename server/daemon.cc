// SPDX-License-Identifier: BSD-3-Clause
// The order in which the parts of a daemon start and stop. See daemon.h; daemon_volumes.cc has the volumes that come and go.
#include "server/daemon.h"

#include <fmt/format.h>

#include <filesystem>
#include <system_error>
#include <utility>

#include "fs/verify_volume.h"
#include "recovery/backing_owner.h"
#include "recovery/random_value.h"
#include "server/event_log.h"
#include "server/volume_store.h"

namespace pmirror::server {
namespace {

constexpr std::chrono::milliseconds kProgramsPoll{20};
constexpr std::chrono::milliseconds kConditionsPause{250};
constexpr std::chrono::seconds kProgramsLeave{5};  // how long a clean end waits for programs to leave a mount

std::string Text(const absl::Status& status) { return std::string(status.message()); }

// For whoever knows only that something of the volume failed.
absl::Status Of(const VolumeConfig& volume, const absl::Status& status) {
  return {status.code(), fmt::format("volume {}: {}", volume.name, Text(status))};
}

// Where a backing directory may be that is not where it is configured: beside that place, by its owner's mark. "" or the end of a sentence.
std::string WhereItWent(const std::filesystem::path& backing, const Uuid& uuid) {
  std::error_code error;
  for (auto entry = std::filesystem::directory_iterator(backing.parent_path(), error);
       !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    if (recovery::FindOwner(entry->path().string()) == uuid) {
      return fmt::format("; {} is a copy of this volume: if it was moved there, name it as `backing`",
                         entry->path().string());
    }
  }
  return "";
}

// A primary volume and its programs, as the control service sees them.
class PrimaryVolumeView : public PrimaryView {
 public:
  PrimaryVolumeView(const Config& config, VolumeConfig volume, fs::PrimaryVolume& primary,
                    const fs::ClientRegistry& registry, size_t index)
      : config_(config), volume_(std::move(volume)), primary_(primary), registry_(registry), index_(index) {}

  void FillStatus(control::VolumeStatus& status) override {
    primary_.FillStatus(status, {.processes = registry_.MappingProcesses(index_),
                                 .syncs = registry_.AcknowledgedSyncs(index_)});
  }
  absl::Status Ping(const std::string& node, control::PingReply& reply) override {
    return primary_.Ping(node, reply);
  }
  absl::Status Verify(const SendProgress& send) override {
    std::vector<fs::ReplicaToVerify> replicas;
    for (const std::string& node : primary_.RequiredNodes()) {
      replicas.push_back({node, config_.Peer(node)->control});
    }
    return fs::VerifyVolume(
        {.name = volume_.name, .uuid = volume_.uuid, .backing = volume_.backing.string()}, replicas, primary_,
        [this](const std::string& node, const recovery::VerifyResult& result) {
          primary_.NoteVerified(node, result);
        },
        send);
  }
  absl::Status Resync(const std::string& node, bool full) override { return primary_.Resync(node, full); }
  void SetReachable(const std::string& node, bool reachable) override {
    primary_.SetReachable(node, reachable);
  }

 private:
  const Config& config_;
  const VolumeConfig volume_;  // as it was when it was mounted
  fs::PrimaryVolume& primary_;
  const fs::ClientRegistry& registry_;
  const size_t index_;
};

}  // namespace

void EngineEvents::Report(fs::Severity severity, std::string_view event, const Fields& fields) {
  LogEvent(severity == fs::Severity::kDebug     ? LogLevel::kDebug
           : severity == fs::Severity::kInfo    ? LogLevel::kInfo
           : severity == fs::Severity::kWarning ? LogLevel::kWarn
                                                : LogLevel::kError,
           event, ToFields(fields));
}

Daemon::Daemon(Config config, EventJournal& journal)
    : config_(std::move(config)),
      journal_(journal),
      boot_(recovery::RandomNumber()),
      volumes_(config_.volumes) {}

absl::Status Daemon::CheckDirectories(const VolumeConfig& volume) const {
  // Before the mount point is looked at: a dead mount answers nothing.
  const absl::StatusOr<int> detached = DetachStaleMounts(volume.mount);
  if (!detached.ok()) {
    return detached.status();
  }
  if (*detached > 0) {
    LogEvent(LogLevel::kWarn, "stale_mount_detached",
             {{"volume", volume.name}, {"mount", volume.mount.string()}});
  }
  absl::Status status = CheckDirectory(volume.backing, "backing directory");
  if (absl::IsNotFound(status)) {
    status = absl::NotFoundError(Text(status) + WhereItWent(volume.backing, volume.uuid));
  }
  status.Update(CheckDirectory(volume.mount, "mount point"));
  return status;
}

absl::Status Daemon::StartListener() {
  DataListener::Options options;
  options.addresses = config_.data;
  absl::StatusOr<std::unique_ptr<DataListener>> listener = DataListener::Start(std::move(options), {});
  if (!listener.ok()) {
    return listener.status();
  }
  listener_ = *std::move(listener);
  return absl::OkStatus();
}

absl::Status Daemon::OpenReplica(const VolumeConfig& volume) {
  ReplicaVolume::Options options;
  options.name = volume.name;
  options.uuid = volume.uuid;
  options.backing = volume.backing.string();
  options.state_directory = config_.state_dir.string();
  options.domain = volume.domain;
  options.deadline = volume.deadline;
  options.sessions.credit_window = volume.credit;
  absl::StatusOr<std::unique_ptr<ReplicaVolume>> opened = ReplicaVolume::Open(std::move(options));
  if (!opened.ok()) {
    return opened.status();
  }
  ReplicaVolume& replica = **opened;
  listener_->Add(replica);
  {
    const std::lock_guard lock(volumes_mutex_);
    replicas_.push_back(*std::move(opened));
  }
  served_.Put({.config = std::make_shared<const VolumeConfig>(volume),
               .primary = nullptr,
               .replica = std::make_shared<ReplicaVolumeView>(config_.name, replica, *listener_)});
  return absl::OkStatus();
}

absl::Status Daemon::MountPrimary(const VolumeConfig& volume) {
  fs::PrimaryVolume::Options options;
  options.name = volume.name;
  options.uuid = volume.uuid;
  options.node = config_.name;
  options.backing = volume.backing.string();
  options.mount = volume.mount.string();
  options.socket = config_.socket.string();
  options.state_directory = config_.state_dir.string();
  for (const std::string& node : volume.NodesBut(config_.name)) {
    options.replicas.push_back(Described(volume, node));
  }
  options.on_loss = volume.on_loss;
  options.deadline = volume.deadline;
  options.suspend = volume.suspend;
  options.domain = volume.domain;
  options.check = volume.check;
  options.filled = [this, uuid = volume.uuid](const std::string& node) { return NoteFilled(uuid, node); };
  absl::StatusOr<std::unique_ptr<fs::PrimaryVolume>> mounted =
      fs::PrimaryVolume::Mount(std::move(options), *registry_, events_);
  if (!mounted.ok()) {
    return mounted.status();
  }
  fs::PrimaryVolume& primary = **mounted;
  const absl::StatusOr<size_t> index = registry_->Add(primary);
  if (!index.ok()) {
    return index.status();
  }
  {
    const std::lock_guard lock(volumes_mutex_);
    primaries_.push_back({*index, *std::move(mounted)});
  }
  served_.Put({.config = std::make_shared<const VolumeConfig>(volume),
               .primary = std::make_shared<PrimaryVolumeView>(config_, volume, primary, *registry_, *index),
               .replica = nullptr});
  return absl::OkStatus();
}

// Programs leave the mounts, then the registry hands over what they left dirty, then the copies part as equals.
void Daemon::LeavePrimaries() {
  const Deadline deadline = Deadline::After(kProgramsLeave);
  for (const Primary& primary : primaries_) {
    primary.volume->Unmount(deadline);
  }
  std::vector<size_t> writing;
  for (const Primary& primary : primaries_) {
    while (registry_->WritingProcesses(primary.index) != 0 && !deadline.Expired()) {
      // Sleep because: the end of a program is found out by its connection's thread, which tells nobody.
      std::this_thread::sleep_for(kProgramsPoll);
    }
    writing.push_back(registry_->WritingProcesses(primary.index));
  }
  if (registry_ != nullptr) {
    registry_->Stop();
  }
  for (size_t i = 0; i < primaries_.size(); ++i) {
    const Primary& primary = primaries_[i];
    if (absl::Status status = primary.volume->Leave(writing[i]); !status.ok()) {
      LogEvent(LogLevel::kWarn, "volume_left_unclean",
               {{"volume", primary.volume->name()}, {"reason", Text(status)}});
    } else {
      LogEvent(LogLevel::kInfo, "volume_left", {{"volume", primary.volume->name()}});
    }
  }
}

void Daemon::WatchPeers() {
  peers_ = std::make_unique<PeerWatch>(config_, boot_, [](const control::PeerStatus& peer) {
    if (peer.reachable()) {
      LogEvent(LogLevel::kInfo, "peer_reachable", {{"node", peer.node()}, {"version", peer.version()}});
    } else {
      LogEvent(LogLevel::kWarn, "peer_unreachable", {{"node", peer.node()}, {"reason", peer.reason()}});
    }
  });
}

// What nobody calls about: silence, and the ends of conditions.
void Daemon::WatchConditions() {
  watching_ = true;
  watch_ = std::thread([this] {
    std::unique_lock lock(watch_mutex_);
    while (!watch_ends_.wait_for(lock, kConditionsPause, [this] { return !watching_; })) {
      lock.unlock();
      for (const ServedVolume& volume : served_.All()) {
        if (volume.replica != nullptr) {
          volume.replica->WatchPrimary();
        }
      }
      SettleEvents();
      lock.lock();
    }
  });
  replicas_watch_ = std::thread([this] { WatchReplicas(); });
}

void Daemon::StopWatching() {
  {
    const std::lock_guard lock(watch_mutex_);
    watching_ = false;
  }
  watch_ends_.notify_all();
  for (std::thread* const thread : {&watch_, &replicas_watch_}) {
    if (thread->joinable()) {
      thread->join();
    }
  }
}

absl::Status Daemon::Start() {
  absl::StatusOr<UniqueFd> lock = LockStateDirectory(config_.state_dir);
  if (!lock.ok()) {
    return lock.status();
  }
  lock_ = *std::move(lock);
  journal_.Open(config_.state_dir.string());
  if (absl::Status status = StartListener(); !status.ok()) {
    return status;
  }
  WatchPeers();
  registry_ = std::make_unique<fs::ClientRegistry>(events_);
  for (const VolumeConfig& volume : config_.volumes) {
    if (!HoldsCopy(config_, volume)) {
      continue;
    }
    absl::Status status = CheckDirectories(volume);
    if (status.ok()) {
      status = volume.primary == config_.name ? MountPrimary(volume) : OpenReplica(volume);
    }
    if (!status.ok()) {
      return Of(volume, status);
    }
  }
  if (absl::Status status = registry_->Start(config_.socket.string()); !status.ok()) {
    return status;
  }
  control_ = std::make_unique<ControlService>(config_, boot_, *peers_, journal_, served_, *this);
  if (absl::Status status = control_->Start(); !status.ok()) {
    return status;
  }
  peers_->Start();
  WatchConditions();
  return absl::OkStatus();
}

void Daemon::Stop() {
  if (control_ != nullptr) {
    control_->Stop();  // no change is under way any more
  }
  StopWatching();
  peers_.reset();
  LeavePrimaries();
  if (listener_ != nullptr) {
    listener_->Stop();
  }
  for (const std::unique_ptr<ReplicaVolume>& replica : replicas_) {
    if (absl::Status status = replica->Shutdown(); !status.ok()) {
      LogEvent(LogLevel::kError, "replica_not_flushed",
               {{"volume", replica->options().name}, {"reason", Text(status)}});
    }
  }
  control_.reset();
  served_.Clear();
  primaries_.clear();
  registry_.reset();
  listener_.reset();
  replicas_.clear();
}

}  // namespace pmirror::server
