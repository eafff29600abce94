// SPDX-License-Identifier: BSD-3-Clause
// A copy that trails: it is changed by whole batches only. See replica_volume.h and docs/internals/rpo.md.
#include <cerrno>

#include "absl/strings/str_cat.h"
#include "recovery/batch.h"
#include "server/replica_volume.h"
#include "spdlog/spdlog.h"

namespace pmirror::server {
namespace {

constexpr size_t kMostBatchBytes = size_t{1} << 30;

Outcome Refuse(RefusalCode code, int error = 0) { return pmirror::server::Refusal{code, error}; }

Outcome OutcomeOfStatus(const absl::Status& status) {
  return status.ok()                         ? kDone
         : absl::IsResourceExhausted(status) ? Refuse(RefusalCode::kNoSpace)
                                             : Refuse(RefusalCode::kIoError, EIO);
}

}  // namespace

absl::StatusOr<uint64_t> ReplicaVolume::BeginTrailing(const ResyncRequest& request) {
  const std::lock_guard lock(control_mutex_);
  if (absl::Status status =
          CheckHistory(request.node, request.epoch, request.mount_number, request.generation);
      !status.ok()) {
    return status;
  }
  if (request.mount_number != record_.mount_number || record_.resyncing || record_.rolled_back ||
      restarted_in_use_) {
    return absl::FailedPreconditionError(absl::StrCat("this replica of ", options_.name,
                                                      " does not follow mount ", request.mount_number,
                                                      " yet: it has to be in sync first"));
  }
  if (!sessions_.EndWhere(
          [](const Session& session) { return session.identity.kind == SessionKind::kProcess; },
          Deadline::After(options_.handover_wait))) {
    return absl::UnavailableError("connections of programs have not ended yet; try again");
  }
  const std::lock_guard batch_lock(batch_mutex_);
  trailing_ = true;  // first: no frame is applied behind what is made durable here
  absl::Status status = SettleBatches();
  if (status.ok()) {
    VolumeRecord next = record_;
    next.trailing = true;
    status = StoreRecord(next);
  }
  if (!status.ok()) {
    trailing_ = record_.trailing;
    return status;
  }
  spdlog::info("event=trailing_began volume={} node={} mount_number={} operation={}", options_.name,
               request.node, record_.mount_number, applied_operation());
  // None comes after it: operations of the daemon's session are refused from here on.
  const std::lock_guard tree_lock(namespace_mutex_);
  return applied_operation();
}

// What the batches did is durable, and there is no journal any more: before anything else changes the files. Under control_mutex_ and
// batch_mutex_, or before there is anybody else.
absl::Status ReplicaVolume::SettleBatches() {
  domain_->TreeChanged();
  if (absl::Status status = PersistAll(); !status.ok()) {
    return status;
  }
  batch_files_.clear();
  incoming_ = {};
  batch_ = {};
  batch_half_done_ = 0;
  doubt_.clear();
  return journal_.Remove();
}

// Before anything else may change the files. Under control_mutex_, with no session. What shows half a batch is a mixture like one in a resync, and
// only that may follow.
absl::Status ReplicaVolume::EndTrailing(Next what_follows) {
  if (!record_.trailing) {
    return absl::OkStatus();
  }
  const std::lock_guard lock(batch_mutex_);
  const bool whole = batch_half_done_ == 0 && doubt_.empty();
  if (!whole && what_follows != Next::kResync) {
    return absl::FailedPreconditionError(absl::StrCat("the files of this replica of ", options_.name,
                                                      " show half of a batch: a resync comes first"));
  }
  VolumeRecord next = record_;
  next.trailing = false;
  next.resyncing = !whole;
  next.operation = applied_operation();
  // What says that it is half must not go before the record says so; what makes it whole must be there before.
  absl::Status status = whole ? SettleBatches() : StoreRecord(next);
  if (!status.ok()) {
    return status;
  }
  if (!whole) {
    trailing_ = false;
    undo_->GiveUpWithout("its files show half of a batch");
    return SettleBatches();
  }
  status = StoreRecord(next);
  trailing_ = !status.ok();
  return status;
}

// At the start: completes what a crash interrupted.
absl::Status ReplicaVolume::ContinueBatches() {
  if (!record_.trailing) {
    return absl::OkStatus();
  }
  trailing_ = true;
  const absl::StatusOr<std::optional<std::vector<std::byte>>> stored = journal_.Load();
  if (absl::IsDataLoss(stored.status())) {
    return Doubt(stored.status());
  }
  if (!stored.ok()) {
    return stored.status();
  }
  if (!stored->has_value()) {
    return absl::OkStatus();
  }
  const absl::StatusOr<recovery::BatchView> batch = recovery::BatchView::Parse(**stored);
  if (!batch.ok() || batch->identity().mount_number != record_.mount_number) {
    return Doubt(absl::DataLossError(absl::StrCat("the batch journal of ", options_.backing, " is of mount ",
                                                  batch.ok() ? batch->identity().mount_number : 0,
                                                  ", its record of mount ", record_.mount_number)));
  }
  if (const Outcome outcome = ApplyBatch(*batch); outcome) {
    return Doubt(absl::InternalError(
        absl::StrCat("batch ", batch->identity().number, " of ", options_.backing,
                     " cannot be applied: ", Name(outcome->code), ", errno ", outcome->error_number)));
  }
  spdlog::info("event=batch_completed volume={} batch={} operation={}", options_.name,
               batch->identity().number, applied_operation());
  return absl::OkStatus();
}

// What the files show is perhaps half of a batch: a comparison has to make them whole, and costs no data.
absl::Status ReplicaVolume::Doubt(const absl::Status& why) {
  spdlog::error("event=batch_journal_in_doubt volume={} reason=\"{}\"", options_.name,
                std::string(why.message()));
  restarted_in_use_ = true;
  doubt_ = std::string(why.message());
  return absl::OkStatus();
}

// A piece of a batch; the last one makes it whole.
Outcome ReplicaVolume::TakeBatch(Session& session, const FrameHeader& header,
                                 std::span<const WireRange> ranges, std::span<const std::byte> payload) {
  const std::lock_guard lock(batch_mutex_);
  if (!trailing_) {
    return Refuse(RefusalCode::kNotGranted);
  }
  const uint64_t offset = ranges.front().offset;
  if (offset == 0) {
    incoming_.clear();
  }
  if (offset != incoming_.size()) {
    return Refuse(RefusalCode::kRecapture);
  }
  if (offset + payload.size() > kMostBatchBytes) {
    return Refuse(RefusalCode::kOutOfRange);
  }
  incoming_.insert(incoming_.end(), payload.begin(), payload.end());
  if ((header.flags & kFlagContinues) != 0) {
    return kDone;
  }
  const std::vector<std::byte> bytes = std::move(incoming_);
  incoming_ = {};
  const absl::StatusOr<recovery::BatchView> batch = recovery::BatchView::Parse(bytes);
  if (!batch.ok()) {
    return Refuse(RefusalCode::kRecapture);
  }
  const recovery::BatchBuilder::Identity& identity = batch->identity();
  if (identity.number == batch_.number) {
    return kDone;  // its acknowledgement was lost
  }
  const bool fits = identity.number == batch_.number + 1 && identity.mount_number == mount_number_ &&
                    (batch->operations().empty() || batch->first_operation() <= applied_operation() + 1);
  if (!fits) {
    spdlog::error("event=batch_does_not_follow volume={} batch={} last={} operation={} applied={}",
                  options_.name, identity.number, batch_.number, batch->first_operation(),
                  applied_operation());
    return Refuse(RefusalCode::kBlocked);
  }
  // What the session brought right before it trailed, and nobody has asked to be durable.
  const auto touched = session.touched.files();
  batch_files_.insert(batch_files_.end(), touched.begin(), touched.end());
  session.touched.Clear();
  return StoreAndApply(bytes, *batch);
}

// The journal first; before it replaces the last batch's, that one's effects are made durable.
Outcome ReplicaVolume::StoreAndApply(std::span<const std::byte> bytes, const recovery::BatchView& batch) {
  absl::Status status = journal_.Prepare(bytes);
  if (status.ok()) {
    if (const int error = storage_error_ != 0 ? storage_error_.load() : domain_->Persist(batch_files_, true);
        error != 0) {
      storage_error_ = error;
      spdlog::critical("event=storage_failed volume={} backing={} errno={}", options_.name, options_.backing,
                       error);
      return Refuse(RefusalCode::kIoError, error);
    }
    batch_files_.clear();
    status = journal_.Commit();
  }
  if (!status.ok()) {
    spdlog::error("event=batch_not_stored volume={} batch={} reason=\"{}\"", options_.name,
                  batch.identity().number, std::string(status.message()));
    return OutcomeOfStatus(status);
  }
  return ApplyBatch(batch);
}

// Again after a failure, or a crash: what was done already is found done, or done once more.
Outcome ReplicaVolume::ApplyBatch(const recovery::BatchView& batch) {
  batch_half_done_ = batch.identity().number;
  uint64_t number = batch.first_operation();
  for (const std::span<const std::byte> bytes : batch.operations()) {
    const Outcome outcome = ApplyBatchedOperation(number++, bytes);
    if (outcome) {
      return outcome;
    }
  }
  for (const recovery::BatchView::Data& data : batch.data()) {
    std::shared_ptr<BackingFile> file = files_->Get(data.file);
    if (file == nullptr && data.perhaps_gone) {
      continue;
    }
    if (file == nullptr) {
      spdlog::error("event=batch_refused volume={} batch={} file={} reason=\"no such file\"", options_.name,
                    batch.identity().number, Raw(data.file));
      return Refuse(RefusalCode::kNoSuchFile);
    }
    if (const Outcome outcome = data_->Lay(file, data.offset, data.bytes); outcome) {
      spdlog::error("event=batch_refused volume={} batch={} file={} errno={}", options_.name,
                    batch.identity().number, Raw(data.file), outcome->error_number);
      return outcome;
    }
    if (batch_files_.empty() || batch_files_.back() != file) {
      batch_files_.push_back(std::move(file));
    }
  }
  if (const int error = files_->Trim(); error != 0) {
    return OutcomeOf(error);
  }
  batch_half_done_ = 0;
  batch_ = batch.identity();
  return kDone;
}

Outcome ReplicaVolume::ApplyBatchedOperation(uint64_t number, std::span<const std::byte> bytes) {
  const std::lock_guard lock(namespace_mutex_);
  if (number <= applied_operation()) {
    return kDone;  // before the crash
  }
  const Result<NamespaceOp> op = DecodeNamespaceOp(bytes);
  if (!op.ok()) {
    return Refuse(RefusalCode::kIoError, op.error().code);
  }
  const NamespaceApplier::Applied applied = ApplyNext(op.value(), number);
  if (applied.file != nullptr) {
    batch_files_.push_back(applied.file);
  }
  return applied.outcome;
}

}  // namespace pmirror::server
