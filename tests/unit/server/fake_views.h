// SPDX-License-Identifier: BSD-3-Clause
// Volumes for tests of the control service: they say what they were asked.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "server/control_service.h"

namespace pmirror::server {

class FakePrimary : public PrimaryView {
 public:
  void FillStatus(control::VolumeStatus& status) override {
    status.set_epoch(3);
    status.add_replicas()->set_node("n2");
  }
  absl::Status Ping(const std::string& node, control::PingReply& reply) override {
    if (node != "n2") {
      return absl::NotFoundError("no copy there");
    }
    reply.set_data_ns(11);
    reply.set_durable_ns(12);
    return absl::OkStatus();
  }
  absl::Status Verify(const SendProgress& send) override {
    control::VerifyProgress progress;
    progress.set_phase("data");
    send(progress);
    progress.set_finished(true);
    progress.add_differences()->set_path("a\xff");  // a name need not be UTF-8
    send(progress);
    return absl::OkStatus();
  }
  absl::Status Resync(const std::string& node, bool full) override {
    resync_calls.emplace_back(node, full);
    return absl::OkStatus();
  }
  void SetReachable(const std::string& node, bool reachable) override {
    reachable_calls.emplace_back(node, reachable);
  }

  std::vector<std::pair<std::string, bool>> resync_calls;
  std::vector<std::pair<std::string, bool>> reachable_calls;
};

class FakeReplica : public ReplicaView {
 public:
  control::ReplicaState CopyState() override {
    control::ReplicaState state;
    state.set_generation(7);
    return state;
  }
  absl::StatusOr<control::OpenSessionReply> OpenSession(const control::OpenSessionRequest& request) override {
    control::OpenSessionReply reply;
    reply.set_session(request.epoch() + 100);
    return reply;
  }
  absl::Status Leave(const control::LeaveRequest&) override {
    return absl::FailedPreconditionError("lacks operations");
  }
  absl::StatusOr<control::BeginResyncReply> BeginResync(const control::BeginResyncRequest& request) override {
    control::BeginResyncReply reply;
    reply.set_token(request.mount_number() + 1);
    return reply;
  }
  absl::StatusOr<control::BeginTrailingReply> BeginTrailing(const control::BeginTrailingRequest&) override {
    return absl::UnimplementedError("");
  }
  absl::Status ChangeTree(const control::ChangeTreeRequest& request) override {
    operations += static_cast<size_t>(request.operations_size());
    return absl::OkStatus();
  }
  absl::Status AdoptMount(const control::AdoptMountRequest&) override { return absl::OkStatus(); }
  absl::Status EndResync(const control::EndResyncRequest&) override { return absl::OkStatus(); }
  size_t operations = 0;
  absl::StatusOr<recovery::Inventory> Inventory(recovery::InventoryDetail detail) override {
    recovery::TreeItem item;
    item.path = "a\xff";
    item.id = FileId{9};
    item.mode = 0100644;
    item.size = 5;
    item.xattr_crc = 77;
    item.links = 1;
    if (detail == recovery::InventoryDetail::kFull) {
      item.xattrs = {{"trusted.a", std::string("\0b", 2)}, {"user.\xff", ""}};
      item.atime = {-1, 2};
      item.mtime = {3, 4};
      item.orphan = true;
    }
    return recovery::Inventory{recovery::TreeItem{}, item};
  }
  absl::StatusOr<recovery::BlockChecksums> Checksums(FileId file, Extent extent, uint32_t block) override {
    if (file != FileId{9}) {
      return absl::NotFoundError("gone");
    }
    return recovery::BlockChecksums{{{extent.offset, 1}, {2, block}}, extent.length};
  }
  void FillStatus(control::VolumeStatus& status) override { status.set_epoch(2); }
  void WatchPrimary() override {}
  void SetReachable(const std::string&, bool) override {}
};

// Says what it was asked for.
class NoChanges : public VolumeChanges {
 public:
  absl::Status HoldCopy(const control::HoldCopyRequest&) override { return absl::UnimplementedError("hold"); }
  absl::Status DropCopy(const control::DropCopyRequest&) override { return absl::UnimplementedError("drop"); }
  absl::Status CreateVolume(const control::CreateVolumeRequest&) override {
    return absl::UnimplementedError("create");
  }
  absl::Status ChangeMembers(const control::ChangeMembersRequest&, control::ChangeMembersReply&) override {
    return absl::UnimplementedError("change");
  }
};

template <typename View, typename Fake>
std::shared_ptr<View> NotOwned(Fake& fake) {
  return {std::shared_ptr<View>(), &fake};
}

}  // namespace pmirror::server
