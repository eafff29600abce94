// SPDX-License-Identifier: BSD-3-Clause
// The control side of a replicated volume; replica_volume_data.cc has the data plane. See replica_volume.h.
#include "server/replica_volume.h"

#include <fcntl.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "recovery/backing_owner.h"
#include "recovery/replace_file.h"
#include "spdlog/spdlog.h"

namespace pmirror::server {
namespace {

absl::Status Superseded(const std::string& what) { return absl::FailedPreconditionError(what); }

}  // namespace

ReplicaVolume::ReplicaVolume(Options options)
    : options_(std::move(options)),
      record_path_(absl::StrCat(options_.state_directory, "/", options_.name, ".copy")),
      sessions_(options_.sessions),
      journal_(options_.backing, recovery::LogStorage::Real()) {}

ReplicaVolume::~ReplicaVolume() { Shutdown().IgnoreError(); }

absl::StatusOr<std::unique_ptr<ReplicaVolume>> ReplicaVolume::Open(Options options) {
  std::unique_ptr<ReplicaVolume> volume(new ReplicaVolume(std::move(options)));
  if (absl::Status status = volume->LoadRecord(); !status.ok()) {
    return status;
  }
  if (absl::Status status = volume->OpenBacking(); !status.ok()) {
    return status;
  }
  const ReplicaVolume::State state = volume->state();
  spdlog::info(
      "event=replica_opened volume={} backing={} objects={} without_id={} generation={} epoch={} "
      "mount_number={} "
      "operation={} clean={}",
      volume->options_.name, volume->options_.backing, state.objects, state.objects_without_id,
      state.record.generation, Raw(state.record.epoch), state.record.mount_number, state.operation,
      state.record.clean);
  for (const std::string& path : volume->index_->without_id()) {
    spdlog::warn("event=object_without_id volume={} path={}", volume->options_.name, path);
  }
  return volume;
}

absl::Status ReplicaVolume::LoadRecord() {
  absl::StatusOr<std::optional<VolumeRecord>> loaded = recovery::LoadVolumeRecord(record_path_);
  if (!loaded.ok()) {
    return loaded.status();
  }
  record_.volume = options_.uuid;
  record_ = loaded->value_or(record_);
  if (record_.volume != options_.uuid) {
    return absl::FailedPreconditionError(absl::StrCat("copy record ", record_path_, " is of volume ",
                                                      recovery::UuidText(record_.volume), ", configured is ",
                                                      recovery::UuidText(options_.uuid)));
  }
  epoch_ = Raw(record_.epoch);
  restarted_in_use_ =
      record_.rolled_back || (!record_.clean && !record_.trailing && record_.boot != recovery::BootId());
  return absl::OkStatus();
}

absl::Status ReplicaVolume::OpenBacking() {
  absl::StatusOr<std::unique_ptr<BackingIndex>> index = BackingIndex::Build(options_.backing);
  if (!index.ok()) {
    return index.status();
  }
  index_ = *std::move(index);
  if (absl::Status status = recovery::LockBackingDirectory(index_->own_directory(), options_.backing);
      !status.ok()) {
    return status;
  }
  if (absl::Status status =
          recovery::ClaimBackingDirectory(index_->own_directory(), options_.uuid, options_.backing);
      !status.ok()) {
    return status;
  }
  if (absl::Status status = recovery::NameCopyRecord(index_->own_directory(), record_path_, options_.backing);
      !status.ok()) {
    return status;
  }
  domain_ = PersistenceDomain::Create(options_.domain, index_->root());
  files_ = std::make_unique<FileTable>(*index_, *domain_);
  undo_ = std::make_unique<UndoLog>(
      *index_, UndoLog::Options{
                   .volume = options_.name, .backing = options_.backing, .reserve = options_.undo_reserve});
  groups_ = std::make_unique<GroupJournal>(options_.backing, options_.domain != Domain::kVolatile,
                                           recovery::LogStorage::Real());
  data_ = std::make_unique<DataApplier>(*files_, *domain_, undo_.get(), groups_.get());
  tree_ = std::make_unique<NamespaceApplier>(*index_, *files_, *domain_, undo_.get());
  mount_number_ = record_.mount_number;
  std::array<uint64_t, 2> mark{};
  const ssize_t length = ::fgetxattr(index_->own_directory(), kOperationXattr, mark.data(), sizeof mark);
  if (length < 0 && errno != ENODATA) {
    return absl::ErrnoToStatus(errno, absl::StrCat("read the operation mark of ", options_.backing));
  }
  // A mark of another mount: the crash came between the record and the mark of a new mount.
  const bool same_mount = length == sizeof mark && mark[0] == record_.mount_number;
  applied_ = same_mount ? std::max(mark[1], record_.operation) : record_.operation;
  operation_durable_ = record_.operation;
  if (!record_.clean) {
    // What the last daemon had received is applied and perhaps not durable, and nobody remembers which of it: a barrier would make nothing of it so.
    domain_->TreeChanged();
    if (const int error = domain_->PersistEverything(); error != 0) {
      return absl::ErrnoToStatus(error, absl::StrCat("make durable what ", options_.backing, " holds"));
    }
  }
  if (absl::Status status = ContinueGroup(); !status.ok()) {
    return status;
  }
  if (absl::Status status = ContinueBatches(); !status.ok()) {
    return status;
  }
  return ContinueUndo();
}

absl::StatusOr<SessionTable::Permit> ReplicaVolume::PrepareSession(const SessionRequest& request) {
  const std::lock_guard lock(control_mutex_);
  if (absl::Status status = CheckRequest(request); !status.ok()) {
    spdlog::log(absl::IsUnavailable(status) ? spdlog::level::debug : spdlog::level::warn,
                "event=session_refused volume={} node={} epoch={} reason=\"{}\"", options_.name, request.node,
                Raw(request.epoch), std::string(status.message()));
    return status;
  }
  if (absl::Status status = Adopt(request); !status.ok()) {
    return status;
  }
  if (request.kind == SessionKind::kDaemon && !sessions_.EndWhere(
                                                  [&](const Session& session) {
                                                    return session.identity.kind == SessionKind::kDaemon &&
                                                           session.identity.id != request.session;
                                                  },
                                                  Deadline::After(options_.handover_wait))) {
    return absl::UnavailableError("the last connection of the primary's daemon has not ended yet; try again");
  }
  absl::StatusOr<SessionTable::Permit> permit = sessions_.Open({.id = request.session,
                                                                .kind = request.kind,
                                                                .epoch = request.epoch,
                                                                .node = request.node,
                                                                .process = request.process});
  if (permit.ok()) {
    spdlog::debug(
        "event=session_permitted volume={} session={} resumed={} node={} kind={} process=\"{}\" epoch={}",
        options_.name, Raw(permit->session), request.session != SessionId{}, request.node,
        request.kind == SessionKind::kDaemon ? "daemon" : "process", request.process, Raw(request.epoch));
  }
  return permit;
}

absl::Status ReplicaVolume::CheckRequest(const SessionRequest& request) const {
  if (absl::Status status =
          CheckHistory(request.node, request.epoch, request.mount_number, request.generation);
      !status.ok()) {
    return status;
  }
  const bool new_mount = request.mount_number > record_.mount_number;
  if (new_mount && request.kind != SessionKind::kDaemon) {
    return absl::FailedPreconditionError(
        absl::StrCat("mount ", request.mount_number, " of volume ", options_.name,
                     " has not begun here: the daemon's session comes first"));
  }
  if (new_mount && record_.resyncing) {
    return absl::FailedPreconditionError(
        absl::StrCat("a resync of this replica of ", options_.name,
                     " has begun and not ended: it has to be repeated first"));
  }
  if (resync_.token != 0 && !resync_.adopted) {
    return absl::UnavailableError(absl::StrCat("a resync of this replica of ", options_.name,
                                               " has begun: its tree is not the primary's yet, and orders of "
                                               "the time before still count; try again"));
  }
  if (!new_mount && record_.trailing && request.kind != SessionKind::kDaemon) {
    return absl::FailedPreconditionError(
        absl::StrCat("this replica of ", options_.name, " trails: programs have nothing to send to it"));
  }
  if (record_.rolled_back) {
    return absl::FailedPreconditionError(
        absl::StrCat("this replica of ", options_.name,
                     " was taken back to its last consistency point: a resync comes first"));
  }
  if (!new_mount && restarted_in_use_) {
    return absl::FailedPreconditionError(
        absl::StrCat("the machine of this replica of ", options_.name, " was restarted during mount ",
                     record_.mount_number,
                     ": what it had received and not made durable may be gone; a resync comes first"));
  }
  return absl::OkStatus();
}

// Whether this copy may follow that mount of that history at all. Under control_mutex_.
absl::Status ReplicaVolume::CheckHistory(const std::string& node, Epoch epoch, uint64_t mount_number,
                                         uint64_t generation) const {
  if (retired_) {
    return absl::NotFoundError(
        absl::StrCat("this node holds no copy of volume ", options_.name, " any more"));
  }
  if (const std::string refusal = Refusal(); !refusal.empty()) {
    return absl::FailedPreconditionError(refusal);
  }
  if (epoch < record_.epoch) {
    return Superseded(absl::StrCat("epoch ", Raw(epoch), " of volume ", options_.name,
                                   " was superseded by epoch ", Raw(record_.epoch), ": node ", node,
                                   " is no longer its primary"));
  }
  if (mount_number < record_.mount_number) {
    return Superseded(absl::StrCat("mount ", mount_number, " of volume ", options_.name,
                                   " was followed by mount ", record_.mount_number));
  }
  const bool unused = record_.generation == 0 && record_.mount_number == 0;
  if (unused && index_->size() + index_->without_id_count() != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("backing directory ", options_.backing, " holds ",
                     index_->size() + index_->without_id_count(), " objects but never was a copy of volume ",
                     options_.name, "; empty it, or choose another directory"));
  }
  if (record_.generation != 0 && generation != record_.generation) {
    return absl::FailedPreconditionError(
        absl::StrCat("this copy of ", options_.name, " is of data generation ", record_.generation, ", node ",
                     node, " serves ", generation, "; it has to be copied anew"));
  }
  return absl::OkStatus();
}

// Takes over what is newer in the request, durably, after everything older has stopped.
absl::Status ReplicaVolume::Adopt(const SessionRequest& request) {
  VolumeRecord next = record_;
  next.epoch = request.epoch;
  next.mount_number = request.mount_number;
  next.generation = record_.generation == 0 ? request.generation : record_.generation;
  next.clean = false;
  next.boot = recovery::BootId();
  if (next == record_) {
    return absl::OkStatus();
  }
  const bool new_mount = next.mount_number != record_.mount_number;
  // First the doors are shut, then those inside are waited for, then the record is written.
  epoch_.store(Raw(next.epoch), std::memory_order_release);
  if (!sessions_.EndWhere(
          [&](const Session& session) { return new_mount || session.identity.epoch < next.epoch; },
          Deadline::After(options_.handover_wait))) {
    return absl::UnavailableError(
        absl::StrCat("connections of an older epoch of ", options_.name, " have not ended yet; try again"));
  }
  if (new_mount) {
    if (absl::Status status = EndTrailing(Next::kMount); !status.ok()) {
      return status;
    }
    next.trailing = false;
    next.operation = 0;
  }
  if (absl::Status status = StoreRecord(next); !status.ok()) {
    return status;
  }
  if (new_mount) {
    const std::lock_guard lock(namespace_mutex_);
    mount_number_ = next.mount_number;
    applied_ = 0;
    operation_durable_ = 0;
    restarted_in_use_ = false;
    files_->ForgetOrders();
    if (const int error = MarkOperation(mount_number_, 0); error != 0) {
      return absl::ErrnoToStatus(error, absl::StrCat("store the operation mark of ", options_.backing));
    }
    spdlog::info("event=mount_began volume={} node={} mount_number={} epoch={} generation={}", options_.name,
                 request.node, next.mount_number, Raw(next.epoch), next.generation);
  }
  return absl::OkStatus();
}

absl::Status ReplicaVolume::StoreRecord(const VolumeRecord& record) {
  if (absl::Status status = recovery::StoreVolumeRecord(record_path_, record); !status.ok()) {
    spdlog::error("event=record_not_stored volume={} error=\"{}\"", options_.name,
                  std::string(status.message()));
    return status;
  }
  record_ = record;
  return absl::OkStatus();
}

absl::Status ReplicaVolume::Leave(const Departure& departure) {
  const std::lock_guard lock(control_mutex_);
  if (departure.epoch != record_.epoch || departure.mount_number != record_.mount_number) {
    return Superseded(absl::StrCat("mount ", departure.mount_number, " in epoch ", Raw(departure.epoch),
                                   " of volume ", options_.name, " was followed by mount ",
                                   record_.mount_number, " in epoch ", Raw(record_.epoch)));
  }
  if (departure.operation != applied_operation()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the primary leaves ", options_.name, " after operation ", departure.operation,
                     ", this replica has applied ", applied_operation(), "; repeat what is missing first"));
  }
  if (record_.resyncing || record_.rolled_back) {
    return absl::FailedPreconditionError(
        absl::StrCat("a resync of this replica of ", options_.name, " has not ended"));
  }
  if (departure.generation != 0 && record_.generation != 0 && departure.generation != record_.generation) {
    return absl::FailedPreconditionError(absl::StrCat("this copy of ", options_.name,
                                                      " is of data generation ", record_.generation,
                                                      ", the primary leaves ", departure.generation));
  }
  if (!sessions_.EndWhere([](const Session&) { return true; }, Deadline::After(options_.handover_wait))) {
    return absl::UnavailableError("connections of the volume have not ended yet; try again");
  }
  if (absl::Status status = EndTrailing(Next::kCleanEnd); !status.ok()) {
    return status;
  }
  if (absl::Status status = PersistAll(); !status.ok()) {
    return status;
  }
  VolumeRecord next = record_;
  next.clean = true;
  next.operation = departure.operation;
  next.generation = departure.generation != 0 ? departure.generation : record_.generation;
  operation_durable_ = departure.operation;
  spdlog::info("event=primary_left volume={} mount_number={} operation={}", options_.name,
               departure.mount_number, departure.operation);
  return StoreRecord(next);
}

// Also of a barrier that has failed before: what the storage holds cannot be believed since.
absl::Status ReplicaVolume::PersistAll() {
  const int error = storage_error_ != 0 ? storage_error_.load() : domain_->PersistEverything();
  if (error == 0) {
    return absl::OkStatus();
  }
  storage_error_ = error;
  return absl::DataLossError(absl::StrCat("the storage of ", options_.backing,
                                          " failed: ", absl::ErrnoToStatus(error, "").ToString()));
}

std::string ReplicaVolume::Refusal() const {
  if (const int error = storage_error_; error != 0) {
    return absl::StrCat("the storage of ", options_.backing, " failed (errno ", error,
                        "): what it holds cannot be trusted; repair it and restart the daemon");
  }
  return "";
}

ReplicaVolume::State ReplicaVolume::state() const {
  State state;
  {
    const std::lock_guard lock(control_mutex_);
    state.record = record_;
    state.restarted_in_use = restarted_in_use_;
  }
  state.refusal = Refusal();
  state.operation = applied_operation();
  state.domain = options_.domain;
  state.objects = index_->size();
  state.objects_without_id = index_->without_id_count();
  state.empty = state.objects + state.objects_without_id == 0;
  FillPromotable(state);
  for (const std::shared_ptr<Session>& session : sessions_.All()) {
    state.sessions.push_back({session->identity, session->connected(), Deadline::Now() - session->heard()});
  }
  state.counters = {.frames = counters_.frames,
                    .bytes = counters_.bytes,
                    .operations = counters_.operations,
                    .barriers = counters_.barriers,
                    .refusals = counters_.refusals,
                    .recaptures = counters_.recaptures,
                    .duplicates = counters_.duplicates,
                    .checksum_faults = counters_.checksum_faults,
                    .connections = counters_.connections};
  return state;
}

absl::StatusOr<bool> ReplicaVolume::Retire() {
  {
    const std::lock_guard lock(control_mutex_);
    retired_ = true;
    resync_ = {};
  }
  absl::Status status = Shutdown();
  const std::lock_guard lock(control_mutex_);
  const bool unused = record_.generation == 0 && index_->size() + index_->without_id_count() == 0;
  if (status.ok() && unused) {
    status = recovery::DisownBackingDirectory(index_->own_directory(), options_.backing);
    if (status.ok()) {
      status = recovery::RemoveFile(record_path_);
    }
  }
  if (!status.ok()) {
    retired_ = false;
    return status;
  }
  recovery::UnlockBackingDirectory(index_->own_directory());
  return unused;
}

absl::Status ReplicaVolume::Shutdown() {
  const std::lock_guard lock(control_mutex_);
  if (domain_ == nullptr) {
    return absl::OkStatus();
  }
  if (!sessions_.EndWhere([](const Session&) { return true; }, Deadline::After(options_.handover_wait))) {
    return absl::UnavailableError("connections of the volume have not ended yet; try again");
  }
  const int error = domain_->PersistEverything();
  return error == 0 ? absl::OkStatus()
                    : absl::ErrnoToStatus(error, absl::StrCat("make ", options_.backing, " durable"));
}

}  // namespace pmirror::server
