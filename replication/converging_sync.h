// SPDX-License-Identifier: BSD-3-Clause
// One sync on its way: the state behind Replication::Replicate (replicate.cc), for that file alone. Used by one thread; async-signal-safe.
#pragma once

#include <array>
#include <chrono>
#include <optional>
#include <span>

#include "replication/log_capture.h"
#include "replication/patience.h"
#include "replication/replica_mask.h"
#include "replication/replicate.h"

namespace pmirror {

class Sync {
 public:
  Sync(const VolumePage& page, std::span<DataSession* const> sessions, StagingPool& staging,
       SyncObserver& observer, const CaptureTarget& target, std::span<const Extent> extents,
       ByteSource& source, WaitLevel level, LocalPersist* local, ReplicaMask considered, CaptureOutlet outlet)
      : page_(page),
        considered_(considered),
        outlet_(outlet),
        sessions_(sessions),
        staging_(staging),
        observer_(observer),
        target_(target),
        extents_(extents),
        source_(source),
        level_(level),
        local_(local),
        patience_(page, observer, target.file) {}

  Error Run() {
    const Error error = Converge();
    patience_.Ended(error.code);
    return error;
  }

  static constexpr std::chrono::milliseconds kFirstPause{
      1};  // between attempts that cannot succeed at once; doubles

 private:
  // One capture on its way: what each replica was sent and said.
  struct Attempt {
    Order order;
    SetWord set;
    Epoch epoch{};
    ReplicaMask begun = 0;  // captures registered with these sessions
    ReplicaMask alive = 0;  // nothing has gone wrong with these yet
    std::array<CaptureInFlight, kMaxReplicas> captures;
    std::array<Receipt, kMaxReplicas> receipts;
    bool barrier_sent = false;
    uint64_t bytes = 0;  // payload sent
  };

  Error Converge();
  Error Fenced() const;
  void Adopt(SetWord set);
  ReplicaMask Reachable(ReplicaMask missing);
  Error CaptureFor(ReplicaMask trailing);
  bool AwaitRpo(SetWord set);
  Error Try(SetWord set, ReplicaMask replicas);
  std::optional<Order> TakeOrderPatiently();
  Error SendAll(Attempt& attempt);
  bool SizeMoved(Attempt& attempt);
  void DropLeavers(Attempt& attempt);
  void SendToEach(Attempt& attempt, FrameToSend frame);
  void SendBarrier(Attempt& attempt);
  size_t FrameBudget(ReplicaMask replicas) const;
  SendStatus AwaitOne(Attempt& attempt, size_t replica);
  Error Conclude(Attempt& attempt, size_t replica, SendStatus status);
  void PersistHere();
  void Pause();
  void Advanced(uint64_t bytes);

  const VolumePage& page_;
  const ReplicaMask considered_;
  const CaptureOutlet outlet_;
  const std::span<DataSession* const> sessions_;
  StagingPool& staging_;
  SyncObserver& observer_;
  const CaptureTarget& target_;
  const std::span<const Extent> extents_;
  ByteSource& source_;
  const WaitLevel level_;
  LocalPersist* const local_;
  Patience patience_;

  ReplicaMask done_ = 0;  // these have it at the wanted level
  std::optional<SetWord> seen_;
  uint64_t seen_epoch_ = 0;
  bool persisted_ = false;
  bool captured_ = false;  // something, for replicas that trail
  Error local_error_;
  bool sent_before_ = false;  // a frame of an earlier attempt may have arrived
  uint64_t furthest_ = 0;     // bytes that any attempt has got into the transport
  int retries_ = 0;
  bool superseded_ = false;  // a replica said so when we connected
  bool pause_ = false;       // another attempt at once would be in vain
  std::chrono::milliseconds next_pause_ = kFirstPause;
};

}  // namespace pmirror
