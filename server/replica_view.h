// SPDX-License-Identifier: BSD-3-Clause
// A ReplicaVolume and the listener of its data sessions, as the control service sees them.
#pragma once

#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "recovery/local_tree.h"
#include "server/control_service.h"
#include "server/data_listener.h"
#include "server/replica_volume.h"

namespace pmirror::server {

class ReplicaVolumeView : public ReplicaView {
 public:
  // Both must outlive the view. `node`: this one.
  ReplicaVolumeView(std::string node, ReplicaVolume& volume, DataListener& listener)
      : node_(std::move(node)), volume_(volume), listener_(listener) {}

  control::ReplicaState CopyState() override;
  absl::StatusOr<control::OpenSessionReply> OpenSession(const control::OpenSessionRequest& request) override;
  absl::Status Leave(const control::LeaveRequest& request) override;
  absl::StatusOr<control::BeginResyncReply> BeginResync(const control::BeginResyncRequest& request) override;
  absl::Status ChangeTree(const control::ChangeTreeRequest& request) override;
  absl::Status AdoptMount(const control::AdoptMountRequest& request) override;
  absl::Status EndResync(const control::EndResyncRequest& request) override;
  absl::StatusOr<control::BeginTrailingReply> BeginTrailing(
      const control::BeginTrailingRequest& request) override;
  absl::StatusOr<recovery::Inventory> Inventory(recovery::InventoryDetail detail) override;
  absl::StatusOr<recovery::BlockChecksums> Checksums(FileId file, Extent extent, uint32_t block) override;
  void FillStatus(control::VolumeStatus& status) override;
  void SetReachable(const std::string& node, bool reachable) override;

  void WatchPrimary() override;

 private:
  struct Primary {
    std::string node;
    bool silent = false;  // connected, but not heard of within the deadline
    std::string missing;  // why it is; empty when it is there
  };
  Primary LookForPrimary(const ReplicaVolume::State& state) const;

  const std::string node_;
  ReplicaVolume& volume_;
  DataListener& listener_;
  std::mutex tree_mutex_;
  std::unique_ptr<recovery::LocalTree> tree_;  // guarded by tree_mutex_; remembers paths between questions

  // Of WatchPrimary: the primary that was seen last, since when it has been missing, and whether that was told.
  std::string primary_;
  std::optional<std::chrono::steady_clock::time_point> missing_since_;
  bool lost_ = false;
};

}  // namespace pmirror::server
