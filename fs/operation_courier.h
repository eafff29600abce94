// SPDX-License-Identifier: BSD-3-Clause
// Brings the operations of the log to one replica, in order, over the daemon's session.
//
// Group commit: what has been appended while a batch was on its way travels in the next one, and one wait serves everybody. There is no
// thread of its own: whoever waits for an operation takes the role of the courier when it is free. Thread-safe; every call ends at its deadline.
// ---
// For maintainers. A batch keeps its receipt when its courier's deadline passes: the next courier goes on waiting for it instead of sending
// it again. A refusal concerns the batch as a whole (what follows a refused operation is `blocked`), so after one the operations go
// singly, until it is known which one is refused and why. Needless repeats are dropped by the replica.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>

#include "fs/operation_log.h"
#include "replication/data_session.h"
#include "replication/deadline.h"

namespace pmirror::fs {

class OperationCourier {
 public:
  // Both must outlive the courier.
  OperationCourier(const OperationLog& log, DataSession& session, Epoch epoch)
      : log_(log), session_(session), epoch_(epoch) {}
  ~OperationCourier();

  // 0 when the replica has applied the operations up to `number`. Otherwise, and not before the deadline: EIO (no answer, or its storage
  // failed), ENOSPC (it has no room for one of them). ESTALE at once: it follows a newer primary.
  // Requires: number <= log.last().
  int Deliver(uint64_t number, Deadline deadline);

  // Sends what is to be sent up to `number`, when that needs no waiting. For a caller that will Deliver to several replicas.
  void Begin(uint64_t number);

  // A connection was made, to a replica that has applied operations up to `operation`.
  void Resumed(uint64_t operation);

  // Highest operation known to be applied there.
  uint64_t applied() const;
  // Why the operation behind applied() is refused; 0 when it is not.
  int refusal() const;

 private:
  // Operations [.., last] that were sent and not answered yet.
  struct Batch {
    bool under_way = false;
    uint64_t first = 0;
    uint64_t last = 0;
    Receipt receipt;
    CaptureInFlight capture;  // registered with the session while under_way
  };

  void Step(Deadline deadline);
  SendStatus Launch(Deadline deadline);
  void Conclude(SendStatus status);

  const OperationLog& log_;
  DataSession& session_;
  const Epoch epoch_;
  Batch batch_;  // of whoever has the role

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool role_taken_ = false;  // guarded by mutex_, as all below
  bool singly_ = false;
  uint64_t applied_ = 0;
  int refusal_ = 0;
  bool superseded_ = false;
};

}  // namespace pmirror::fs
