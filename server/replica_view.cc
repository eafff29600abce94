// SPDX-License-Identifier: BSD-3-Clause
// Messages to calls and back.
#include "server/replica_view.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <utility>

#include "server/event_log.h"

namespace pmirror::server {

absl::StatusOr<control::OpenSessionReply> ReplicaVolumeView::OpenSession(
    const control::OpenSessionRequest& request) {
  ReplicaVolume::SessionRequest wanted;
  wanted.node = request.node();
  wanted.epoch = Epoch{request.epoch()};
  wanted.kind = request.daemon() ? SessionKind::kDaemon : SessionKind::kProcess;
  wanted.session = SessionId{request.session()};
  wanted.process = request.process();
  wanted.generation = request.generation();
  wanted.mount_number = request.mount_number();
  const absl::StatusOr<SessionTable::Permit> permit = volume_.PrepareSession(wanted);
  if (!permit.ok()) {
    return permit.status();
  }
  control::OpenSessionReply reply;
  reply.set_session(Raw(permit->session));
  reply.set_ticket(permit->ticket.data(), permit->ticket.size());
  return reply;
}

control::ReplicaState ReplicaVolumeView::CopyState() {
  const ReplicaVolume::State state = volume_.state();
  control::ReplicaState message;
  message.set_volume(state.record.volume.data(), state.record.volume.size());
  message.set_generation(state.record.generation);
  message.set_mount_number(state.record.mount_number);
  message.set_operation(state.operation);
  message.set_clean(state.record.clean);
  message.set_empty(state.empty);
  message.set_epoch(Raw(state.record.epoch));
  message.set_refusal(state.refusal);
  message.set_persistence_domain(Name(state.domain));
  message.set_resyncing(state.record.resyncing);
  message.set_restarted(state.restarted_in_use);
  message.set_promotable(state.promotable);
  message.set_image(state.image);
  message.set_trailing(state.record.trailing);
  message.set_batch(state.batch);
  return message;
}

absl::Status ReplicaVolumeView::Leave(const control::LeaveRequest& request) {
  return volume_.Leave({.epoch = Epoch{request.epoch()},
                        .operation = request.operation(),
                        .generation = request.generation(),
                        .mount_number = request.mount_number()});
}

absl::StatusOr<control::BeginResyncReply> ReplicaVolumeView::BeginResync(
    const control::BeginResyncRequest& request) {
  const absl::StatusOr<uint64_t> token = volume_.BeginResync({.node = request.node(),
                                                              .epoch = Epoch{request.epoch()},
                                                              .generation = request.generation(),
                                                              .mount_number = request.mount_number()});
  if (!token.ok()) {
    return token.status();
  }
  control::BeginResyncReply reply;
  reply.set_token(*token);
  return reply;
}

absl::StatusOr<control::BeginTrailingReply> ReplicaVolumeView::BeginTrailing(
    const control::BeginTrailingRequest& request) {
  const absl::StatusOr<uint64_t> operation = volume_.BeginTrailing({.node = request.node(),
                                                                    .epoch = Epoch{request.epoch()},
                                                                    .generation = request.generation(),
                                                                    .mount_number = request.mount_number()});
  if (!operation.ok()) {
    return operation.status();
  }
  control::BeginTrailingReply reply;
  reply.set_operation(*operation);
  return reply;
}

absl::Status ReplicaVolumeView::ChangeTree(const control::ChangeTreeRequest& request) {
  for (const std::string& bytes : request.operations()) {
    const Result<NamespaceOp> op = DecodeNamespaceOp(std::as_bytes(std::span(bytes)));
    if (!op.ok()) {
      return absl::InvalidArgumentError("an operation of the resync is malformed");
    }
    if (absl::Status status = volume_.ChangeTree(request.token(), op.value()); !status.ok()) {
      return status;
    }
  }
  return absl::OkStatus();
}

absl::Status ReplicaVolumeView::AdoptMount(const control::AdoptMountRequest& request) {
  return volume_.AdoptMount(request.token(), request.operation());
}

absl::Status ReplicaVolumeView::EndResync(const control::EndResyncRequest& request) {
  return volume_.EndResync(request.token());
}

absl::StatusOr<recovery::Inventory> ReplicaVolumeView::Inventory(recovery::InventoryDetail detail) {
  UniqueFd root(::fcntl(volume_.backing_directory(), F_DUPFD_CLOEXEC, 0));
  if (!root.valid()) {
    return absl::ErrnoToStatus(errno, "cannot duplicate the descriptor of the backing directory");
  }
  const std::lock_guard lock(tree_mutex_);
  tree_ = std::make_unique<recovery::LocalTree>(std::move(root), detail);
  return tree_->Inventory();
}

absl::StatusOr<recovery::BlockChecksums> ReplicaVolumeView::Checksums(FileId file, Extent extent,
                                                                      uint32_t block) {
  const Result<UniqueFd> fd = volume_.OpenFile(file);
  if (fd.ok()) {
    return recovery::ChecksumBlocks(fd.value().get(), extent, block);
  }
  if (fd.error().code != ENOENT && fd.error().code != ESTALE) {  // it may well be there
    return absl::ErrnoToStatus(fd.error().code, fmt::format("open the file of id {:#x}", Raw(file)));
  }
  // Not known by its id: put there by somebody else, perhaps. Who wants to compare such ones, too, asks for the inventory first.
  const std::lock_guard lock(tree_mutex_);
  if (tree_ == nullptr) {
    return absl::NotFoundError(fmt::format("no file of id {:#x}", Raw(file)));
  }
  return tree_->Checksums(file, extent, block);
}

ReplicaVolumeView::Primary ReplicaVolumeView::LookForPrimary(const ReplicaVolume::State& state) const {
  const auto primary = std::find_if(
      state.sessions.begin(), state.sessions.end(), [](const ReplicaVolume::SessionState& session) {
        return session.connected && session.identity.kind == SessionKind::kDaemon;
      });
  if (primary == state.sessions.end()) {
    return {"", false, "the primary is not connected"};
  }
  if (primary->silence > volume_.options().deadline) {
    using std::chrono::milliseconds;
    return {primary->identity.node, true,
            fmt::format("no word from {} for {} ms", primary->identity.node,
                        std::chrono::duration_cast<milliseconds>(primary->silence).count())};
  }
  return {primary->identity.node, false, ""};
}

void ReplicaVolumeView::FillStatus(control::VolumeStatus& status) {
  const ReplicaVolume::State state = volume_.state();
  status.set_epoch(Raw(state.record.epoch));
  control::ReplicaStatus& own = *status.add_replicas();
  own.set_node(node_);
  own.set_placement("message");
  own.set_recaptures(state.counters.recaptures);
  const Primary primary = LookForPrimary(state);
  if (!state.refusal.empty()) {
    own.set_state("failed");
    own.set_reason(state.refusal);
  } else if (state.record.resyncing) {
    own.set_state("resyncing");
    own.set_reason(
        state.promotable
            ? fmt::format("its files are a mixture until the resync has ended; promotable to {}", state.image)
            : state.image);
  } else if (!primary.missing.empty()) {
    own.set_state("disconnected");
    own.set_reason(primary.missing);
  } else {
    own.set_state("in-sync");
    own.set_reason(fmt::format("as {} knows: the primary is connected", node_));
  }
}

void ReplicaVolumeView::WatchPrimary() {
  const ReplicaVolume::State state = volume_.state();
  const Primary primary = LookForPrimary(state);
  if (primary.missing.empty()) {
    if (std::exchange(lost_, false)) {
      LogEvent(LogLevel::kInfo, "primary_back", {{"volume", volume_.options().name}, {"node", primary_}});
    }
    primary_ = primary.node;
    missing_since_.reset();
    return;
  }
  if (primary_.empty() || lost_) {
    return;
  }
  if (state.record.clean) {
    primary_.clear();  // it has left
    return;
  }
  const auto now = std::chrono::steady_clock::now();
  missing_since_ = missing_since_.value_or(now);
  if (primary.silent || now - *missing_since_ >= volume_.options().deadline) {
    lost_ = true;
    LogEvent(LogLevel::kWarn, "primary_lost",
             {{"volume", volume_.options().name}, {"node", primary_}, {"reason", primary.missing}});
  }
}

void ReplicaVolumeView::SetReachable(const std::string& node, bool reachable) {
  listener_.SetReachable(node, reachable);
}

}  // namespace pmirror::server
