// SPDX-License-Identifier: BSD-3-Clause
// How a replicated volume is brought to what the primary has. See replica_volume.h and docs/internals/resync.md.
#include <cerrno>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "recovery/random_value.h"
#include "server/replica_volume.h"
#include "spdlog/spdlog.h"

namespace pmirror::server {
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

// Not when there never was a way back, there is none any more, or the log that there is leads to the same point. Under control_mutex_.
bool ReplicaVolume::NeedsUndo() const {
  const bool unused = record_.generation == 0 && record_.mount_number == 0;
  return !undo_->active() && !record_.resyncing && !unused;
}

// Under control_mutex_, with no session. From here on the undo log is active, or there is no way back, and undo_->id() says so.
absl::Status ReplicaVolume::BeginUndo() {
  if (!NeedsUndo()) {
    return absl::OkStatus();
  }
  const std::lock_guard tree_lock(namespace_mutex_);
  domain_->TreeChanged();
  if (absl::Status status = PersistAll(); !status.ok()) {
    return status;
  }
  UndoPoint point{.record = record_};
  point.record.operation = applied_operation();
  if (absl::Status status = undo_->Begin(point, recovery::RandomNumber()); !status.ok()) {
    undo_->GiveUpWithout(std::string(status.message()));
  }
  return absl::OkStatus();
}

// "", or when that was.
static std::string CutAt(uint64_t wall) {
  return wall == 0
             ? ""
             : absl::StrCat(", cut at ", absl::FormatTime(absl::FromUnixNanos(static_cast<int64_t>(wall))));
}

void ReplicaVolume::FillPromotable(State& state) const {
  const VolumeRecord& record = state.record;
  if (record.trailing && state.refusal.empty()) {
    const std::lock_guard lock(batch_mutex_);
    state.batch = batch_.number;
    state.promotable = batch_half_done_ == 0 && doubt_.empty();
    state.image =
        !doubt_.empty() ? doubt_
        : state.promotable
            ? absl::StrCat("batch ", batch_.number, " of mount ", record.mount_number, CutAt(batch_.cut_at))
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
  const auto check = [&] {
    return CheckHistory(request.node, request.epoch, request.mount_number, request.generation);
  };
  std::unique_lock lock(control_mutex_);
  absl::Status status = check();
  if (status.ok() && NeedsUndo()) {
    // Whoever asks for the state waits for the lock. Most of what BeginUndo has to make durable is so before.
    lock.unlock();
    domain_->TreeChanged();
    status = PersistAll();
    lock.lock();
    status.Update(check());
  }
  if (!status.ok()) {
    return status;
  }
  resync_ = {};
  epoch_.store(Raw(request.epoch), std::memory_order_release);
  if (!sessions_.EndWhere([](const Session&) { return true; }, Deadline::After(options_.handover_wait))) {
    return absl::UnavailableError("connections of the volume have not ended yet; try again");
  }
  if (status = EndTrailing(Next::kResync); !status.ok()) {
    return status;
  }
  if (status = BeginUndo(); !status.ok()) {
    return status;
  }
  VolumeRecord next = record_;
  next.epoch = request.epoch;
  next.undo = undo_->id();
  next.generation = request.generation;
  next.clean = false;
  next.resyncing = true;
  next.boot = recovery::BootId();
  if (status = StoreRecord(next); !status.ok()) {
    return status;
  }
  resync_ = {.token = recovery::RandomNumber(),
             .mount_number = request.mount_number,
             .generation = request.generation};
  spdlog::info("event=resync_began volume={} node={} epoch={} mount_number={}", options_.name, request.node,
               Raw(request.epoch), request.mount_number);
  return resync_.token;
}

// Under control_mutex_.
absl::Status ReplicaVolume::CheckToken(uint64_t token) const {
  return token != 0 && token == resync_.token
             ? absl::OkStatus()
             : absl::AbortedError(
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
  resync_.adopted = true;
  return absl::OkStatus();
}

absl::Status ReplicaVolume::EndResync(uint64_t token) {
  std::unique_lock lock(control_mutex_);
  if (absl::Status status = CheckToken(token); !status.ok()) {
    return status;
  }
  // Whoever asks for the state waits for the lock. What comes in during the wait is as durable as with a member: what is acknowledged as such.
  lock.unlock();
  const uint64_t operation = applied_operation();
  domain_->TreeChanged();
  absl::Status persisted = PersistAll();
  lock.lock();
  persisted.Update(CheckToken(token));
  if (!persisted.ok()) {
    return persisted;
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
