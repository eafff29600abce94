// SPDX-License-Identifier: BSD-3-Clause
// The gRPC channels of one node, one an address, and the choice among them.
#include "proto/control_client.h"

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <cassert>
#include <mutex>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "proto/control.grpc.pb.h"

namespace pmirror::proto {
namespace {

using Clock = std::chrono::system_clock;  // what gRPC's deadlines are made of

constexpr int kKeepaliveTimeMs = 1000;  // the server permits this (server/control_service.cc)
constexpr int kKeepaliveTimeoutMs = 1000;
constexpr int kConnectTimeoutMs = 1000;  // of one attempt

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kConnectTimeoutMs);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY,
                   0);  // a proxy of the environment has no business between our nodes
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

// True when the channel is connected by `deadline`; false as soon as one attempt has failed.
bool Connected(grpc::Channel& channel, Clock::time_point deadline) {
  for (;;) {
    const grpc_connectivity_state state = channel.GetState(/*try_to_connect=*/true);
    if (state == GRPC_CHANNEL_READY) {
      return true;
    }
    if (state == GRPC_CHANNEL_TRANSIENT_FAILURE || state == GRPC_CHANNEL_SHUTDOWN) {
      return false;
    }
    if (!channel.WaitForStateChange(state, deadline)) {
      return false;
    }
  }
}

absl::Status ToAbsl(const std::string& address, const grpc::Status& status) {
  if (status.ok()) {
    return absl::OkStatus();
  }
  // gRPC's codes are numbered as abseil's.
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                      absl::StrCat(address, ": ", status.error_message()));
}

}  // namespace

struct ControlClient::Impl {
  struct Path {
    std::string address;
    std::shared_ptr<grpc::Channel> channel;
    std::shared_ptr<control::Control::Stub> stub;
  };
  std::vector<std::string> addresses;
  std::mutex mutex;
  std::vector<Path> paths;               // guarded by mutex; the number of them never changes
  std::set<grpc::ClientContext*> calls;  // guarded by mutex; under way
  std::atomic<size_t> preferred{0};

  // A call while it runs, so that Cancel() finds it.
  class UnderWay {
   public:
    explicit UnderWay(Impl& impl) : impl_(impl) {
      const std::lock_guard lock(impl_.mutex);
      impl_.calls.insert(&context);
    }
    ~UnderWay() {
      const std::lock_guard lock(impl_.mutex);
      impl_.calls.erase(&context);
    }
    UnderWay(const UnderWay&) = delete;
    UnderWay& operator=(const UnderWay&) = delete;

    grpc::ClientContext context;

   private:
    Impl& impl_;
  };

  static Path MakePath(const std::string& address) {
    std::shared_ptr<grpc::Channel> channel = MakeChannel(address);
    return {address, channel, control::Control::NewStub(channel)};
  }

  // The path to use now. A channel whose last attempt failed waits a second or more before the next, and does
  // not say when: it is replaced, so that each call tries at once.
  Path Fresh(size_t index) {
    const std::lock_guard lock(mutex);
    Path& path = paths[index];
    if (path.channel->GetState(/*try_to_connect=*/false) == GRPC_CHANNEL_TRANSIENT_FAILURE) {
      path = MakePath(path.address);
    }
    return path;
  }

  // Runs `call(stub, context)` on the first path that is connected, and on the next ones while the answer is
  // kUnavailable.
  template <typename Call>
  absl::Status OnSomePath(Timeout timeout, Call call) {
    const Clock::time_point end = Clock::now() + timeout;
    const size_t first = preferred.load(std::memory_order_relaxed);
    absl::Status last =
        absl::UnavailableError(absl::StrCat(absl::StrJoin(addresses, ", "), ": cannot connect"));
    for (size_t i = 0; i < addresses.size(); ++i) {
      const size_t index = (first + i) % addresses.size();
      const Path path = Fresh(index);
      const Clock::time_point now = Clock::now();
      if (now >= end) {
        return absl::DeadlineExceededError(
            absl::StrCat(path.address, ": no answer within ", timeout.count(), " ms"));
      }
      // A path that neither refuses nor connects may not use up the time of those that follow.
      if (!Connected(*path.channel, now + (end - now) / static_cast<int>(addresses.size() - i))) {
        continue;
      }
      UnderWay under_way(*this);
      under_way.context.set_deadline(end);
      last = ToAbsl(path.address, call(*path.stub, under_way.context));
      if (absl::IsDeadlineExceeded(last)) {
        preferred.store((index + 1) % addresses.size(), std::memory_order_relaxed);
      } else if (!absl::IsUnavailable(last)) {
        preferred.store(index, std::memory_order_relaxed);
        return last;
      }
    }
    return last;
  }

  // One request, one reply.
  template <typename Reply, typename Request>
  absl::StatusOr<Reply> Unary(grpc::Status (control::Control::Stub::*method)(grpc::ClientContext*,
                                                                             const Request&, Reply*),
                              const Request& request, Timeout timeout) {
    Reply reply;
    const absl::Status status =
        OnSomePath(timeout, [&](control::Control::Stub& stub, grpc::ClientContext& context) {
          reply.Clear();
          return (stub.*method)(&context, request, &reply);
        });
    if (!status.ok()) {
      return status;
    }
    return reply;
  }

  // One request, a stream of replies. Once a reply was taken the call is never made again on another path.
  template <typename Reply, typename Request>
  absl::Status Stream(std::unique_ptr<grpc::ClientReader<Reply>> (control::Control::Stub::*method)(
                          grpc::ClientContext*, const Request&),
                      const Request& request, Timeout timeout,
                      const std::function<bool(const Reply&)>& take) {
    return OnSomePath(
        timeout, [&](control::Control::Stub& stub, grpc::ClientContext& context) -> grpc::Status {
          std::unique_ptr<grpc::ClientReader<Reply>> reader = (stub.*method)(&context, request);
          Reply reply;
          bool taken = false;
          while (reader->Read(&reply)) {
            taken = true;
            if (!take(reply)) {
              context.TryCancel();
              (void)reader->Finish();
              return {grpc::StatusCode::CANCELLED, "given up by the caller"};
            }
          }
          const grpc::Status status = reader->Finish();
          if (taken && status.error_code() == grpc::StatusCode::UNAVAILABLE) {
            return {grpc::StatusCode::ABORTED,
                    "the connection broke in the middle of the answer: " + status.error_message()};
          }
          return status;
        });
  }
};

ControlClient::ControlClient(std::vector<std::string> addresses) : impl_(std::make_unique<Impl>()) {
  assert(!addresses.empty());
  impl_->addresses = std::move(addresses);
  for (const std::string& address : impl_->addresses) {
    impl_->paths.push_back(Impl::MakePath(address));
  }
}

ControlClient::~ControlClient() = default;

void ControlClient::Cancel() {
  const std::lock_guard lock(impl_->mutex);
  for (grpc::ClientContext* context : impl_->calls) {
    context->TryCancel();
  }
}

const std::vector<std::string>& ControlClient::addresses() const { return impl_->addresses; }

using Stub = control::Control::Stub;

absl::StatusOr<control::HelloReply> ControlClient::Hello(const control::HelloRequest& request,
                                                         Timeout timeout) {
  return impl_->Unary(&Stub::Hello, request, timeout);
}

absl::StatusOr<control::ReplicaState> ControlClient::CopyState(const control::CopyStateRequest& request,
                                                               Timeout timeout) {
  return impl_->Unary(&Stub::CopyState, request, timeout);
}

absl::StatusOr<control::OpenSessionReply> ControlClient::OpenSession(
    const control::OpenSessionRequest& request, Timeout timeout) {
  return impl_->Unary(&Stub::OpenSession, request, timeout);
}

absl::StatusOr<control::BeginResyncReply> ControlClient::BeginResync(
    const control::BeginResyncRequest& request, Timeout timeout) {
  return impl_->Unary(&Stub::BeginResync, request, timeout);
}

absl::StatusOr<control::ChangeTreeReply> ControlClient::ChangeTree(const control::ChangeTreeRequest& request,
                                                                   Timeout timeout) {
  return impl_->Unary(&Stub::ChangeTree, request, timeout);
}

absl::StatusOr<control::AdoptMountReply> ControlClient::AdoptMount(const control::AdoptMountRequest& request,
                                                                   Timeout timeout) {
  return impl_->Unary(&Stub::AdoptMount, request, timeout);
}

absl::StatusOr<control::EndResyncReply> ControlClient::EndResync(const control::EndResyncRequest& request,
                                                                 Timeout timeout) {
  return impl_->Unary(&Stub::EndResync, request, timeout);
}

absl::StatusOr<control::BeginTrailingReply> ControlClient::BeginTrailing(
    const control::BeginTrailingRequest& request, Timeout timeout) {
  return impl_->Unary(&Stub::BeginTrailing, request, timeout);
}

absl::StatusOr<control::HoldCopyReply> ControlClient::HoldCopy(const control::HoldCopyRequest& request,
                                                               Timeout timeout) {
  return impl_->Unary(&Stub::HoldCopy, request, timeout);
}

absl::StatusOr<control::DropCopyReply> ControlClient::DropCopy(const control::DropCopyRequest& request,
                                                               Timeout timeout) {
  return impl_->Unary(&Stub::DropCopy, request, timeout);
}

absl::StatusOr<control::CreateVolumeReply> ControlClient::CreateVolume(
    const control::CreateVolumeRequest& request, Timeout timeout) {
  return impl_->Unary(&Stub::CreateVolume, request, timeout);
}

absl::StatusOr<control::ChangeMembersReply> ControlClient::ChangeMembers(
    const control::ChangeMembersRequest& request, Timeout timeout) {
  return impl_->Unary(&Stub::ChangeMembers, request, timeout);
}

absl::StatusOr<control::ResyncReply> ControlClient::Resync(const control::ResyncRequest& request,
                                                           Timeout timeout) {
  return impl_->Unary(&Stub::Resync, request, timeout);
}

absl::StatusOr<control::LeaveReply> ControlClient::Leave(const control::LeaveRequest& request,
                                                         Timeout timeout) {
  return impl_->Unary(&Stub::Leave, request, timeout);
}

absl::StatusOr<control::ChecksumsReply> ControlClient::Checksums(const control::ChecksumsRequest& request,
                                                                 Timeout timeout) {
  return impl_->Unary(&Stub::Checksums, request, timeout);
}

absl::StatusOr<control::StatusReply> ControlClient::Status(const control::StatusRequest& request,
                                                           Timeout timeout) {
  return impl_->Unary(&Stub::Status, request, timeout);
}

absl::StatusOr<control::PingReply> ControlClient::Ping(const control::PingRequest& request, Timeout timeout) {
  return impl_->Unary(&Stub::Ping, request, timeout);
}

absl::StatusOr<control::SetReachableReply> ControlClient::SetReachable(
    const control::SetReachableRequest& request, Timeout timeout) {
  return impl_->Unary(&Stub::SetReachable, request, timeout);
}

absl::Status ControlClient::Inventory(const control::InventoryRequest& request, Timeout timeout,
                                      const std::function<bool(const control::InventoryItem&)>& take) {
  return impl_->Stream(&Stub::Inventory, request, timeout, take);
}

absl::Status ControlClient::Verify(const control::VerifyRequest& request, Timeout timeout,
                                   const std::function<bool(const control::VerifyProgress&)>& take) {
  return impl_->Stream(&Stub::Verify, request, timeout, take);
}

absl::Status ControlClient::Events(const control::EventsRequest& request, Timeout timeout,
                                   const std::function<bool(const control::Event&)>& take) {
  return impl_->Stream(&Stub::Events, request, timeout, take);
}

}  // namespace pmirror::proto
