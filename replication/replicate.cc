// SPDX-License-Identifier: BSD-3-Clause
// Replication::Replicate: one sync as a loop that converges. Each turn looks at the volume page, picks the
// replicas that do not have the capture yet, and makes one attempt with those that can be reached; it ends
// when the set word, read after the last acknowledgement, asks for nobody else, or when patience runs out. A
// new attempt is a new capture: new order number, bytes copied again.
#include "replication/replicate.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>

#include "replication/converging_sync.h"
#include "replication/frame_filler.h"
#include "replication/futex_mutex.h"
#include "replication/signal_guard.h"

namespace pmirror {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kConnectSlice{
    1000};  // one try to connect, after which the volume page is looked at again
constexpr milliseconds kLongestPause{64};
// What one frame of a large capture carries at most: while the replica applies it, the next one is copied. Measured with 4 MiB in pages: a
// quarter less time than with the largest frames, and no more with smaller ones.
constexpr size_t kPipelinedFrame = 256 << 10;
constexpr int kRetriesAtOnce = 3;  // then with pauses: what was in the way is still there

// What a refusal with a reason means for the sync: an error, or nothing when waiting may cure it.
Error Judge(const RefusalBody& refusal) {
  switch (RefusalCode{refusal.code}) {
    case RefusalCode::kNoSpace:
      return {ENOSPC, "replicate: the replica's file system is full"};
    case RefusalCode::kOldEpoch:
      return {ESTALE, "replicate: the replica follows a newer primary"};
    case RefusalCode::kNoSuchFile:
      return {EIO, "replicate: the replica has no such file"};
    case RefusalCode::kOutOfRange:
      return {EIO, "replicate: beyond the largest file of the replica's file system"};
    case RefusalCode::kIoError:
      return {EIO, "replicate: the replica's storage failed"};
    case RefusalCode::kRecapture:
    case RefusalCode::kNotGranted:  // after a restart of the replica the daemon grants again
    case RefusalCode::kBlocked:     // the daemon repeats the operation that blocks
      return Error::Ok();
  }
  return {EIO, "replicate: refused for an unknown reason"};
}

}  // namespace

Error Sync::Converge() {
  while (true) {
    PMIRROR_RETURN_IF_ERROR(Fenced());
    const SetWord set = LoadSet(page_);
    Adopt(set);
    const auto missing = static_cast<ReplicaMask>(set.sent_to() & considered_ & ~done_);
    const auto uncaptured =
        static_cast<ReplicaMask>(considered_ == kAllReplicas ? set.trailing() & ~done_ : 0);
    if (missing == 0 && uncaptured == 0 && (considered_ != kAllReplicas || MaySucceed(page_, set))) {
      PersistHere();
      PMIRROR_RETURN_IF_ERROR(local_error_);
      if (!AwaitRpo(set)) {
        return Error::Ok();
      }
    }
    if (uncaptured != 0) {
      PMIRROR_RETURN_IF_ERROR(CaptureFor(uncaptured));
      if ((uncaptured & ~done_) == 0) {
        continue;  // that took no time
      }
    }
    if (patience_.RanOut()) {
      return {patience_.error(), "replicate: no answer from the replica within the deadline"};
    }
    if (missing == 0 && (MaySucceed(page_, set) || uncaptured != 0)) {
      continue;
    }
    const ReplicaMask reachable = Reachable(missing);
    if (superseded_) {
      return {ESTALE, "replicate: the replica follows a newer primary"};
    }
    pause_ = reachable == 0;
    if (reachable != 0) {
      PMIRROR_RETURN_IF_ERROR(Try(set, reachable));
    }
    PersistHere();
    PMIRROR_RETURN_IF_ERROR(local_error_);
    if (pause_) {
      Pause();
    }
  }
}

Error Sync::Fenced() const {
  if (page_.state.load(std::memory_order_acquire) == static_cast<uint32_t>(VolumeState::kFenced)) {
    return {ESTALE, "replicate: another node is or may be primary"};
  }
  return Error::Ok();
}

// What a replica acknowledged counts as long as the set moves in single steps that we have seen; a replica
// that may have left and come back in between, or a new epoch, starts afresh.
void Sync::Adopt(SetWord set) {
  const uint64_t epoch = page_.epoch.load(std::memory_order_acquire);
  const bool same = seen_.has_value() && seen_->version() == set.version() && epoch == seen_epoch_;
  const bool one_step =
      seen_.has_value() && Raw(set.version()) == Raw(seen_->version()) + 1 && epoch == seen_epoch_;
  if (same) {
    return;
  }
  if (!one_step) {
    done_ = 0;
  }
  done_ &= static_cast<ReplicaMask>(set.sent_to() | set.trailing());
  seen_ = set;
  seen_epoch_ = epoch;
  furthest_ = 0;  // who is new gets all of it
  next_pause_ = kFirstPause;
}

// Replicas that trail get the bytes by way of the log: once for all of them.
Error Sync::CaptureFor(ReplicaMask trailing) {
  if (outlet_.log == nullptr) {
    return {EIO, "replicate: there is no capture log, and a replica trails"};
  }
  const Result<bool> captured =
      LogCapture(page_, outlet_, patience_).Capture(target_, extents_, source_, trailing);
  if (!captured.ok()) {
    return captured.error();
  }
  if (target_.taken != nullptr) {
    *target_.taken = 0;  // what was copied last is in no frame
  }
  if (captured.value()) {
    done_ |= trailing;
    captured_ = captured_ || !extents_.empty();
  }
  return Error::Ok();
}

// True when a replica lags more than it may: then it was waited for, a while.
bool Sync::AwaitRpo(SetWord set) {
  // A durable one with nothing to capture, too: it answers for operations on the tree, and for what was captured before it.
  if (set.trailing() == 0 || outlet_.clock == nullptr || (!captured_ && level_ != WaitLevel::kDurable)) {
    return false;
  }
  LogCapture capture(page_, outlet_, patience_);
  const uint32_t acks = page_.trail_acks.load(std::memory_order_acquire);
  const ReplicaMask lagging = capture.Lagging(set.trailing());
  if (lagging == 0) {
    return false;
  }
  capture.AwaitShipping(lagging, acks);
  return true;
}

// Those connected already go first, so that one that is gone does not keep the bytes from the others.
ReplicaMask Sync::Reachable(ReplicaMask missing) {
  ReplicaMask reachable = 0;
  ForEach(missing, [&](size_t replica) {
    if (replica < sessions_.size() && sessions_[replica] != nullptr && sessions_[replica]->connected()) {
      reachable |= Bit(replica);
    }
  });
  if (reachable != 0) {
    return reachable;
  }
  ForEach(missing, [&](size_t replica) {
    if (replica < sessions_.size() && sessions_[replica] != nullptr) {
      const Error error = sessions_[replica]->EnsureConnected(patience_.Within(kConnectSlice));
      reachable |= error.ok() ? Bit(replica) : 0;
      superseded_ |= error.code == ESTALE;
    }
  });
  return reachable;
}

// One capture, sent to `replicas` and awaited. An error ends the sync; everything else shows in done_.
Error Sync::Try(SetWord set, ReplicaMask replicas) {
  Attempt attempt;
  attempt.set = set;
  attempt.epoch = Epoch{seen_epoch_};
  attempt.alive = replicas;
  ForEach(replicas, [&](size_t replica) {  // before the order number: see CaptureInFlight::incarnation
    attempt.captures[replica].incarnation = sessions_[replica]->Incarnation();
  });
  if (!extents_.empty()) {
    const std::optional<Order> order = TakeOrderPatiently();
    if (!order.has_value()) {
      return Error::Ok();
    }
    attempt.order = *order;
    if (target_.taken != nullptr) {
      *target_.taken = order->number;
    }
  }
  ForEach(replicas, [&](size_t replica) {
    attempt.captures[replica].file = target_.file;
    attempt.captures[replica].order = attempt.order.number;
    sessions_[replica]->Begin(attempt.captures[replica]);
  });
  attempt.begun = replicas;

  Error error = SendAll(attempt);
  sent_before_ = true;
  if (error.ok()) {
    PersistHere();
    error = local_error_;
  }
  ForEach(attempt.begun, [&](size_t replica) {
    const bool awaited = error.ok() && (attempt.alive & Bit(replica)) != 0;
    const SendStatus status = awaited ? AwaitOne(attempt, replica) : SendStatus::kTimedOut;
    sessions_[replica]->End(attempt.captures[replica]);
    if (error.ok()) {
      error = Conclude(attempt, replica, status);
    }
  });
  return error;
}

// Nothing when fenced or out of patience; the loop finds that out itself.
std::optional<Order> Sync::TakeOrderPatiently() {
  const std::atomic<uint64_t>& generation = target_.slot->size_generation;
  while (true) {
    const std::optional<Order> order = TakeOrder(*target_.order, generation);
    if (order.has_value()) {
      return order;
    }
    const uint64_t seen = generation.load(std::memory_order_acquire);
    if (seen % 2 == 0) {
      continue;  // it moved just then
    }
    if (patience_.RanOut() || !Fenced().ok()) {
      return std::nullopt;
    }
    const SignalWindow window(SignalWindow::kNow);
    FutexWait(&generation, static_cast<uint32_t>(seen), patience_.Slice(), FutexScope::kShared);
  }
}

// A copy that ran into a size operation may be clipped by it: the capture starts again under the new
// generation (docs/internals/capture-order.md, R5).
bool Sync::SizeMoved(Attempt& attempt) {
  if (target_.slot->size_generation.load(std::memory_order_seq_cst) == attempt.order.size_generation) {
    return false;
  }
  attempt.alive = 0;
  return true;
}

// Who has left the set gets nothing that was copied after: another sync may have succeeded without it meanwhile, so that these bytes would
// be newer there than what is missing (promise P2). Bytes that were copied while it was in the set are older than any such success.
void Sync::DropLeavers(Attempt& attempt) {
  const SetWord set = LoadSet(page_);
  attempt.alive &= set.sent_to();
}

Error Sync::SendAll(Attempt& attempt) {
  FrameFiller filler(extents_, source_);
  bool last = extents_.empty();
  while (!last && attempt.alive != 0) {
    Result<StagingPool::Buffer> buffer = staging_.Take(patience_.limit());
    if (!buffer.ok()) {
      attempt.alive = 0;
      return Error::Ok();
    }
    const Result<StagedFrame> staged = filler.Fill(buffer.value().bytes(), FrameBudget(attempt.alive));
    if (!staged.ok()) {
      return staged.error();
    }
    if (SizeMoved(attempt)) {
      return Error::Ok();
    }
    DropLeavers(attempt);
    last = staged.value().last;
    if (staged.value().payload.empty()) {
      continue;
    }
    FrameToSend frame;
    frame.kind = FrameKind::kDataImage;
    frame.file = target_.file;
    frame.order = attempt.order.number;
    frame.size_generation = attempt.order.size_generation;
    frame.ranges = staged.value().ranges;
    frame.payload = staged.value().payload;
    frame.payload_crc = staged.value().payload_crc;
    frame.flags = sent_before_ ? kFlagRecaptured : 0;
    if (target_.group) {
      if (!last || attempt.bytes != 0) {
        return {E2BIG, "replicate: the group does not fit one frame"};
      }
      frame.flags |= kFlagGroup;
    }
    if (!last) {
      frame.flags |= kFlagContinues;
    } else {
      frame.flags |= level_ == WaitLevel::kDurable ? kFlagAckWanted | kFlagBarrier : kFlagAckWanted;
      attempt.barrier_sent = true;
    }
    SendToEach(attempt, frame);
    attempt.bytes += frame.payload.size();
    Advanced(attempt.bytes);
  }
  SendBarrier(attempt);
  return Error::Ok();
}

// When no frame could carry the barrier: no extents, or the file ended where the last of them would have
// been.
void Sync::SendBarrier(Attempt& attempt) {
  const bool nothing_to_ask = level_ == WaitLevel::kReceived && attempt.bytes == 0;
  if (attempt.barrier_sent || nothing_to_ask) {
    return;
  }
  FrameToSend frame;
  frame.kind = FrameKind::kBarrier;
  frame.flags = kFlagAckWanted;
  frame.file = target_.file;  // durable too: what other sessions wrote to it
  SendToEach(attempt, frame);
}

void Sync::SendToEach(Attempt& attempt, FrameToSend frame) {
  frame.epoch = attempt.epoch;
  frame.set_version = attempt.set.version();
  ForEach(attempt.alive, [&](size_t replica) {
    frame.capture = &attempt.captures[replica];
    SendStatus status = SendStatus::kOk;
    do {
      status = sessions_[replica]->Send(frame, patience_.limit(), attempt.receipts[replica]);
    } while ((status == SendStatus::kSenderFull || status == SendStatus::kPeerCongested) &&
             !patience_.RanOut());
    if (status != SendStatus::kOk) {
      attempt.alive &= static_cast<ReplicaMask>(~Bit(replica));
    }
  });
}

size_t Sync::FrameBudget(ReplicaMask replicas) const {
  size_t budget = kPipelinedFrame;
  ForEach(replicas, [&](size_t replica) { budget = std::min(budget, sessions_[replica]->FrameBudget()); });
  return budget;
}

// Progress of the peer up to our frame counts, too: a large capture takes its time to apply.
SendStatus Sync::AwaitOne(Attempt& attempt, size_t replica) {
  DataSession& session = *sessions_[replica];
  const Receipt& receipt = attempt.receipts[replica];
  if (receipt.sequence == 0) {
    return SendStatus::kOk;  // there was nothing to send
  }
  Sequence reached = 0;
  while (true) {
    const SendStatus status = session.Await(receipt, level_, &attempt.captures[replica], patience_.Slice());
    if (status != SendStatus::kTimedOut) {
      return status;
    }
    const Sequence received = std::min(session.Received(), receipt.sequence);
    if (received > reached) {
      reached = received;
      patience_.Progress();
    }
    const SetWord set = LoadSet(page_);
    const bool wanted = (set.sent_to() & Bit(replica)) != 0;
    if (!wanted || !Fenced().ok() || patience_.RanOut()) {
      return SendStatus::kTimedOut;
    }
  }
}

// Requires: the capture was ended, so that nobody writes to it any more.
Error Sync::Conclude(Attempt& attempt, size_t replica, SendStatus status) {
  const CaptureInFlight& capture = attempt.captures[replica];
  if (status == SendStatus::kOk) {
    done_ |= Bit(replica);
    return Error::Ok();
  }
  if (capture.status == SendStatus::kRecapture) {
    observer_.Recaptured();
  }
  if (capture.status == SendStatus::kRefused) {
    const Error error = Judge(capture.refusal);
    const bool old_epoch = RefusalCode{capture.refusal.code} == RefusalCode::kOldEpoch;
    if (old_epoch && page_.epoch.load(std::memory_order_acquire) != Raw(attempt.epoch)) {
      return Error::Ok();  // ours moved on meanwhile
    }
    pause_ = true;
    const bool gone = RefusalCode{capture.refusal.code} == RefusalCode::kNoSuchFile;
    if (!error.ok() && !old_epoch && !gone) {
      observer_.Refused(replica, error.code);
      if (page_.on_loss == static_cast<uint32_t>(OnLoss::kProceed)) {
        return Error::Ok();  // until the daemon has taken that replica out
      }
    }
    return error;
  }
  ++retries_;
  pause_ = pause_ || retries_ > kRetriesAtOnce;
  return Error::Ok();
}

void Sync::PersistHere() {
  if (local_ == nullptr || persisted_) {
    return;
  }
  persisted_ = true;
  const SignalWindow window(SignalWindow::kNow);
  local_error_ = local_->Persist();
}

// Until the in-sync set moves, or for a while.
void Sync::Pause() {
  const Deadline deadline = patience_.Within(next_pause_);
  next_pause_ = std::min(2 * next_pause_, kLongestPause);
  const SignalWindow window(SignalWindow::kNow);
  FutexWait(&page_.set, static_cast<uint32_t>(seen_->raw), deadline, FutexScope::kShared);
}

// Only what no attempt had reached before is progress: a peer that takes bytes and never answers is none.
void Sync::Advanced(uint64_t bytes) {
  if (bytes > furthest_) {
    furthest_ = bytes;
    patience_.Progress();
  }
}

Replication::Replication(const VolumePage& page, std::span<DataSession* const> sessions, StagingPool& staging,
                         SyncObserver& observer)
    : page_(page), sessions_(sessions), staging_(staging), observer_(observer) {}

Replication::Replication(const VolumePage& page, std::span<DataSession* const> sessions, StagingPool& staging,
                         SyncObserver& observer, size_t only)
    : page_(page), sessions_(sessions), staging_(staging), observer_(observer), considered_(Bit(only)) {}

Error Replication::Replicate(const CaptureTarget& target, std::span<const Extent> extents, ByteSource& source,
                             WaitLevel level, LocalPersist* local) {
  int state = 0;
  int type = 0;
  ::pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
  ::pthread_setcanceltype(PTHREAD_CANCEL_DEFERRED, &type);
  Error result;
  {
    const SignalBlock block;
    result = Sync(page_, sessions_, staging_, observer_, target, extents, source, level, local, considered_,
                  outlet_)
                 .Run();
  }
  // Not RAII: the thread may end here, and a destructor may not be left that way. The state before the type,
  // because glibc 2.36 loses the thread's result when enabling an asynchronous cancellation that is pending.
  ::pthread_setcancelstate(state, nullptr);
  if (type == PTHREAD_CANCEL_ASYNCHRONOUS) {
    ::pthread_testcancel();
    ::pthread_setcanceltype(type, nullptr);
  }
  return result;
}

}  // namespace pmirror
