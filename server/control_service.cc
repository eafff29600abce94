// SPDX-License-Identifier: BSD-3-Clause
// The gRPC server. Each handler refuses first, with a sentence, and then asks a view.
#include "server/control_service.h"

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <optional>
#include <tuple>
#include <utility>

#include "proto/control.grpc.pb.h"
#include "server/control_messages.h"

namespace pmirror::server {
namespace {

constexpr int kMaxThreads = 128;
constexpr int kMaxFollowers = 32;  // of events: each has a thread
constexpr auto kFollowerPause = std::chrono::milliseconds(500);
constexpr size_t kEventsAtOnce = 100;
constexpr auto kStopGrace = std::chrono::milliseconds(500);

grpc::Status ToGrpc(const absl::Status& status) {
  return {static_cast<grpc::StatusCode>(status.code()), std::string(status.message())};
}

grpc::Status NotFound(const std::string& sentence) { return {grpc::StatusCode::NOT_FOUND, sentence}; }

bool HasVolume(const Event& event, const std::string& volume) {
  return std::any_of(event.fields.begin(), event.fields.end(),
                     [&](const auto& field) { return field.first == "volume" && field.second == volume; });
}

// Counts a call of Events while it lasts.
struct Follower {
  explicit Follower(std::atomic<int>& all) : count(all), number(++all) {}
  ~Follower() { --count; }
  Follower(const Follower&) = delete;
  Follower& operator=(const Follower&) = delete;
  std::atomic<int>& count;
  const int number;
};

bool IsUuid(const std::string& bytes, const Uuid& uuid) {
  return bytes.size() == uuid.size() && std::memcmp(bytes.data(), uuid.data(), uuid.size()) == 0;
}

}  // namespace

struct ControlService::Impl final : control::Control::Service {
  Impl(const Config& own_config, uint64_t own_boot, PeerWatch& peer_watch, EventJournal& own_journal,
       ServedVolumes& served, VolumeChanges& volume_changes)
      : config(own_config),
        boot(own_boot),
        peers(peer_watch),
        journal(own_journal),
        volumes(served),
        changes(volume_changes) {}

  const Config& config;
  const uint64_t boot;
  PeerWatch& peers;
  EventJournal& journal;
  ServedVolumes& volumes;
  VolumeChanges& changes;
  std::atomic<bool> stopping{false};
  std::atomic<int> followers{0};
  std::unique_ptr<grpc::Server> server;

  // OK, or why a daemon that calls itself `node` is not listened to.
  grpc::Status Admit(const std::string& node) const {
    if (config.Peer(node) == nullptr) {
      return {grpc::StatusCode::PERMISSION_DENIED,
              fmt::format("{} has no [[node]] of name '{}'; add it to {}", config.name, node, config.file)};
    }
    if (peers.IsCut(node)) {
      return {grpc::StatusCode::UNAVAILABLE, "cut off by the test bed"};
    }
    return grpc::Status::OK;
  }

  static grpc::Status OnlyFromHere(const grpc::ServerContext& context) {
    return context.peer().rfind("unix:", 0) == 0
               ? grpc::Status::OK
               : grpc::Status(grpc::StatusCode::PERMISSION_DENIED, "only over the daemon's own UNIX socket");
  }

  // The replica of that uuid on this node, or null and why not.
  std::pair<std::shared_ptr<ReplicaView>, grpc::Status> Replica(const std::string& uuid) const {
    for (const ServedVolume& volume : volumes.All()) {
      if (IsUuid(uuid, volume.config->uuid)) {
        if (volume.replica == nullptr) {
          return {nullptr,
                  {grpc::StatusCode::FAILED_PRECONDITION,
                   fmt::format("{} is itself the primary of volume {}", config.name, volume.config->name)}};
        }
        return {volume.replica, grpc::Status::OK};
      }
    }
    return {nullptr, NotFound(fmt::format(
                         "{} has no volume of that uuid; compare the configuration files of both nodes",
                         config.name))};
  }

  std::optional<ServedVolume> Find(const std::string& name) const {
    for (ServedVolume& volume : volumes.All()) {
      if (volume.config->name == name) {
        return std::move(volume);
      }
    }
    return std::nullopt;
  }

  // The volume of that name, or none and why its primary is not here. `doing`: "verify it there".
  std::pair<std::optional<ServedVolume>, grpc::Status> Primary(const std::string& name,
                                                               const char* doing) const {
    std::optional<ServedVolume> volume = Find(name);
    if (!volume.has_value()) {
      return {std::nullopt, NotFound(fmt::format("{} has no volume '{}'", config.name, name))};
    }
    if (volume->primary == nullptr) {
      return {std::nullopt,
              {grpc::StatusCode::FAILED_PRECONDITION,
               fmt::format("volume {} is primary on {}; {}", name, volume->config->primary, doing)}};
    }
    return {std::move(volume), grpc::Status::OK};
  }

  grpc::Status Hello(grpc::ServerContext*, const control::HelloRequest* request,
                     control::HelloReply* reply) override {
    if (grpc::Status refusal = Admit(request->node()); !refusal.ok()) {
      return refusal;
    }
    reply->set_node(config.name);
    reply->set_boot(boot);
    *reply->mutable_abilities() = peers.greeting().abilities();
    return grpc::Status::OK;
  }

  grpc::Status CopyState(grpc::ServerContext*, const control::CopyStateRequest* request,
                         control::ReplicaState* reply) override {
    if (grpc::Status refusal = Admit(request->node()); !refusal.ok()) {
      return refusal;
    }
    auto [replica, refusal] = Replica(request->volume());
    if (replica == nullptr) {
      return refusal;
    }
    *reply = replica->CopyState();
    return grpc::Status::OK;
  }

  grpc::Status OpenSession(grpc::ServerContext*, const control::OpenSessionRequest* request,
                           control::OpenSessionReply* reply) override {
    if (grpc::Status refusal = Admit(request->node()); !refusal.ok()) {
      return refusal;
    }
    auto [replica, refusal] = Replica(request->volume());
    if (replica == nullptr) {
      return refusal;
    }
    absl::StatusOr<control::OpenSessionReply> opened = replica->OpenSession(*request);
    if (!opened.ok()) {
      return ToGrpc(opened.status());
    }
    *reply = *std::move(opened);
    reply->mutable_data_addresses()->Assign(config.data.begin(), config.data.end());
    return grpc::Status::OK;
  }

  grpc::Status BeginResync(grpc::ServerContext*, const control::BeginResyncRequest* request,
                           control::BeginResyncReply* reply) override {
    if (grpc::Status refusal = Admit(request->node()); !refusal.ok()) {
      return refusal;
    }
    auto [replica, refusal] = Replica(request->volume());
    if (replica == nullptr) {
      return refusal;
    }
    absl::StatusOr<control::BeginResyncReply> begun = replica->BeginResync(*request);
    if (!begun.ok()) {
      return ToGrpc(begun.status());
    }
    *reply = *std::move(begun);
    return grpc::Status::OK;
  }

  grpc::Status BeginTrailing(grpc::ServerContext*, const control::BeginTrailingRequest* request,
                             control::BeginTrailingReply* reply) override {
    if (grpc::Status refusal = Admit(request->node()); !refusal.ok()) {
      return refusal;
    }
    auto [replica, refusal] = Replica(request->volume());
    if (replica == nullptr) {
      return refusal;
    }
    absl::StatusOr<control::BeginTrailingReply> begun = replica->BeginTrailing(*request);
    if (!begun.ok()) {
      return ToGrpc(begun.status());
    }
    *reply = *std::move(begun);
    return grpc::Status::OK;
  }

  grpc::Status ChangeTree(grpc::ServerContext*, const control::ChangeTreeRequest* request,
                          control::ChangeTreeReply*) override {
    auto [replica, refusal] = Replica(request->volume());
    return replica == nullptr ? refusal : ToGrpc(replica->ChangeTree(*request));
  }

  grpc::Status AdoptMount(grpc::ServerContext*, const control::AdoptMountRequest* request,
                          control::AdoptMountReply*) override {
    auto [replica, refusal] = Replica(request->volume());
    return replica == nullptr ? refusal : ToGrpc(replica->AdoptMount(*request));
  }

  grpc::Status EndResync(grpc::ServerContext*, const control::EndResyncRequest* request,
                         control::EndResyncReply*) override {
    auto [replica, refusal] = Replica(request->volume());
    return replica == nullptr ? refusal : ToGrpc(replica->EndResync(*request));
  }

  grpc::Status Leave(grpc::ServerContext*, const control::LeaveRequest* request,
                     control::LeaveReply*) override {
    auto [replica, refusal] = Replica(request->volume());
    return replica == nullptr ? refusal : ToGrpc(replica->Leave(*request));
  }

  grpc::Status Inventory(grpc::ServerContext*, const control::InventoryRequest* request,
                         grpc::ServerWriter<control::InventoryItem>* writer) override {
    auto [replica, refusal] = Replica(request->volume());
    if (replica == nullptr) {
      return refusal;
    }
    const recovery::InventoryDetail detail =
        request->full() ? recovery::InventoryDetail::kFull : recovery::InventoryDetail::kCompare;
    const absl::StatusOr<recovery::Inventory> inventory = replica->Inventory(detail);
    if (!inventory.ok()) {
      return ToGrpc(inventory.status());
    }
    for (const recovery::TreeItem& item : *inventory) {
      if (!writer->Write(ToMessage(item, detail))) {
        return {grpc::StatusCode::CANCELLED, "the caller is gone"};
      }
    }
    return grpc::Status::OK;
  }

  grpc::Status Checksums(grpc::ServerContext*, const control::ChecksumsRequest* request,
                         control::ChecksumsReply* reply) override {
    auto [replica, refusal] = Replica(request->volume());
    if (replica == nullptr) {  // not NOT_FOUND, which says of a file that it is missing in the copy
      return {grpc::StatusCode::FAILED_PRECONDITION, refusal.error_message()};
    }
    const absl::StatusOr<recovery::BlockChecksums> sums =
        replica->Checksums(FileId{request->file()}, {request->offset(), request->length()}, request->block());
    if (!sums.ok()) {
      return ToGrpc(sums.status());
    }
    reply->set_size(sums->size);
    for (const recovery::BlockSum& sum : sums->sums) {
      reply->add_sums(sum.high);
      reply->add_sums(sum.low);
    }
    return grpc::Status::OK;
  }

  grpc::Status Status(grpc::ServerContext*, const control::StatusRequest*,
                      control::StatusReply* reply) override {
    reply->set_node(config.name);
    for (const ServedVolume& volume : volumes.All()) {
      control::VolumeStatus& status = *reply->add_volumes();
      status.set_name(volume.config->name);
      status.set_primary(volume.config->primary);
      status.set_rpo(volume.config->rpo);
      status.set_role(volume.primary != nullptr             ? "primary"
                      : volume.config->HasNode(config.name) ? "replica"
                                                            : "spare");
      status.set_mount(volume.config->mount.string());
      status.set_on_loss(Name(volume.config->on_loss));
      if (volume.primary != nullptr) {
        volume.primary->FillStatus(status);
      } else {
        volume.replica->FillStatus(status);
      }
    }
    for (std::string& warning : peers.Warnings()) {
      reply->add_warnings(std::move(warning));
    }
    for (control::PeerStatus& peer : peers.Peers()) {
      *reply->add_peers() = std::move(peer);
    }
    return grpc::Status::OK;
  }

  grpc::Status Ping(grpc::ServerContext*, const control::PingRequest* request,
                    control::PingReply* reply) override {
    std::optional<ServedVolume> volume;
    if (!request->volume().empty()) {
      grpc::Status refusal;
      std::tie(volume, refusal) = Primary(request->volume(), "ping from there");
      if (!volume.has_value()) {
        return refusal;
      }
    }
    const absl::StatusOr<std::chrono::nanoseconds> control = peers.Ping(request->node());
    if (!control.ok()) {
      return ToGrpc(control.status());
    }
    reply->set_node(request->node());
    reply->set_control_ns(control->count());
    for (const ServedVolume& candidate : volumes.All()) {
      if (!volume.has_value() && candidate.primary != nullptr && candidate.config->HasNode(request->node())) {
        volume = candidate;
      }
    }
    if (!volume.has_value()) {
      return grpc::Status::OK;
    }
    reply->set_volume(volume->config->name);
    return ToGrpc(volume->primary->Ping(request->node(), *reply));
  }

  grpc::Status Verify(grpc::ServerContext* context, const control::VerifyRequest* request,
                      grpc::ServerWriter<control::VerifyProgress>* writer) override {
    const auto [volume, refusal] = Primary(request->volume(), "verify it there");
    if (!volume.has_value()) {
      return refusal;
    }
    return ToGrpc(volume->primary->Verify([&](const control::VerifyProgress& progress) {
      return !context->IsCancelled() && writer->Write(progress);
    }));
  }

  grpc::Status Events(grpc::ServerContext* context, const control::EventsRequest* request,
                      grpc::ServerWriter<control::Event>* writer) override {
    const Follower follower(followers);
    if (request->follow() && follower.number > kMaxFollowers) {
      return {grpc::StatusCode::RESOURCE_EXHAUSTED,
              fmt::format("{} callers follow the events of {} already", kMaxFollowers, config.name)};
    }
    uint64_t after = request->after();
    while (!stopping && !context->IsCancelled()) {
      const EventJournal::Page page = journal.Read(after, kEventsAtOnce);
      bool gap = page.gap;
      for (const Event& event : page.events) {
        after = event.seq;
        if (!request->volume().empty() && !HasVolume(event, request->volume())) {
          continue;
        }
        control::Event message = ToMessage(event);
        message.set_gap(std::exchange(gap, false));
        if (!writer->Write(message)) {
          return {grpc::StatusCode::CANCELLED, "the caller is gone"};
        }
      }
      if (page.events.empty()) {
        if (!request->follow()) {
          return grpc::Status::OK;
        }
        // Woken by an event and by Stop(); looks now and then whether the caller is still there.
        (void)journal.Wait(after, kFollowerPause);
      }
    }
    return {grpc::StatusCode::UNAVAILABLE, fmt::format("{} stops", config.name)};
  }

  grpc::Status Resync(grpc::ServerContext*, const control::ResyncRequest* request,
                      control::ResyncReply*) override {
    const auto [volume, refusal] = Primary(request->volume(), "resync it from there");
    return volume.has_value() ? ToGrpc(volume->primary->Resync(request->node(), request->full())) : refusal;
  }

  // --- volumes and copies that come and go ---

  grpc::Status HoldCopy(grpc::ServerContext*, const control::HoldCopyRequest* request,
                        control::HoldCopyReply*) override {
    const grpc::Status refusal = Admit(request->node());
    return refusal.ok() ? ToGrpc(changes.HoldCopy(*request)) : refusal;
  }

  grpc::Status DropCopy(grpc::ServerContext*, const control::DropCopyRequest* request,
                        control::DropCopyReply*) override {
    const grpc::Status refusal = Admit(request->node());
    return refusal.ok() ? ToGrpc(changes.DropCopy(*request)) : refusal;
  }

  grpc::Status CreateVolume(grpc::ServerContext* context, const control::CreateVolumeRequest* request,
                            control::CreateVolumeReply*) override {
    const grpc::Status refusal = OnlyFromHere(*context);
    return refusal.ok() ? ToGrpc(changes.CreateVolume(*request)) : refusal;
  }

  grpc::Status ChangeMembers(grpc::ServerContext* context, const control::ChangeMembersRequest* request,
                             control::ChangeMembersReply* reply) override {
    const grpc::Status refusal = OnlyFromHere(*context);
    return refusal.ok() ? ToGrpc(changes.ChangeMembers(*request, *reply)) : refusal;
  }

  grpc::Status SetReachable(grpc::ServerContext* context, const control::SetReachableRequest* request,
                            control::SetReachableReply*) override {
    if (grpc::Status refusal = OnlyFromHere(*context); !refusal.ok()) {
      return refusal;
    }
    if (config.Peer(request->node()) == nullptr) {
      return NotFound(fmt::format("{} is no [[node]] of {}'s configuration", request->node(), config.name));
    }
    peers.SetReachable(request->node(), request->reachable());
    for (const ServedVolume& volume : volumes.All()) {
      if (volume.primary != nullptr) {
        volume.primary->SetReachable(request->node(), request->reachable());
      } else {
        volume.replica->SetReachable(request->node(), request->reachable());
      }
    }
    return grpc::Status::OK;
  }
};

ControlService::ControlService(const Config& config, uint64_t boot, PeerWatch& peers, EventJournal& journal,
                               ServedVolumes& volumes, VolumeChanges& changes)
    : impl_(std::make_unique<Impl>(config, boot, peers, journal, volumes, changes)) {}

ControlService::~ControlService() { Stop(); }

absl::Status ControlService::Start() {
  impl_->stopping = false;
  grpc::ServerBuilder builder;
  grpc::ResourceQuota quota;
  quota.SetMaxThreads(kMaxThreads);
  builder.SetResourceQuota(quota);
  // Two daemons on one port would each get half of the calls.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  // The clients' keepalive (proto/control_client.cc) is no abuse.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 500);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
  std::vector<std::string> addresses = impl_->config.control;
  addresses.push_back(impl_->config.ControlSocket());
  std::vector<int> ports(addresses.size(), 0);
  for (size_t i = 0; i < addresses.size(); ++i) {
    builder.AddListeningPort(addresses[i], grpc::InsecureServerCredentials(), &ports[i]);
  }
  builder.RegisterService(impl_.get());
  impl_->server = builder.BuildAndStart();
  if (impl_->server == nullptr) {
    for (size_t i = 0; i < addresses.size(); ++i) {
      if (ports[i] == 0) {
        return absl::UnavailableError(
            fmt::format("cannot listen on control address {}: it is in use, or not an address of this node",
                        addresses[i]));
      }
    }
    return absl::UnavailableError("cannot start the control service");
  }
  const std::string socket = addresses.back().substr(std::strlen("unix:"));
  if (::chmod(socket.c_str(), 0600) != 0) {
    return absl::ErrnoToStatus(errno, fmt::format("cannot protect {}", socket));
  }
  return absl::OkStatus();
}

void ControlService::Stop() {
  if (impl_->server != nullptr) {
    impl_->stopping = true;
    impl_->journal.Wake();
    impl_->server->Shutdown(std::chrono::system_clock::now() + kStopGrace);
    impl_->server->Wait();
    impl_->server.reset();
  }
}

}  // namespace pmirror::server
