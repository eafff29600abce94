// SPDX-License-Identifier: BSD-3-Clause
// pmirrord: the composition root. The one file that sees every part of the daemon and binds them together.
#include <fmt/format.h>
#include <signal.h>
#include <sys/resource.h>
#include <systemd/sd-daemon.h>

#include <CLI/CLI.hpp>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "fs/client_registry.h"
#include "fs/primary_volume.h"
#include "fs/verify_volume.h"
#include "recovery/random_value.h"
#include "server/config.h"
#include "server/control_service.h"
#include "server/data_listener.h"
#include "server/event_journal.h"
#include "server/event_log.h"
#include "server/host.h"
#include "server/peer_watch.h"
#include "server/replica_view.h"
#include "server/replica_volume.h"
#include "server/settle.h"

namespace pmirror::server {
namespace {

constexpr int kDone = 0;
constexpr int kFailed = 1;
constexpr int kWrongUsage = 2;
constexpr std::chrono::milliseconds kProgramsPoll{20};
constexpr std::chrono::milliseconds kConditionsPause{250};
constexpr std::chrono::seconds kProgramsLeave{5};  // how long a clean end waits for programs to leave a mount

std::string Text(const absl::Status& status) { return std::string(status.message()); }

std::vector<EventField> ToFields(const Event::Fields& fields) {
  std::vector<EventField> list;
  for (const auto& [key, value] : fields) {
    list.emplace_back(key, value);
  }
  return list;
}

// What the primary's engine says, as lines of the log.
class EngineEvents : public fs::EventSink {
 public:
  void Report(fs::Severity severity, std::string_view event, const Fields& fields) override {
    LogEvent(severity == fs::Severity::kDebug     ? LogLevel::kDebug
             : severity == fs::Severity::kInfo    ? LogLevel::kInfo
             : severity == fs::Severity::kWarning ? LogLevel::kWarn
                                                  : LogLevel::kError,
             event, ToFields(fields));
  }
};

// A primary volume and its programs, as the control service sees them.
class PrimaryVolumeView : public PrimaryView {
 public:
  PrimaryVolumeView(const Config& config, const VolumeConfig& volume, fs::PrimaryVolume& primary,
                    const fs::ClientRegistry& registry, size_t index)
      : config_(config), volume_(volume), primary_(primary), registry_(registry), index_(index) {}

  void FillStatus(control::VolumeStatus& status) override {
    primary_.FillStatus(status, {.processes = registry_.MappingProcesses(index_),
                                 .syncs = registry_.AcknowledgedSyncs(index_)});
  }
  absl::Status Ping(const std::string& node, control::PingReply& reply) override {
    return primary_.Ping(node, reply);
  }
  absl::Status Verify(const SendProgress& send) override {
    std::vector<fs::ReplicaToVerify> replicas;
    for (const std::string& node : volume_.NodesBut(config_.name)) {
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
  const VolumeConfig& volume_;
  fs::PrimaryVolume& primary_;
  const fs::ClientRegistry& registry_;
  const size_t index_;
};

// Everything that runs, in the order in which it was started; it is stopped in the opposite order.
class Daemon {
 public:
  Daemon(const Config& config, EventJournal& journal)
      : config_(config), journal_(journal), boot_(recovery::RandomNumber()) {}
  ~Daemon() { Stop(); }

  absl::Status Start();
  // Clean: what programs stored is flushed and replicated, mounts are left, the peers are told. Idempotent.
  void Stop();

 private:
  struct Replica {
    std::unique_ptr<ReplicaVolume> volume;
    std::unique_ptr<ReplicaVolumeView> view;
  };

  struct Primary {
    size_t index;  // in the registry
    std::unique_ptr<fs::PrimaryVolume> volume;
    std::unique_ptr<PrimaryVolumeView> view;
  };

  absl::Status CheckDirectories();
  absl::Status OpenReplicas();
  absl::Status MountPrimaries();
  void LeavePrimaries();
  void WatchPeers();
  void WatchConditions();
  void StopWatching();

  const Config& config_;
  EventJournal& journal_;
  const uint64_t boot_;
  UniqueFd lock_;  // held to the end: the journal's too
  EngineEvents events_;
  std::vector<Replica> replicas_;
  std::unique_ptr<DataListener> listener_;
  std::unique_ptr<fs::ClientRegistry> registry_;  // used by the primaries
  std::vector<Primary> primaries_;
  std::unique_ptr<PeerWatch> peers_;
  std::vector<ServedVolume> served_;
  std::unique_ptr<ControlService> control_;

  std::mutex watch_mutex_;
  std::condition_variable watch_ends_;
  bool watching_ = false;  // guarded by watch_mutex_
  std::thread watch_;
};

// Sessions, mappings and inodes each hold descriptors.
void RaiseDescriptorLimit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    limit.rlim_cur = limit.rlim_max;
    (void)::setrlimit(RLIMIT_NOFILE, &limit);
  }
}

absl::Status Daemon::CheckDirectories() {
  for (const VolumeConfig& volume : config_.volumes) {
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
    status.Update(CheckDirectory(volume.mount, "mount point"));
    if (!status.ok()) {
      return absl::Status(status.code(), fmt::format("volume {}: {}", volume.name, Text(status)));
    }
  }
  return absl::OkStatus();
}

absl::Status Daemon::OpenReplicas() {
  std::vector<ReplicaVolume*> volumes;
  for (const VolumeConfig& volume : config_.volumes) {
    if (volume.primary == config_.name) {
      continue;
    }
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
      return absl::Status(opened.status().code(),
                          fmt::format("volume {}: {}", volume.name, Text(opened.status())));
    }
    volumes.push_back(opened->get());
    replicas_.push_back({*std::move(opened), nullptr});
  }
  DataListener::Options options;
  options.addresses = config_.data;
  absl::StatusOr<std::unique_ptr<DataListener>> listener =
      DataListener::Start(std::move(options), std::move(volumes));
  if (!listener.ok()) {
    return listener.status();
  }
  listener_ = *std::move(listener);
  for (Replica& replica : replicas_) {
    replica.view = std::make_unique<ReplicaVolumeView>(config_.name, *replica.volume, *listener_);
  }
  return absl::OkStatus();
}

absl::Status Daemon::MountPrimaries() {
  registry_ = std::make_unique<fs::ClientRegistry>(events_);
  for (const VolumeConfig& volume : config_.volumes) {
    if (volume.primary != config_.name) {
      continue;
    }
    fs::PrimaryVolume::Options options;
    options.name = volume.name;
    options.uuid = volume.uuid;
    options.node = config_.name;
    options.backing = volume.backing.string();
    options.mount = volume.mount.string();
    options.socket = config_.socket.string();
    options.state_directory = config_.state_dir.string();
    for (const std::string& node : volume.NodesBut(config_.name)) {
      const auto rpo = volume.rpo_of.find(node);
      options.replicas.push_back(
          {.node = node,
           .control = config_.Peer(node)->control,
           .rpo = rpo == volume.rpo_of.end() ? std::nullopt : std::optional<Rpo>(rpo->second)});
    }
    options.on_loss = volume.on_loss;
    options.deadline = volume.deadline;
    options.suspend = volume.suspend;
    options.domain = volume.domain;
    options.check = volume.check;
    absl::StatusOr<std::unique_ptr<fs::PrimaryVolume>> mounted =
        fs::PrimaryVolume::Mount(std::move(options), *registry_, events_);
    if (!mounted.ok()) {
      return absl::Status(mounted.status().code(),
                          fmt::format("volume {}: {}", volume.name, Text(mounted.status())));
    }
    const absl::StatusOr<size_t> index = registry_->Add(**mounted);
    if (!index.ok()) {
      return index.status();
    }
    (*mounted)->UseForeignStores(&registry_->StoresOf(*index));
    auto view = std::make_unique<PrimaryVolumeView>(config_, volume, **mounted, *registry_, *index);
    served_.push_back({&volume, view.get(), nullptr});
    primaries_.push_back({*index, *std::move(mounted), std::move(view)});
  }
  return registry_->Start(config_.socket.string());
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
      for (const Replica& replica : replicas_) {
        replica.view->WatchPrimary();
      }
      SettleEvents();
      lock.lock();
    }
  });
}

void Daemon::StopWatching() {
  {
    const std::lock_guard lock(watch_mutex_);
    watching_ = false;
  }
  watch_ends_.notify_all();
  if (watch_.joinable()) {
    watch_.join();
  }
}

absl::Status Daemon::Start() {
  absl::StatusOr<UniqueFd> lock = LockStateDirectory(config_.state_dir);
  if (!lock.ok()) {
    return lock.status();
  }
  lock_ = *std::move(lock);
  journal_.Open(config_.state_dir.string());
  if (absl::Status status = CheckDirectories(); !status.ok()) {
    return status;
  }
  if (absl::Status status = OpenReplicas(); !status.ok()) {
    return status;
  }
  WatchPeers();
  for (const VolumeConfig& volume : config_.volumes) {
    for (const Replica& replica : replicas_) {
      if (replica.volume->options().name == volume.name) {
        served_.push_back({&volume, nullptr, replica.view.get()});
      }
    }
  }
  if (absl::Status status = MountPrimaries(); !status.ok()) {
    return status;
  }
  control_ = std::make_unique<ControlService>(config_, boot_, *peers_, journal_, served_);
  if (absl::Status status = control_->Start(); !status.ok()) {
    return status;
  }
  peers_->Start();
  WatchConditions();
  return absl::OkStatus();
}

void Daemon::Stop() {
  if (control_ != nullptr) {
    control_->Stop();
  }
  StopWatching();
  peers_.reset();
  LeavePrimaries();
  if (listener_ != nullptr) {
    listener_->Stop();
  }
  for (Replica& replica : replicas_) {
    if (absl::Status status = replica.volume->Shutdown(); !status.ok()) {
      LogEvent(LogLevel::kError, "replica_not_flushed",
               {{"volume", replica.volume->options().name}, {"reason", Text(status)}});
    }
  }
  control_.reset();
  served_.clear();
  primaries_.clear();
  registry_.reset();
  for (Replica& replica : replicas_) {
    replica.view.reset();
  }
  listener_.reset();
  replicas_.clear();
}

// The signals that end the daemon. Blocked in every thread, and taken by the main thread alone.
sigset_t EndingSignals() {
  sigset_t signals;
  ::sigemptyset(&signals);
  for (const int number : {SIGTERM, SIGINT, SIGHUP}) {
    ::sigaddset(&signals, number);
  }
  return signals;
}

int Serve(const Config& config) {
  const auto journal = std::make_shared<EventJournal>(EventJournal::Options{
      .node = config.name, .report = [](LogLevel level, std::string_view event, const Event::Fields& fields) {
        LogEvent(level, event, ToFields(fields));
      }});
  SetUpEventLog(config.log_level, journal);
  ::setenv("GRPC_VERBOSITY", "NONE", 0);  // its own lines are no events; what matters comes back as a status
  ::signal(SIGPIPE, SIG_IGN);
  const sigset_t signals = EndingSignals();
  ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  RaiseDescriptorLimit();
  LogEvent(LogLevel::kInfo, "starting",
           {{"node", config.name}, {"version", kVersion}, {"config", config.file}});

  Daemon daemon(config, *journal);
  if (absl::Status status = daemon.Start(); !status.ok()) {
    LogEvent(LogLevel::kError, "cannot_start", {{"reason", Text(status)}});
    journal->Close();
    ::sd_notifyf(0, "STATUS=cannot start: %s", Text(status).c_str());
    return kFailed;
  }
  ::sd_notifyf(0, "READY=1\nSTATUS=serving %zu volumes as %s", config.volumes.size(), config.name.c_str());
  LogEvent(LogLevel::kInfo, "ready", {{"node", config.name}, {"volumes", config.volumes.size()}});

  int number = 0;
  ::sigwait(&signals, &number);
  // Further signals stay blocked: nothing shortens the flush but SIGKILL, which loses nothing that was
  // acknowledged.
  ::sd_notify(0, "STOPPING=1\nSTATUS=flushing and unmounting");
  LogEvent(LogLevel::kInfo, "stopping", {{"node", config.name}, {"signal", number}});
  daemon.Stop();
  LogEvent(LogLevel::kInfo, "stopped", {{"node", config.name}});
  journal->Close();
  return kDone;
}

int Main(int argc, char** argv) {
  CLI::App app("The daemon of a pmirror node.\nExit: 0 ended cleanly, 1 refused or failed, 2 wrong usage.",
               "pmirrord");
  app.set_version_flag("--version", kVersion);
  std::string file = "/etc/pmirror/pmirrord.toml";
  app.add_option("--config", file, "Configuration file of this node")->capture_default_str();
  bool check = false;
  app.add_flag("--check", check,
               "Check the configuration file, say what is wrong with it, and start nothing");
  std::string backing;
  app.add_option("--settle", backing,
                 "For `pmirror settle`: settle this backing directory, and start nothing");
  std::string record;
  app.add_option("--state", record, "With --settle: the record of the copy");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kDone : kWrongUsage;
  }
  if (!backing.empty()) {
    const absl::StatusOr<std::string> settled = Settle(backing, record);
    fmt::print(settled.ok() ? stdout : stderr, "{}\n", settled.ok() ? *settled : Text(settled.status()));
    return settled.ok() ? kDone : kFailed;
  }
  const absl::StatusOr<Config> config = LoadConfig(file);
  if (!config.ok()) {
    fmt::print(stderr, "{}\n", Text(config.status()));
    return kFailed;
  }
  if (check) {
    fmt::print("{}: good\n", file);
    return kDone;
  }
  return Serve(*config);
}

}  // namespace
}  // namespace pmirror::server

int main(int argc, char** argv) { return pmirror::server::Main(argc, argv); }
