// SPDX-License-Identifier: BSD-3-Clause
// pmirrord: the composition root. The one file that sees every part of the daemon and binds them together.
#include <fmt/format.h>
#include <signal.h>
#include <sys/resource.h>
#include <systemd/sd-daemon.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "server/config.h"
#include "server/control_service.h"
#include "server/data_listener.h"
#include "server/event_log.h"
#include "server/host.h"
#include "server/peer_watch.h"
#include "server/replica_view.h"
#include "server/replica_volume.h"

namespace pmirror::server {
namespace {

constexpr int kDone = 0;
constexpr int kFailed = 1;
constexpr int kWrongUsage = 2;

std::string Text(const absl::Status& status) { return std::string(status.message()); }

// Everything that runs, in the order in which it was started; it is stopped in the opposite order.
class Daemon {
 public:
  explicit Daemon(const Config& config) : config_(config), boot_(RandomIdentity()) {}
  ~Daemon() { Stop(); }

  absl::Status Start();
  // Clean: what programs stored is flushed and replicated, mounts are left, the peers are told. Idempotent.
  void Stop();

 private:
  struct Replica {
    std::unique_ptr<ReplicaVolume> volume;
    std::unique_ptr<ReplicaVolumeView> view;
  };

  absl::Status CheckDirectories();
  absl::Status OpenReplicas();
  void WatchPeers();

  const Config& config_;
  const uint64_t boot_;
  UniqueFd lock_;
  std::vector<Replica> replicas_;
  std::unique_ptr<DataListener> listener_;
  std::unique_ptr<PeerWatch> peers_;
  std::vector<ServedVolume> served_;
  std::unique_ptr<ControlService> control_;
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

void Daemon::WatchPeers() {
  peers_ = std::make_unique<PeerWatch>(config_, boot_, [](const control::PeerStatus& peer) {
    if (peer.reachable()) {
      LogEvent(LogLevel::kInfo, "peer_reachable", {{"node", peer.node()}, {"version", peer.version()}});
    } else {
      LogEvent(LogLevel::kWarn, "peer_unreachable", {{"node", peer.node()}, {"reason", peer.reason()}});
    }
  });
}

absl::Status Daemon::Start() {
  absl::StatusOr<UniqueFd> lock = LockStateDirectory(config_.state_dir);
  if (!lock.ok()) {
    return lock.status();
  }
  lock_ = *std::move(lock);
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
  control_ = std::make_unique<ControlService>(config_, boot_, *peers_, served_);
  if (absl::Status status = control_->Start(); !status.ok()) {
    return status;
  }
  peers_->Start();
  return absl::OkStatus();
}

void Daemon::Stop() {
  if (control_ != nullptr) {
    control_->Stop();
  }
  peers_.reset();
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
  for (Replica& replica : replicas_) {
    replica.view.reset();
  }
  listener_.reset();
  replicas_.clear();
  lock_.Reset();
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
  SetUpEventLog(config.log_level);
  ::setenv("GRPC_VERBOSITY", "NONE", 0);  // its own lines are no events; what matters comes back as a status
  ::signal(SIGPIPE, SIG_IGN);
  const sigset_t signals = EndingSignals();
  ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  RaiseDescriptorLimit();
  LogEvent(LogLevel::kInfo, "starting",
           {{"node", config.name}, {"version", kVersion}, {"config", config.file}});

  Daemon daemon(config);
  if (absl::Status status = daemon.Start(); !status.ok()) {
    LogEvent(LogLevel::kError, "cannot_start", {{"reason", Text(status)}});
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
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kDone : kWrongUsage;
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
