// SPDX-License-Identifier: BSD-3-Clause
// How a replicated volume is brought to what the primary has. See replica_volume.h and docs/internals/resync.md.
#include <sys/random.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "server/replica_volume.h"
#include "spdlog/spdlog.h"

namespace pmirror::server {
namespace {

uint64_t RandomToken() {
  uint64_t token = 0;
  while (token == 0) {
    if (::getrandom(&token, sizeof token, 0) != sizeof token) {
      token = 0;
    }
  }
  return token;
}

}  // namespace

// At the start: frames of a resync may come before it is begun anew.
absl::Status ReplicaVolume::ContinueUndo() {
  if (record_.resyncing && record_.undo != 0) {
    const absl::Status status = undo_->Continue(record_.undo);
    if (status.ok()) {
      return status;
    }
    undo_->GiveUpWithout(std::string(status.message()));
    VolumeRecord next = record_;
    next.undo = 0;
    if (absl::Status stored = StoreRecord(next); !stored.ok()) {
      return stored;
    }
  }
  // What is there leads nowhere: the resync was not recorded as begun, or was as ended.
  if (absl::Status status =
          RemoveUndoLog(index_->own_directory(), options_.backing, recovery::LogStorage::Real());
      !status.ok()) {
    spdlog::warn("event=undo_log_not_removed volume={} backing={} reason=\"{}\"", options_.name,
                 options_.backing, std::string(status.message()));
  }
  return absl::OkStatus();
}

// Under control_mutex_, with no session. From here on the undo log is active, or there is no way back, and undo_->id() says so.
absl::Status ReplicaVolume::BeginUndo() {
  const bool unused = record_.generation == 0 && record_.mount_number == 0;
  if (undo_->active() || record_.resyncing || unused) {
    return absl::OkStatus();  // it leads to the same point; there is none; there never was one
  }
  const std::lock_guard tree_lock(namespace_mutex_);
  domain_->TreeChanged();
  if (const int error = storage_error_ != 0 ? storage_error_.load() : domain_->PersistEverything();
      error != 0) {
    storage_error_ = error;
    return absl::DataLossError(absl::StrCat("the storage of ", options_.backing,
                                            " failed: ", absl::ErrnoToStatus(error, "").ToString()));
  }
  UndoPoint point{.record = record_};
  point.record.operation = applied_operation();
  if (absl::Status status = undo_->Begin(point, RandomToken()); !status.ok()) {
    undo_->GiveUpWithout(std::string(status.message()));
  }
  return absl::OkStatus();
}

void ReplicaVolume::FillPromotable(State& state) const {
  const VolumeRecord& record = state.record;
  if (record.trailing && state.refusal.empty()) {
    const std::lock_guard lock(batch_mutex_);
    state.batch = batch_.number;
    state.promotable = batch_half_done_ == 0 && doubt_.empty();
    state.image = !doubt_.empty() ? doubt_
                  : state.promotable
                      ? absl::StrCat("batch ", batch_.number, " of mount ", record.mount_number)
                      : absl::StrCat("batch ", batch_half_done_, " could not be applied in full");
    return;
  }
  if (!record.resyncing) {
    state.promotable = record.generation != 0 && state.refusal.empty();
    state.image = !state.refusal.empty() ? state.refusal
                  : state.promotable     ? "what its files show"
                                         : "it never took part";
    return;
  }
  if (const std::optional<UndoPoint> point = undo_->point(); point.has_value()) {
    state.promotable = true;
    state.image = absl::StrCat("its last consistency point, operation ", point->record.operation,
                               " of mount ", point->record.mount_number);
    return;
  }
  const std::string reason = undo_->reason();
  state.image = absl::StrCat("not promotable until the resync has ended: ",
                             reason.empty() ? "there is no way back to an earlier state" : reason);
}

absl::StatusOr<uint64_t> ReplicaVolume::BeginResync(const ResyncRequest& request) {
  const std::lock_guard lock(control_mutex_);
  if (absl::Status status =
          CheckHistory(request.node, request.epoch, request.mount_number, request.generation);
      !status.ok()) {
    return status;
  }
  resync_ = {};
  epoch_.store(Raw(request.epoch), std::memory_order_release);
  if (!sessions_.EndWhere([](const Session&) { return true; }, Deadline::After(options_.handover_wait))) {
    return absl::UnavailableError("connections of the volume have not ended yet; try again");
  }
  if (absl::Status status = EndTrailing(); !status.ok()) {
    return status;
  }
  if (absl::Status status = BeginUndo(); !status.ok()) {
    return status;
  }
  VolumeRecord next = record_;
  next.epoch = request.epoch;
  next.undo = undo_->id();
  next.generation = request.generation;
  next.clean = false;
  next.resyncing = true;
  next.boot = recovery::BootId();
  if (absl::Status status = StoreRecord(next); !status.ok()) {
    return status;
  }
  resync_ = {.token = RandomToken(), .mount_number = request.mount_number, .generation = request.generation};
  spdlog::info("event=resync_began volume={} node={} epoch={} mount_number={}", options_.name, request.node,
               Raw(request.epoch), request.mount_number);
  return resync_.token;
}

// Under control_mutex_.
absl::Status ReplicaVolume::CheckToken(uint64_t token) const {
  return token != 0 && token == resync_.token
             ? absl::OkStatus()
             : absl::FailedPreconditionError(
                   absl::StrCat("this resync of ", options_.name, " was ended by another, or by a restart"));
}

absl::Status ReplicaVolume::ChangeTree(uint64_t token, const NamespaceOp& op) {
  const std::lock_guard lock(control_mutex_);
  if (absl::Status status = CheckToken(token); !status.ok()) {
    return status;
  }
  const std::lock_guard tree_lock(namespace_mutex_);
  // No size generation is later than operation 0: the first capture of any file is taken.
  const NamespaceApplier::Applied applied = ChangeTree(op, 0);
  if (applied.outcome) {
    return absl::InternalError(absl::StrCat(
        Name(op.kind), " of object ", Raw(op.target), " named \"", op.name, "\" in ", Raw(op.parent),
        " was refused: ", Name(applied.outcome->code), ", errno ", applied.outcome->error_number));
  }
  return absl::OkStatus();
}

absl::Status ReplicaVolume::AdoptMount(uint64_t token, uint64_t operation) {
  const std::lock_guard lock(control_mutex_);
  if (absl::Status status = CheckToken(token); !status.ok()) {
    return status;
  }
  VolumeRecord next = record_;
  next.mount_number = resync_.mount_number;
  next.undo = undo_->id();
  next.rolled_back = false;
  next.operation = 0;  // nothing of it is known to be durable
  if (absl::Status status = StoreRecord(next); !status.ok()) {
    return status;
  }
  const std::lock_guard tree_lock(namespace_mutex_);
  mount_number_ = next.mount_number;
  applied_ = operation;
  operation_durable_ = 0;
  restarted_in_use_ = false;
  files_->ForgetOrders();
  if (const int error = MarkOperation(mount_number_, operation); error != 0) {
    return absl::ErrnoToStatus(error, absl::StrCat("store the operation mark of ", options_.backing));
  }
  return absl::OkStatus();
}

absl::Status ReplicaVolume::EndResync(uint64_t token) {
  const std::lock_guard lock(control_mutex_);
  if (absl::Status status = CheckToken(token); !status.ok()) {
    return status;
  }
  const uint64_t operation = applied_operation();
  domain_->TreeChanged();
  if (const int error = storage_error_ != 0 ? storage_error_.load() : domain_->PersistEverything();
      error != 0) {
    storage_error_ = error;
    return absl::DataLossError(absl::StrCat("the storage of ", options_.backing,
                                            " failed: ", absl::ErrnoToStatus(error, "").ToString()));
  }
  VolumeRecord next = record_;
  next.operation = operation;
  next.resyncing = false;
  next.undo = 0;
  if (absl::Status status = StoreRecord(next); !status.ok()) {
    return status;
  }
  // Only now: the record says that this log leads nowhere any more.
  if (absl::Status status = undo_->End(); !status.ok()) {
    spdlog::warn("event=undo_log_not_removed volume={} backing={} reason=\"{}\"", options_.name,
                 options_.backing, std::string(status.message()));
  }
  resync_ = {};
  spdlog::info("event=resync_ended volume={} mount_number={} operation={}", options_.name, next.mount_number,
               operation);
  return absl::OkStatus();
}

}  // namespace pmirror::server
