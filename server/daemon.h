// SPDX-License-Identifier: BSD-3-Clause
// Everything that runs in a daemon, with server/main.cc the composition root: these files see every part and bind the parts together.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "fs/client_registry.h"
#include "fs/primary_volume.h"
#include "server/config.h"
#include "server/control_service.h"
#include "server/data_listener.h"
#include "server/event_journal.h"
#include "server/host.h"
#include "server/peer_watch.h"
#include "server/replica_view.h"
#include "server/replica_volume.h"
#include "server/served_volumes.h"

namespace pmirror::server {

// What the primary's engine says, as lines of the log.
class EngineEvents : public fs::EventSink {
 public:
  void Report(fs::Severity severity, std::string_view event, const Fields& fields) override;
};

// Start and Stop come from one thread.
class Daemon : public VolumeChanges {
 public:
  // `journal` must outlive the daemon. `config`: with what was stored beside it (volume_store.h).
  Daemon(Config config, EventJournal& journal);
  ~Daemon() override { Stop(); }

  absl::Status Start();
  // Clean: what programs stored is flushed and replicated, mounts are left, the peers are told. Idempotent.
  void Stop();

  // --- VolumeChanges (daemon_volumes.cc) ---
  absl::Status HoldCopy(const control::HoldCopyRequest& request) override;
  absl::Status DropCopy(const control::DropCopyRequest& request) override;
  absl::Status CreateVolume(const control::CreateVolumeRequest& request) override;
  absl::Status ChangeMembers(const control::ChangeMembersRequest& request,
                             control::ChangeMembersReply& reply) override;

 private:
  struct Primary {
    size_t index;  // in the registry
    std::unique_ptr<fs::PrimaryVolume> volume;
  };

  absl::Status CheckDirectories(const VolumeConfig& volume) const;
  absl::Status StartListener();
  absl::Status OpenReplica(const VolumeConfig& volume);
  absl::Status MountPrimary(const VolumeConfig& volume);
  void LeavePrimaries();
  void WatchPeers();
  void WatchConditions();
  void StopWatching();

  // --- daemon_volumes.cc ---
  class Change;  // one at a time that this node is the primary of
  std::vector<VolumeConfig> Volumes() const;
  absl::StatusOr<VolumeConfig> Read(const std::string& section, const std::string& whence,
                                    const Uuid& uuid) const;
  void Remember(const VolumeConfig& volume);
  absl::Status Forget(const VolumeConfig& volume);
  absl::Status BeginCopy(const VolumeConfig& volume, bool made);
  absl::StatusOr<bool> EndCopy(const Uuid& uuid);
  bool Serves(const Uuid& uuid) const;
  absl::Status Make(const VolumeConfig& volume, const std::string& section, absl::Status& undone);
  absl::Status Unmake(const VolumeConfig& volume);
  std::optional<VolumeConfig> Find(const Uuid& uuid) const;
  std::optional<VolumeConfig> FindNamed(const std::string& name) const;
  using Edit = absl::FunctionRef<void(VolumeConfig&)>;
  absl::Status Update(const Uuid& uuid, Edit edit);
  fs::PrimaryVolume* PrimaryOf(const VolumeConfig& volume) const;
  fs::PrimaryVolume::Replica Described(const VolumeConfig& volume, const std::string& node) const;
  absl::Status NoteFilled(const Uuid& uuid, const std::string& node);
  absl::Status TellHold(const VolumeConfig& volume, const std::string& node, const std::string& section,
                        bool places_named) const;
  absl::Status TellDrop(const VolumeConfig& volume, const std::string& node) const;
  void TellOthers(const VolumeConfig& volume) const;
  std::set<std::string> Reachable() const;
  struct Section {
    std::string toml;           // for a node that does not know the volume; empty: it does
    bool places_named = false;  // by a person
  };
  absl::Status Add(const VolumeConfig& volume, const std::string& node, const Section& section, Edit edit);
  absl::Status Remove(const VolumeConfig& volume, const std::string& node, bool force, std::string& note);
  absl::Status CheckNew(const control::CreateVolumeRequest& request, VolumeConfig& volume) const;
  // --- daemon_replacing.cc ---
  void WatchReplicas();
  void FinishReplacing();
  void DraftSpares();

  const Config config_;  // its volumes: as they were at the start; those of now are volumes_
  EventJournal& journal_;
  const uint64_t boot_;
  UniqueFd lock_;  // held to the end: the journal's too
  EngineEvents events_;

  mutable std::mutex volumes_mutex_;   // a leaf
  std::vector<VolumeConfig> volumes_;  // guarded by volumes_mutex_, as the next two
  std::vector<std::unique_ptr<ReplicaVolume>>
      replicas_;  // also those that are served no more: their connections may still end
  std::vector<Primary> primaries_;
  std::mutex copies_mutex_;  // of whoever begins or ends to hold a copy here; before volumes_mutex_
  std::mutex change_mutex_;  // of changing_ only
  bool changing_ = false;

  std::unique_ptr<DataListener> listener_;
  std::unique_ptr<fs::ClientRegistry> registry_;  // used by the primaries
  std::unique_ptr<PeerWatch> peers_;
  ServedVolumes served_;
  std::unique_ptr<ControlService> control_;

  std::mutex watch_mutex_;
  std::condition_variable watch_ends_;
  std::atomic<bool> watching_ = false;  // written under watch_mutex_
  std::thread watch_;
  std::thread replicas_watch_;  // makes calls to other nodes, which may take long
  // Of that one: since when a replica of a volume with spares has been gone, and when what failed is tried again.
  using Clock = std::chrono::steady_clock;
  std::map<std::pair<std::string, std::string>, Clock::time_point> gone_since_;
  Clock::time_point replace_again_;
};

}  // namespace pmirror::server
