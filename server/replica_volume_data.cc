// SPDX-License-Identifier: BSD-3-Clause
// What the connections of a replicated volume do: apply frames, grant and revoke, barriers. See
// replica_volume.h.
#include <sys/xattr.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <vector>

#include "replication/namespace_op.h"
#include "server/replica_volume.h"
#include "spdlog/spdlog.h"

namespace pmirror::server {
namespace {

// A session that never asks for a barrier does not collect files for ever.
constexpr size_t kMaxTouched = 4096;

}  // namespace

Outcome ReplicaVolume::Apply(Session& session, const FrameHeader& header, std::span<const WireRange> ranges,
                             std::span<const std::byte> payload) {
  const auto kind = static_cast<FrameKind>(header.kind);
  if (trailing_ && kind == FrameKind::kDataImage) {
    return pmirror::server::Refusal{RefusalCode::kRecapture};  // its sender has not heard of it yet
  }
  switch (kind) {
    case FrameKind::kDataImage:
      return ApplyData(session, header, ranges, payload);
    case FrameKind::kNamespaceOp:
      return ApplyOperation(session, header, payload);
    case FrameKind::kGrant:
      return Grant(header);
    case FrameKind::kRevoke:
      return Revoke(header);
    case FrameKind::kBarrier:
      if (header.file != 0) {
        session.touched.Add(files_->Get(FileId{header.file}));
      }
      return kDone;
    case FrameKind::kBatch:
      return TakeBatch(session, header, ranges, payload);
    default:
      return kDone;
  }
}

Outcome ReplicaVolume::ApplyData(Session& session, const FrameHeader& header,
                                 std::span<const WireRange> ranges, std::span<const std::byte> payload) {
  if (!session.MayWrite(FileId{header.file})) {
    return pmirror::server::Refusal{RefusalCode::kNotGranted};
  }
  const Deadline deadline = Deadline::After(options_.operation_wait);
  for (;;) {
    const uint64_t operation = applied_operation();
    DataApplier::Applied applied = data_->Apply(header, ranges, payload, operation);
    if (applied.wait == DataApplier::Wait::kNo) {
      if (const int error = data_->broken(); error != 0) {
        storage_error_ = error;
      }
      session.touched.Add(applied.file);
      if (session.touched.files().size() >= kMaxTouched &&
          domain_->Persist(session.touched.files(), false) == 0) {
        session.touched.Clear();
      }
      return applied.outcome;
    }
    // The daemon's operations come behind this frame on the same connection: nothing to wait for.
    if (session.identity.kind == SessionKind::kDaemon) {
      return pmirror::server::Refusal{RefusalCode::kRecapture};
    }
    std::unique_lock lock(applied_mutex_);
    if (!applied_changed_.wait_for(lock, deadline.Remaining(),
                                   [&] { return applied_operation() != operation || session.ended(); }) ||
        session.ended()) {
      return pmirror::server::Refusal{RefusalCode::kRecapture};
    }
  }
}

// At the start: completes the group that a crash interrupted, before anything else touches the file. While a resync has not ended,
// or a copy trails, the files are made by other means, and a group that was not acknowledged is nobody's.
absl::Status ReplicaVolume::ContinueGroup() {
  absl::StatusOr<std::optional<GroupJournal::Record>> loaded = groups_->Load();
  if (!loaded.ok() || !loaded->has_value()) {
    return loaded.status();
  }
  const GroupJournal::Record& group = **loaded;
  const std::shared_ptr<BackingFile> file =
      record_.resyncing || record_.rolled_back || record_.trailing ? nullptr : files_->Get(group.file);
  if (file != nullptr) {
    for (const ApplyPiece& piece : group.pieces) {
      const auto bytes = std::span(group.payload).subspan(piece.payload_offset, piece.length);
      if (const Outcome outcome = data_->Lay(file, piece.offset, bytes); outcome) {
        return absl::InternalError(
            absl::StrCat("the flush group that a crash interrupted in ", options_.backing,
                         " cannot be completed: ", Name(outcome->code), ", errno ", outcome->error_number));
      }
    }
    if (const int error = domain_->Persist({&file, 1}, false); error != 0) {
      return absl::ErrnoToStatus(error, absl::StrCat("make durable a flush group of ", options_.backing));
    }
    spdlog::info("event=group_completed volume={} file={} bytes={}", options_.name, Raw(group.file),
                 group.payload.size());
  }
  const std::lock_guard lock(groups_->mutex());
  const int error = groups_->End();
  return error == 0 ? absl::OkStatus()
                    : absl::ErrnoToStatus(error, absl::StrCat("end the group journal of ", options_.backing));
}

Outcome ReplicaVolume::Verify(const Session& session, const FrameHeader& header,
                              std::span<const WireRange> ranges, VerifiedBody& verified) {
  if (!session.MayWrite(FileId{header.file})) {  // who may not change the bytes is told nothing of them
    return pmirror::server::Refusal{RefusalCode::kNotGranted};
  }
  verified = {};
  verified.sequence = header.sequence;
  verified.file = header.file;
  verified.range_count = header.range_count;
  return data_->Verify(FileId{header.file}, ranges, verified);
}

Outcome ReplicaVolume::Confirm(Session& session, const FrameHeader& header, const WireRange& range,
                               std::span<const std::byte> payload, ConfirmedBody& confirmed) {
  if (trailing_) {
    return pmirror::server::Refusal{RefusalCode::kRecapture};
  }
  std::vector<BlockSum16> sums(payload.size() / sizeof(BlockSum16));
  std::memcpy(sums.data(), payload.data(), payload.size());
  confirmed = {};
  confirmed.sequence = header.sequence;
  confirmed.file = header.file;
  std::shared_ptr<BackingFile> file;
  const Outcome outcome = data_->Confirm(header, range, sums, applied_operation(), confirmed, file);
  if (!outcome) {
    session.touched.Add(file);  // its bytes may be another session's, and not durable
  }
  return outcome;
}

Outcome ReplicaVolume::ApplyOperation(Session& session, const FrameHeader& header,
                                      std::span<const std::byte> payload) {
  const Result<NamespaceOp> op = DecodeNamespaceOp(payload);
  const uint64_t number = header.order;
  if (!op.ok()) {
    spdlog::error("event=operation_malformed volume={} session={} operation={}", options_.name,
                  Raw(session.identity.id), number);
    return pmirror::server::Refusal{RefusalCode::kIoError, op.error().code};
  }
  {
    const std::lock_guard lock(namespace_mutex_);
    if (trailing_) {
      return pmirror::server::Refusal{RefusalCode::kBlocked};
    }
    if (const int error = data_->broken(); error != 0) {
      return pmirror::server::Refusal{RefusalCode::kIoError, error};
    }
    if (number <= applied_operation()) {
      counters_.duplicates.fetch_add(1, std::memory_order_relaxed);
      return kDone;
    }
    if (number != applied_operation() + 1) {
      return pmirror::server::Refusal{RefusalCode::kBlocked};
    }
    const NamespaceApplier::Applied applied = ApplyNext(op.value(), number);
    if (applied.outcome) {
      return applied.outcome;
    }
    session.touched.Add(applied.file);
  }
  const std::lock_guard lock(applied_mutex_);
  applied_changed_.notify_all();
  return kDone;
}

// The tree, then the mark. Under namespace_mutex_.
NamespaceApplier::Applied ReplicaVolume::ApplyNext(const NamespaceOp& op, uint64_t number) {
  NamespaceApplier::Applied applied = ChangeTree(op, number);
  if (!applied.outcome) {
    applied.outcome = OutcomeOf(MarkOperation(mount_number_, number));
  }
  if (applied.outcome) {
    spdlog::error(
        "event=operation_refused volume={} operation={} kind={} target={} parent={} name=\"{}\" code={} "
        "errno={}",
        options_.name, number, Name(op.kind), Raw(op.target), Raw(op.parent), op.name,
        Name(applied.outcome->code), applied.outcome->error_number);
    return applied;
  }
  // Only now may frames of a newer size generation pass: a crash before would have replayed the operation over them.
  applied_.store(number, std::memory_order_release);
  counters_.operations.fetch_add(1, std::memory_order_relaxed);
  return applied;
}

// Under namespace_mutex_.
NamespaceApplier::Applied ReplicaVolume::ChangeTree(const NamespaceOp& op, uint64_t number) {
  NamespaceApplier::Applied applied = tree_->Apply(op, number);
  if (applied.outcome && applied.outcome->code == RefusalCode::kNoSpace) {
    bool made = false;  // by giving up the undo log: as DataApplier
    if (undo_->MakeRoom(made) == 0 && made) {
      applied = tree_->Apply(op, number);
    }
  }
  return applied;
}

Outcome ReplicaVolume::Grant(const FrameHeader& header) {
  const std::shared_ptr<Session> session = sessions_.Find(SessionId{header.order});
  if (session == nullptr || session->identity.kind != SessionKind::kProcess) {
    return pmirror::server::Refusal{RefusalCode::kNotGranted};
  }
  if (!index_->Contains(FileId{header.file})) {
    return pmirror::server::Refusal{RefusalCode::kNoSuchFile};
  }
  session->Grant(FileId{header.file});
  return kDone;
}

Outcome ReplicaVolume::Revoke(const FrameHeader& header) {
  if (FileId{header.file} == FileId::kNone) {
    const std::shared_ptr<Session> session = sessions_.Find(SessionId{header.order});
    if (session != nullptr && session->identity.kind == SessionKind::kProcess) {
      sessions_.End(SessionId{header.order});
      spdlog::debug("event=session_revoked volume={} session={}", options_.name, header.order);
    }
    return kDone;
  }
  if (const std::shared_ptr<Session> session = sessions_.Find(SessionId{header.order}); session != nullptr) {
    session->Revoke(FileId{header.file});
  }
  return kDone;
}

int ReplicaVolume::MarkOperation(uint64_t mount_number, uint64_t operation) {
  const std::array<uint64_t, 2> mark = {mount_number, operation};
  return ::fsetxattr(index_->own_directory(), kOperationXattr, mark.data(), sizeof mark, 0) == 0 ? 0 : errno;
}

ReplicaVolume::Persisted ReplicaVolume::Persist(Session& session) {
  counters_.barriers.fetch_add(1, std::memory_order_relaxed);
  if (const int error = storage_error_; error != 0) {
    return {error, operation_durable_};
  }
  const bool tree = session.identity.kind == SessionKind::kDaemon;
  const uint64_t operation = applied_operation();
  if (const int error = domain_->Persist(session.touched.files(), tree); error != 0) {
    storage_error_ = error;
    spdlog::critical("event=storage_failed volume={} backing={} errno={}", options_.name, options_.backing,
                     error);
    return {error, operation_durable_};
  }
  session.touched.Clear();
  uint64_t known = operation_durable_;
  while (tree && known < operation && !operation_durable_.compare_exchange_weak(known, operation)) {
  }
  return {0, operation_durable_};
}

}  // namespace pmirror::server
