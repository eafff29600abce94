// SPDX-License-Identifier: BSD-3-Clause
// See operation_courier.h.
#include "fs/operation_courier.h"

#include <algorithm>
#include <cerrno>
#include <chrono>

namespace pmirror::fs {
namespace {

constexpr std::chrono::milliseconds kRetryPause{20};  // after an attempt that was in vain
constexpr uint64_t kMaxBatch = 256;                   // operations

std::chrono::steady_clock::time_point TimeOf(Deadline deadline) {
  return std::chrono::steady_clock::now() + deadline.Remaining();
}

int ErrorOf(const RefusalBody& refusal) {
  switch (RefusalCode{refusal.code}) {
    case RefusalCode::kNoSpace:
      return ENOSPC;
    case RefusalCode::kOldEpoch:
      return ESTALE;
    default:
      return EIO;
  }
}

}  // namespace

OperationCourier::~OperationCourier() {
  if (batch_.under_way) {
    session_.End(batch_.capture);
  }
}

int OperationCourier::Deliver(uint64_t number, Deadline deadline) {
  std::unique_lock lock(mutex_);
  while (applied_ < number) {
    if (superseded_) {
      return ESTALE;
    }
    if (deadline.Expired()) {
      return refusal_ != 0 ? refusal_ : EIO;
    }
    if (role_taken_) {
      changed_.wait_until(lock, TimeOf(deadline));
      continue;
    }
    role_taken_ = true;
    const uint64_t before = applied_;
    lock.unlock();
    Step(deadline);
    lock.lock();
    role_taken_ = false;
    changed_.notify_all();
    if (applied_ == before && !batch_.under_way) {
      changed_.wait_until(lock, std::min(TimeOf(deadline), std::chrono::steady_clock::now() + kRetryPause));
    }
  }
  return 0;
}

void OperationCourier::Begin(uint64_t number) {
  {
    const std::lock_guard lock(mutex_);
    if (applied_ >= number || role_taken_ || batch_.under_way || superseded_) {
      return;
    }
    role_taken_ = true;
  }
  if (session_.connected()) {
    if (const SendStatus status = Launch(Deadline::After(Deadline::Duration::zero()));
        status != SendStatus::kOk && batch_.under_way) {
      Conclude(status);
    }
  }
  {
    const std::lock_guard lock(mutex_);
    role_taken_ = false;
  }
  changed_.notify_all();
}

// Requires: the caller has the role.
void OperationCourier::Step(Deadline deadline) {
  if (!batch_.under_way) {
    if (const Error error = session_.EnsureConnected(deadline); !error.ok()) {
      const std::lock_guard lock(mutex_);
      superseded_ = superseded_ || error.code == ESTALE;
      return;
    }
    if (const SendStatus status = Launch(deadline); status != SendStatus::kOk) {
      if (batch_.under_way) {
        Conclude(status);
      }
      return;
    }
  }
  if (batch_.under_way) {
    const SendStatus status = session_.Await(batch_.receipt, WaitLevel::kReceived, &batch_.capture, deadline);
    if (status != SendStatus::kTimedOut) {
      Conclude(status);
    }
  }
}

SendStatus OperationCourier::Launch(Deadline deadline) {
  {
    const std::lock_guard lock(mutex_);
    if (applied_ + 1 < log_.first()) {
      return SendStatus::
          kTimedOut;  // the log has dropped what it lacks: a comparison of the trees has to bring that
    }
    batch_.first = applied_ + 1;
    // A new connection may have told that all of them have arrived: then the batch is empty.
    batch_.last = std::min(log_.last(), batch_.first + (singly_ ? 0 : kMaxBatch - 1));
  }
  batch_.capture = {};
  batch_.receipt = {};
  batch_.under_way = true;
  session_.Begin(batch_.capture);
  SendStatus status = SendStatus::kOk;
  for (uint64_t number = batch_.first; number <= batch_.last && status == SendStatus::kOk; ++number) {
    const OperationLog::Bytes bytes = log_.Get(number);
    if (bytes == nullptr) {
      continue;
    }
    FrameToSend frame;
    frame.kind = FrameKind::kNamespaceOp;
    frame.flags = number == batch_.last ? kFlagAckWanted : 0;
    frame.epoch = epoch_;
    frame.order = number;
    frame.payload = *bytes;
    frame.capture = &batch_.capture;
    status = session_.Send(frame, deadline, batch_.receipt);
  }
  return status;
}

void OperationCourier::Conclude(SendStatus status) {
  session_.End(batch_.capture);
  batch_.under_way = false;
  const std::lock_guard lock(mutex_);
  if (status == SendStatus::kOk) {
    applied_ = std::max(applied_, batch_.last);
    refusal_ = 0;
    singly_ = false;
    return;
  }
  if (status != SendStatus::kRefused) {
    return;  // the connection broke, or stood still: again, from where the replica says it is
  }
  const int error = ErrorOf(batch_.capture.refusal);
  superseded_ = superseded_ || error == ESTALE;
  if (singly_) {
    refusal_ = error;
  }
  singly_ = true;
}

void OperationCourier::Resumed(uint64_t operation) {
  {
    const std::lock_guard lock(mutex_);
    applied_ = operation;
  }
  changed_.notify_all();
}

uint64_t OperationCourier::applied() const {
  const std::lock_guard lock(mutex_);
  return applied_;
}

int OperationCourier::refusal() const {
  const std::lock_guard lock(mutex_);
  return refusal_;
}

}  // namespace pmirror::fs
