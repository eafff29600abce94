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
#include <utility>

#include "proto/control.grpc.pb.h"

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

void ToMessage(const OpTime& time, control::Time& message) {
  message.set_seconds(time.seconds);
  message.set_nanoseconds(time.nanoseconds);
}

control::InventoryItem ToMessage(const recovery::TreeItem& item, recovery::InventoryDetail detail) {
  control::InventoryItem message;
  message.set_file(Raw(item.id));
  message.set_path(item.path);
  message.set_mode(item.mode);
  message.set_uid(item.uid);
  message.set_gid(item.gid);
  message.set_size(item.size);
  message.set_rdev(item.rdev);
  message.set_target(item.target);
  message.set_xattr_crc(item.xattr_crc);
  message.set_links(item.links);
  if (detail == recovery::InventoryDetail::kFull) {
    message.set_orphan(item.orphan);
    for (const auto& [name, value] : item.xattrs) {
      control::Xattr& xattr = *message.add_xattrs();
      xattr.set_name(name);
      xattr.set_value(value);
    }
    ToMessage(item.atime, *message.mutable_atime());
    ToMessage(item.mtime, *message.mutable_mtime());
  }
  return message;
}

control::Event ToMessage(const Event& event) {
  control::Event message;
  message.set_seq(event.seq);
  message.set_time_us(
      std::chrono::duration_cast<std::chrono::microseconds>(event.time.time_since_epoch()).count());
  message.set_severity(SeverityName(event.severity));
  message.set_event(event.name);
  message.set_node(event.node);
  for (const auto& [key, value] : event.fields) {
    control::EventField& field = *message.add_fields();
    field.set_key(key);
    field.set_value(value);
  }
  return message;
}

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
       std::vector<ServedVolume> served)
      : config(own_config),
        boot(own_boot),
        peers(peer_watch),
        journal(own_journal),
        volumes(std::move(served)) {}

  const Config& config;
  const uint64_t boot;
  PeerWatch& peers;
  EventJournal& journal;
  const std::vector<ServedVolume> volumes;
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

  // The replica of that uuid on this node, or null and why not.
  std::pair<ReplicaView*, grpc::Status> Replica(const std::string& uuid) const {
    for (const ServedVolume& volume : volumes) {
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

  const ServedVolume* Find(const std::string& name) const {
    for (const ServedVolume& volume : volumes) {
      if (volume.config->name == name) {
        return &volume;
      }
    }
    return nullptr;
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
    if (replica == nullptr) {
      return refusal;
    }
    const absl::StatusOr<recovery::BlockChecksums> sums =
        replica->Checksums(FileId{request->file()}, {request->offset(), request->length()}, request->block());
    if (!sums.ok()) {
      return ToGrpc(sums.status());
    }
    reply->set_size(sums->size);
    reply->mutable_crc()->Assign(sums->crc.begin(), sums->crc.end());
    return grpc::Status::OK;
  }

  grpc::Status Status(grpc::ServerContext*, const control::StatusRequest*,
                      control::StatusReply* reply) override {
    reply->set_node(config.name);
    for (const ServedVolume& volume : volumes) {
      control::VolumeStatus& status = *reply->add_volumes();
      status.set_name(volume.config->name);
      status.set_primary(volume.config->primary);
      status.set_rpo(volume.config->rpo);
      status.set_role(volume.primary != nullptr ? "primary" : "replica");
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
    const ServedVolume* volume = nullptr;
    if (!request->volume().empty()) {
      volume = Find(request->volume());
      if (volume == nullptr) {
        return NotFound(fmt::format("{} has no volume '{}'", config.name, request->volume()));
      }
      if (volume->primary == nullptr) {
        return {grpc::StatusCode::FAILED_PRECONDITION,
                fmt::format("volume {} is primary on {}; ping from there", volume->config->name,
                            volume->config->primary)};
      }
    }
    const absl::StatusOr<std::chrono::nanoseconds> control = peers.Ping(request->node());
    if (!control.ok()) {
      return ToGrpc(control.status());
    }
    reply->set_node(request->node());
    reply->set_control_ns(control->count());
    for (const ServedVolume& candidate : volumes) {
      if (volume == nullptr && candidate.primary != nullptr && HasCopy(*candidate.config, request->node())) {
        volume = &candidate;
      }
    }
    if (volume == nullptr) {
      return grpc::Status::OK;
    }
    reply->set_volume(volume->config->name);
    return ToGrpc(volume->primary->Ping(request->node(), *reply));
  }

  static bool HasCopy(const VolumeConfig& volume, const std::string& node) {
    for (const std::string& name : volume.nodes) {
      if (name == node) {
        return true;
      }
    }
    return false;
  }

  grpc::Status Verify(grpc::ServerContext* context, const control::VerifyRequest* request,
                      grpc::ServerWriter<control::VerifyProgress>* writer) override {
    const ServedVolume* volume = Find(request->volume());
    if (volume == nullptr) {
      return NotFound(fmt::format("{} has no volume '{}'", config.name, request->volume()));
    }
    if (volume->primary == nullptr) {
      return {grpc::StatusCode::FAILED_PRECONDITION,
              fmt::format("volume {} is primary on {}; verify it there", volume->config->name,
                          volume->config->primary)};
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
    const ServedVolume* volume = Find(request->volume());
    if (volume == nullptr) {
      return NotFound(fmt::format("{} has no volume '{}'", config.name, request->volume()));
    }
    if (volume->primary == nullptr) {
      return {grpc::StatusCode::FAILED_PRECONDITION,
              fmt::format("volume {} is primary on {}; resync it from there", volume->config->name,
                          volume->config->primary)};
    }
    return ToGrpc(volume->primary->Resync(request->node(), request->full()));
  }

  grpc::Status SetReachable(grpc::ServerContext* context, const control::SetReachableRequest* request,
                            control::SetReachableReply*) override {
    if (context->peer().rfind("unix:", 0) != 0) {
      return {grpc::StatusCode::PERMISSION_DENIED, "only over the daemon's own UNIX socket"};
    }
    if (config.Peer(request->node()) == nullptr) {
      return NotFound(fmt::format("{} is no [[node]] of {}'s configuration", request->node(), config.name));
    }
    peers.SetReachable(request->node(), request->reachable());
    for (const ServedVolume& volume : volumes) {
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
                               std::vector<ServedVolume> volumes)
    : impl_(std::make_unique<Impl>(config, boot, peers, journal, std::move(volumes))) {}

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
