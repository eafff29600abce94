// SPDX-License-Identifier: BSD-3-Clause
// Brings the operations of the (real) log to one replica. Mirrors fs/operation_courier.cc, function by function.
#pragma once

#include "fs/operation_log.h"
#include "tests/sim/session.h"

namespace pmirror::sim {

class Courier {
 public:
  Courier(World& world, const fs::OperationLog& log, Session& session)
      : world_(world), log_(log), session_(session), changed_(world.loop) {}

  // 0, or an errno not before the deadline.
  Task<int> Deliver(uint64_t number, Time deadline);
  void Resumed(uint64_t operation) {
    applied_ = operation;
    changed_.Notify();
  }
  int refusal() const { return refusal_; }

 private:
  Task<> StepOnce(Time deadline);
  Task<SendStatus> Launch(Time deadline);
  void Conclude(SendStatus status);

  World& world_;
  const fs::OperationLog& log_;
  Session& session_;
  Signal changed_;
  struct {
    bool under_way = false;
    uint64_t first = 0;
    uint64_t last = 0;
    Receipt receipt;
    CaptureInFlight capture;
  } batch_;
  bool role_taken_ = false;
  bool singly_ = false;
  uint64_t applied_ = 0;
  int refusal_ = 0;
};

}  // namespace pmirror::sim
