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
  VolumeRecord next = record_;
  next.epoch = request.epoch;
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
  const NamespaceApplier::Applied applied = tree_->Apply(op, 0);
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
  if (absl::Status status = StoreRecord(next); !status.ok()) {
    return status;
  }
  resync_ = {};
  spdlog::info("event=resync_ended volume={} mount_number={} operation={}", options_.name, next.mount_number,
               operation);
  return absl::OkStatus();
}

}  // namespace pmirror::server
