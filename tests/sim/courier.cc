// SPDX-License-Identifier: BSD-3-Clause
// How courier.h does it.
#include "tests/sim/courier.h"

#include <algorithm>
#include <cerrno>

namespace pmirror::sim {
namespace {

constexpr Time kRetryPause = 10 * kMs;
constexpr uint64_t kMaxBatch = 256;

}  // namespace

Task<int> Courier::Deliver(uint64_t number, Time deadline) {
  while (applied_ < number) {
    if (world_.now() >= deadline) {
      co_return refusal_ != 0 ? refusal_ : EIO;
    }
    if (role_taken_) {
      co_await changed_.Wait(deadline);
      continue;
    }
    role_taken_ = true;
    const uint64_t before = applied_;
    co_await StepOnce(deadline);
    role_taken_ = false;
    changed_.Notify();
    if (applied_ == before && !batch_.under_way) {
      co_await changed_.Wait(std::min(deadline, world_.now() + kRetryPause));
    }
  }
  co_return 0;
}

Task<> Courier::StepOnce(Time deadline) {
  if (!batch_.under_way) {
    const int error = co_await session_.EnsureConnected(deadline);
    if (error != 0) {
      co_return;
    }
    co_await world_.loop.Step();
    const SendStatus status = co_await Launch(deadline);
    if (status != SendStatus::kOk) {
      Conclude(status);
      co_return;
    }
  }
  const SendStatus status =
      co_await session_.Await(batch_.receipt, WaitLevel::kReceived, &batch_.capture, deadline);
  if (status != SendStatus::kTimedOut) {
    Conclude(status);
  }
}

Task<SendStatus> Courier::Launch(Time deadline) {
  applied_ = std::max(applied_, log_.first() - 1);
  batch_.first =
      applied_ + (world_.Has(Planted::kOperationsReplayedTooLate) && session_.incarnation() > 1 ? 2 : 1);
  batch_.last = std::min(log_.last(), batch_.first + (singly_ ? 0 : kMaxBatch - 1));
  batch_.capture = {};
  batch_.receipt = {};
  batch_.under_way = true;
  session_.Begin(batch_.capture);
  SendStatus status = SendStatus::kOk;
  for (uint64_t number = batch_.first; number <= batch_.last && status == SendStatus::kOk; ++number) {
    const fs::OperationLog::Bytes bytes = log_.Get(number);
    if (bytes == nullptr) {
      continue;
    }
    FrameToSend frame;
    frame.kind = FrameKind::kNamespaceOp;
    frame.flags = number == batch_.last ? kFlagAckWanted : 0;
    frame.epoch = Epoch{1};
    frame.order = number;
    frame.payload = *bytes;
    frame.capture = &batch_.capture;
    status = co_await session_.Send(frame, deadline, batch_.receipt);
    co_await world_.loop.Step();
  }
  co_return status;
}

void Courier::Conclude(SendStatus status) {
  session_.End(batch_.capture);
  batch_.under_way = false;
  if (status == SendStatus::kOk) {
    applied_ = std::max(applied_, batch_.last);
    refusal_ = 0;
    singly_ = false;
    return;
  }
  if (status != SendStatus::kRefused) {
    return;
  }
  const int error = RefusalCode{batch_.capture.refusal.code} == RefusalCode::kNoSpace ? ENOSPC : EIO;
  if (singly_) {
    refusal_ = error;
  }
  singly_ = true;
}

}  // namespace pmirror::sim
