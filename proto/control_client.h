// SPDX-License-Identifier: BSD-3-Clause
// Calls the control service of one node. The only way to gRPC for everybody but server/control_service.cc.
//
// A node has several addresses ("host:port", "[v6]:port", "unix:/path"): they are paths to the same daemon,
// tried in order, beginning with the one that worked last. A call is made again on the next address when one
// cannot be reached, and only then.
//
// Every call returns within `timeout`. Errors: kUnavailable: no address could be reached (at once when all
// refuse: pace your retries); kDeadlineExceeded: the daemon, or the network, did not answer in time; all
// others come from the daemon (control.proto). The message begins with the node's address and is fit for an
// operator. Thread-safe; calls run in parallel. Blocks: never call it with a lock held that the answer may
// need.
// ---
// For maintainers: a path that was cut silently looks connected. HTTP/2 keepalive finds it after
// kKeepaliveTime + kKeepaliveTimeout; a call that times out before that makes the next call begin with the
// next address.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/control.pb.h"

namespace pmirror::proto {

class ControlClient {
 public:
  using Timeout = std::chrono::milliseconds;

  // Connects at the first call. Requires: at least one address.
  explicit ControlClient(std::vector<std::string> addresses);
  ~ControlClient();
  ControlClient(const ControlClient&) = delete;
  ControlClient& operator=(const ControlClient&) = delete;

  absl::StatusOr<control::HelloReply> Hello(const control::HelloRequest& request, Timeout timeout);
  absl::StatusOr<control::ReplicaState> CopyState(const control::CopyStateRequest& request, Timeout timeout);
  absl::StatusOr<control::OpenSessionReply> OpenSession(const control::OpenSessionRequest& request,
                                                        Timeout timeout);
  absl::StatusOr<control::BeginResyncReply> BeginResync(const control::BeginResyncRequest& request,
                                                        Timeout timeout);
  absl::StatusOr<control::ChangeTreeReply> ChangeTree(const control::ChangeTreeRequest& request,
                                                      Timeout timeout);
  absl::StatusOr<control::AdoptMountReply> AdoptMount(const control::AdoptMountRequest& request,
                                                      Timeout timeout);
  absl::StatusOr<control::EndResyncReply> EndResync(const control::EndResyncRequest& request,
                                                    Timeout timeout);
  absl::StatusOr<control::BeginTrailingReply> BeginTrailing(const control::BeginTrailingRequest& request,
                                                            Timeout timeout);
  absl::StatusOr<control::HoldCopyReply> HoldCopy(const control::HoldCopyRequest& request, Timeout timeout);
  absl::StatusOr<control::DropCopyReply> DropCopy(const control::DropCopyRequest& request, Timeout timeout);
  absl::StatusOr<control::CreateVolumeReply> CreateVolume(const control::CreateVolumeRequest& request,
                                                          Timeout timeout);
  absl::StatusOr<control::ChangeMembersReply> ChangeMembers(const control::ChangeMembersRequest& request,
                                                            Timeout timeout);
  absl::StatusOr<control::ResyncReply> Resync(const control::ResyncRequest& request, Timeout timeout);
  absl::StatusOr<control::LeaveReply> Leave(const control::LeaveRequest& request, Timeout timeout);
  absl::StatusOr<control::ChecksumsReply> Checksums(const control::ChecksumsRequest& request,
                                                    Timeout timeout);
  absl::StatusOr<control::StatusReply> Status(const control::StatusRequest& request, Timeout timeout);
  absl::StatusOr<control::PingReply> Ping(const control::PingRequest& request, Timeout timeout);
  absl::StatusOr<control::SetReachableReply> SetReachable(const control::SetReachableRequest& request,
                                                          Timeout timeout);

  // Streams. `take` gets each message in order, on the calling thread; returning false ends the call with
  // kCancelled. After an error the messages already taken are a prefix of the whole.
  absl::Status Inventory(const control::InventoryRequest& request, Timeout timeout,
                         const std::function<bool(const control::InventoryItem&)>& take);
  absl::Status Verify(const control::VerifyRequest& request, Timeout timeout,
                      const std::function<bool(const control::VerifyProgress&)>& take);
  absl::Status Events(const control::EventsRequest& request, Timeout timeout,
                      const std::function<bool(const control::Event&)>& take);

  // Calls that are under way now end soon with kCancelled. Later ones are made as ever.
  void Cancel();

  const std::vector<std::string>& addresses() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pmirror::proto
