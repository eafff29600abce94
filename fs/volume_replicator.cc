// SPDX-License-Identifier: BSD-3-Clause
// The order of operations on the tree, and the waiting for replicas; volume_replicator_data.cc has the data. See volume_replicator.h.
#include "fs/volume_replicator.h"

#include <sys/stat.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "fs/interruption.h"
#include "recovery/object_id.h"
#include "replication/patience.h"
#include "replication/replica_mask.h"

namespace pmirror::fs {
namespace {

bool Fenced(const VolumePage& page) {
  return page.state.load() == static_cast<uint32_t>(VolumeState::kFenced);
}

}  // namespace

VolumeReplicator::VolumeReplicator(Options options, VolumePageOwner& page, OperationLog& log,
                                   std::span<const ReplicaPath> replicas, StagingPool& staging,
                                   EventSink& events)
    : options_(std::move(options)),
      page_(page),
      log_(log),
      staging_(staging),
      events_(events),
      replication_(page.page(), sessions_, staging, *this),
      own_replication_(page.page(), sessions_, staging, own_waits_) {
  for (size_t i = 0; i < replicas.size(); ++i) {
    AddReplica(i, replicas[i]);
  }
}

VolumeReplicator::~VolumeReplicator() { Stop(); }

void VolumeReplicator::AddReplica(size_t replica, const ReplicaPath& path) {
  couriers_[replica] = path.operations;
  sessions_[replica] = path.session;
}

// --- operations on the tree ---

int VolumeReplicator::Change(LocalChange local_change) {
  const FreezeGate::Pass pass(gate_);
  if (Fenced(page_.page())) {
    return ESTALE;  // before anything is changed here: the kernel repeats a call that gave it
  }
  if (const int error = MakeRoom(); error != 0) {
    return error;
  }
  uint64_t number = 0;
  {
    const std::lock_guard lock(namespace_mutex_);
    NamespaceOp op;
    if (const int error = local_change(op); error != 0) {
      return error;
    }
    number = Append(op);
    NoteOrphans(op);
    DropIfGone(op);
  }
  return AwaitOperation(number);
}

int VolumeReplicator::ChangeSize(ReplicatedFile& replicated, LocalChange local_change) {
  FileState& file = StateOf(replicated);
  const FreezeGate::Pass pass(gate_);
  if (Fenced(page_.page())) {
    return ESTALE;
  }
  if (const int error = MakeRoom(); error != 0) {
    return error;
  }
  Extent tail;
  int result = 0;
  {
    if (const int error = file.size_mutex().Lock([this] { return InterruptedByOwnSignal(); }); error != 0) {
      return error;
    }
    const PatientMutex::Held size_lock(file.size_mutex());
    const FileState::RaisedFlag flag(file);
    page_.BeginSizeOperation(file.slot_index());
    const uint64_t old_size = file.size();
    uint64_t number = 0;
    {
      const std::lock_guard lock(namespace_mutex_);
      NamespaceOp op;
      if (const int error = local_change(op); error != 0) {
        page_.AbandonSizeOperation(file.slot_index());
        return error;
      }
      number = Append(op);
    }
    struct stat info {};
    const bool known = ::fstat(file.backing_fd(), &info) == 0;
    const uint64_t new_size = known ? static_cast<uint64_t>(info.st_size) : old_size;
    result = AwaitOperation(number);
    tail = TailOf(old_size, new_size);
    file.Hold(tail);  // before the generation says that nothing is under way
    page_.EndSizeOperation(file.slot_index(), 2 * number, new_size);
    file.NotDurable();
    ++changes_;
  }
  if (result != 0 && !tail.empty()) {
    Keep(file);
    Wake();
  }
  if (result == 0 && !tail.empty()) {
    FileState::Capture capture(file, tail, {});
    result = Send(file, capture, WaitLevel::kReceived, nullptr);
  }
  return result;
}

void VolumeReplicator::UseTrailer(Trailer& trailer, CaptureOutlet outlet) {
  trailer_ = &trailer;
  replication_.UseCaptureLog(outlet);
  own_replication_.UseCaptureLog(outlet);
}

// Under the namespace lock.
uint64_t VolumeReplicator::Append(NamespaceOp& op) {
  const uint64_t number = log_.Append(op);
  if (trailer_ != nullptr) {
    trailer_->NoteOperation(number);
  }
  return number;
}

// Under the namespace lock.
void VolumeReplicator::NoteOrphans(const NamespaceOp& op) {
  const bool orphaned = (op.flags & kOpOrphaned) != 0;
  if (op.kind == OpKind::kCreateOrphan) {
    orphans_[op.target] = op.mode;
  } else if (op.kind == OpKind::kUnlink && orphaned) {
    orphans_[op.target] = 0;
  } else if (op.kind == OpKind::kRename && orphaned) {
    orphans_[op.replaced] = 0;
  } else if (op.kind == OpKind::kForgetOrphan || op.kind == OpKind::kLink) {
    orphans_.erase(op.target);
  }
}

// An object that has left the volume needs nothing any more. Under the namespace lock.
void VolumeReplicator::DropIfGone(const NamespaceOp& op) {
  FileId gone = FileId::kNone;
  if (op.kind == OpKind::kForgetOrphan || (op.kind == OpKind::kUnlink && (op.flags & kOpOrphaned) == 0)) {
    gone = op.target;
  } else if (op.kind == OpKind::kRename && (op.flags & (kOpOrphaned | kOpExchange)) == 0) {
    gone = op.replaced;
  }
  if (gone == FileId::kNone) {
    return;
  }
  const std::shared_ptr<FileState> file = Find(gone);
  if (file == nullptr && op.kind == OpKind::kForgetOrphan && options_.marks != nullptr) {
    sizes_->Forget(gone);
    options_.marks->Forget(gone);
  }
  struct stat info {};
  if (file == nullptr || ::fstat(file->backing_fd(), &info) != 0 || info.st_nlink != 0) {
    return;  // nobody knows it, or it has, or may have, another name
  }
  file->Forget();
  sizes_->Forget(gone);
  if (options_.marks != nullptr) {
    options_.marks->Forget(gone);
  }
  const std::lock_guard lock(files_mutex_);
  unsettled_.erase(gone);
}

// The operation that has to be on a replica before anything is sent of the file as it is now, a barrier included (R5). An odd generation
// names the operation before the one under way, whose local change may have taken effect: that one is in the log when the lock is free.
uint64_t VolumeReplicator::LastOperationOf(FileState& file) {
  const uint64_t generation = file.slot().size_generation.load(std::memory_order_acquire);
  if (generation % 2 == 0) {
    return generation / 2;
  }
  const std::lock_guard lock(namespace_mutex_);
  return log_.last();
}

// Waits as the policy says until everybody whom the set asks for has applied the operation.
int VolumeReplicator::AwaitOperation(uint64_t number, Sender sender) {
  SyncObserver& observer = sender == Sender::kCaller ? static_cast<SyncObserver&>(*this) : own_waits_;
  Patience patience(page_.page(), observer, FileId::kNone);
  uint8_t done = 0;
  int result = 0;
  while (true) {
    const SetWord set = LoadSet(page_.page());
    const auto wanted = static_cast<uint8_t>(set.sent_to() & ~done);
    if (Fenced(page_.page())) {
      result = ESTALE;  // whoever else would let it succeed
      break;
    }
    if (wanted == 0 && MaySucceed(page_.page(), set)) {
      break;
    }
    if (std::popcount(wanted) > 1) {
      ForEach(wanted, [&](size_t i) { couriers_[i]->Begin(number); });
    }
    ForEach(wanted, [&](size_t i) {
      const int error = result == 0 ? couriers_[i]->Deliver(number, patience.Slice()) : EINTR;
      if (error == 0) {
        done |= Bit(i);
      } else if (error == ENOSPC && Proceeds()) {
        Refused(i, error);
      } else if (error == ESTALE || error == ENOSPC) {
        result = error;
      }
    });
    if (wanted == 0) {
      page_.AwaitChange(set, patience.Slice());
    }
    if (result == 0 && patience.RanOut()) {
      result = patience.error();
    }
    if (result != 0) {
      break;
    }
  }
  patience.Ended(result);
  return result;
}

// The log is bounded by what is not durable on every replica. Whom syncs do not wait for, the log does not wait for either: it is brought
// back by a comparison of the trees then.
int VolumeReplicator::MakeRoom() {
  if (!log_.full()) {
    return 0;
  }
  int error = SyncTree([] { return 0; });
  if (error == 0 && log_.full() && trailer_ != nullptr) {
    error = MakeRoomByShipping();
  }
  if (error == 0 && log_.full()) {
    log_.ReleaseAll();  // a resync that needs more has to begin anew
    const SetWord set = LoadSet(page_.page());
    TrimTo(set.sent_to());
  }
  return error != 0 ? error : log_.full() ? EIO : 0;
}

// Where the log is full of what replicas that trail lack: waits for them as the policy says.
int VolumeReplicator::MakeRoomByShipping() {
  Patience patience(page_.page(), *this, FileId::kNone);
  int result = 0;
  while (true) {
    (void)trailer_->Flush(patience.Slice());  // whether it helped shows in the log
    Trim();
    if (!log_.full() || trailer_->operations_shipped() >= log_.last()) {
      break;
    }
    if (Fenced(page_.page())) {
      result = ESTALE;
      break;
    }
    if (patience.RanOut()) {
      result = patience.error();
      break;
    }
  }
  patience.Ended(result);
  return result;
}

void VolumeReplicator::Trim() { TrimTo(static_cast<ReplicaMask>(page_.page().configured)); }

void VolumeReplicator::TrimTo(uint8_t replicas) {
  // Who trails gets operations by way of batches.
  uint64_t durable = std::min(log_.last(), trailer_ != nullptr ? trailer_->operations_shipped() : UINT64_MAX);
  const ReplicaMask trailing = LoadSet(page_.page()).trailing();
  ForEach(static_cast<ReplicaMask>(replicas & ~trailing),
          [&](size_t i) { durable = std::min(durable, sessions_[i]->OperationDurable()); });
  log_.Trim(durable);
}

bool VolumeReplicator::Proceeds() const {
  return page_.page().on_loss == static_cast<uint32_t>(OnLoss::kProceed);
}

FileId VolumeReplicator::NewId() {
  return recovery::ObjectId(options_.mount_number, next_id_.fetch_add(1, std::memory_order_relaxed));
}

void VolumeReplicator::Adopted(FileId parent, const char* name, FileId id) {
  events_.Report(Severity::kWarning, "object_without_id",
                 {{"volume", options_.volume_name},
                  {"parent", std::to_string(Raw(parent))},
                  {"name", name},
                  {"id", std::to_string(Raw(id))},
                  {"reason", "it was put into the backing directory beside the mount: no replica has it"}});
}

// --- SyncObserver ---

void VolumeReplicator::Suspended(FileId file) {
  ++suspended_;
  events_.Report(Severity::kWarning, "sync_suspended",
                 {{"volume", options_.volume_name}, {"file", std::to_string(Raw(file))}});
}

void VolumeReplicator::Resumed(FileId file) {
  --suspended_;
  events_.Report(Severity::kInfo, "sync_resumed",
                 {{"volume", options_.volume_name}, {"file", std::to_string(Raw(file))}});
}

void VolumeReplicator::Failed(FileId file, int error) {
  if (error == EINTR) {
    return;
  }
  events_.Report(Severity::kError, "sync_failed",
                 {{"volume", options_.volume_name},
                  {"file", std::to_string(Raw(file))},
                  {"reason", std::strerror(error)}});
}

void VolumeReplicator::Recaptured() { ++recaptures_; }

void VolumeReplicator::Refused(size_t replica, int error) {
  if (Proceeds()) {
    options_.refused(replica, error);
  } else {
    refusals_[replica] = error;
  }
}

int VolumeReplicator::OwnWaits::Interrupted(bool suspended) {
  const std::lock_guard lock(owner_.converge_mutex_);
  return suspended || owner_.stopping_ ? EINTR : 0;
}

// Of a caller that waits for a round which another runs: it is not known whether that one is announced as suspended, only whether any is.
int VolumeReplicator::InterruptedByOwnSignal() { return Interrupted(suspended_ > 0); }

int VolumeReplicator::Interrupted(bool suspended) {
  switch (CurrentInterruption()) {
    case Interruption::kKill:
      return EINTR;
    case Interruption::kSignal:
      return suspended ? EINTR : 0;
    case Interruption::kNone:
      return 0;
  }
  return 0;
}

}  // namespace pmirror::fs
