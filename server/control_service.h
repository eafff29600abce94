// SPDX-License-Identifier: BSD-3-Clause
// The control service of a daemon: answers other daemons and the command line tool (proto/control.proto).
// Only control_service.cc knows gRPC; what it serves are the interfaces below, which the composition root
// binds to the volumes.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/control.pb.h"
#include "recovery/block_checksums.h"
#include "recovery/tree_item.h"
#include "replication/types.h"
#include "server/abilities.h"
#include "server/event_journal.h"
#include "server/peer_watch.h"
#include "server/served_volumes.h"

namespace pmirror::server {

// A volume whose primary is this node. Called from many threads at a time.
class PrimaryView {
 public:
  using SendProgress = std::function<bool(const control::VerifyProgress&)>;  // false: the caller is gone

  virtual ~PrimaryView() = default;
  // Fills epoch, set version, replicas and counters; name, primary, role, rpo, mount and on_loss are set
  // already.
  virtual void FillStatus(control::VolumeStatus& status) = 0;
  // Round trips over the data path to the copy on `node`: fills data_ns and durable_ns. kNotFound: no copy
  // there.
  virtual absl::Status Ping(const std::string& node, control::PingReply& reply) = 0;
  // Compares every replica with the primary; the last message sent is `finished` and holds the differences.
  virtual absl::Status Verify(const SendProgress& send) = 0;
  // Begins a resync. `node` empty: of every replica. kNotFound: no copy there.
  virtual absl::Status Resync(const std::string& node, bool full) = 0;
  // Cuts the data and control paths to `node` and makes none, or allows them again.
  virtual void SetReachable(const std::string& node, bool reachable) = 0;
};

// A volume of which this node holds a replica. Called from many threads at a time.
class ReplicaView {
 public:
  virtual ~ReplicaView() = default;
  virtual control::ReplicaState CopyState() = 0;
  // Checks epoch and rights, and gives a ticket for one connection; fills all but data_addresses.
  virtual absl::StatusOr<control::OpenSessionReply> OpenSession(
      const control::OpenSessionRequest& request) = 0;
  virtual absl::Status Leave(const control::LeaveRequest& request) = 0;
  // A resync, as control.proto has it.
  virtual absl::StatusOr<control::BeginResyncReply> BeginResync(
      const control::BeginResyncRequest& request) = 0;
  virtual absl::Status ChangeTree(const control::ChangeTreeRequest& request) = 0;
  virtual absl::Status AdoptMount(const control::AdoptMountRequest& request) = 0;
  virtual absl::Status EndResync(const control::EndResyncRequest& request) = 0;
  virtual absl::StatusOr<control::BeginTrailingReply> BeginTrailing(
      const control::BeginTrailingRequest& request) = 0;
  virtual absl::StatusOr<recovery::Inventory> Inventory(recovery::InventoryDetail detail) = 0;
  virtual absl::StatusOr<recovery::BlockChecksums> Checksums(FileId file, Extent extent, uint32_t block) = 0;
  // As PrimaryView's; `replicas` gets this node's own copy, which calls itself in-sync only while the primary
  // says so.
  virtual void FillStatus(control::VolumeStatus& status) = 0;
  // Tells when the primary was lost for longer than the deadline without having left, and when it is back. To be called about once a second, by
  // one thread.
  virtual void WatchPrimary() = 0;
  // Cuts the sessions that come from `node`.
  virtual void SetReachable(const std::string& node, bool reachable) = 0;
};

// Who makes volumes and copies come and go. Called from many threads at a time.
class VolumeChanges {
 public:
  virtual ~VolumeChanges() = default;
  virtual absl::Status HoldCopy(const control::HoldCopyRequest& request) = 0;
  virtual absl::Status DropCopy(const control::DropCopyRequest& request) = 0;
  virtual absl::Status CreateVolume(const control::CreateVolumeRequest& request) = 0;
  virtual absl::Status ChangeMembers(const control::ChangeMembersRequest& request,
                                     control::ChangeMembersReply& reply) = 0;
};

class ControlService {
 public:
  // Everything passed must outlive the service. `boot`: random identity of this daemon process.
  ControlService(const Config& config, uint64_t boot, PeerWatch& peers, EventJournal& journal,
                 ServedVolumes& volumes, VolumeChanges& changes);
  // Stop().
  ~ControlService();

  // Listens on the configured addresses and on the UNIX socket in the state directory. Fails with a sentence
  // that names the address.
  absl::Status Start();
  // Refuses new calls, cancels those under way and waits for them.
  void Stop();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pmirror::server
