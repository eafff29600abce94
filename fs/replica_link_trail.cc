// SPDX-License-Identifier: BSD-3-Clause
// A link to a replica that trails: how it begins, and the way of a batch. See replica_link.h and docs/internals/rpo.md.
#include <algorithm>
#include <cerrno>

#include "fs/replica_link.h"
#include "fs/uuid_bytes.h"

namespace pmirror::fs {
namespace {

using Fate = BatchCarrier::Fate;

constexpr size_t kPiece = 512 * 1024;  // bytes of a batch in one frame

Fate FateOf(const RefusalBody& refusal) {
  switch (RefusalCode{refusal.code}) {
    case RefusalCode::kNoSpace:
      return Fate::kFull;
    case RefusalCode::kOldEpoch:
      return Fate::kFenced;
    case RefusalCode::kRecapture:  // a piece of it was lost with a connection
      return Fate::kLost;
    default:
      return Fate::kUnfit;
  }
}

}  // namespace

absl::StatusOr<uint64_t> ReplicaLink::BeginTrailing(std::chrono::milliseconds timeout) {
  control::BeginTrailingRequest request;
  request.set_volume(UuidBytes(options_.volume));
  request.set_node(options_.primary_node);
  request.set_epoch(Raw(options_.epoch));
  request.set_mount_number(options_.mount_number);
  request.set_generation(options_.history.generation);
  const absl::StatusOr<control::BeginTrailingReply> reply = control_.BeginTrailing(request, timeout);
  if (!reply.ok()) {
    return reply.status();
  }
  return reply->operation();
}

Fate ReplicaLink::ShipBatch(uint64_t number, std::span<const std::byte> batch, Deadline deadline) {
  if (const Error error = session_->EnsureConnected(deadline); !error.ok()) {
    return error.code == ESTALE ? Fate::kFenced : Fate::kLost;
  }
  CaptureInFlight capture;
  capture.incarnation = session_->Incarnation();
  capture.order = number;
  session_->Begin(capture);
  Receipt receipt;
  SendStatus status = SendStatus::kOk;
  for (size_t at = 0; at < batch.size() && status == SendStatus::kOk;) {
    const auto piece = batch.subspan(at, std::min(kPiece, batch.size() - at));
    const WireRange range{.offset = at, .length = piece.size()};
    FrameToSend frame;
    frame.kind = FrameKind::kBatch;
    frame.flags = at + piece.size() < batch.size() ? kFlagContinues : kFlagAckWanted;
    frame.epoch = options_.epoch;
    frame.order = number;
    frame.ranges = {&range, 1};
    frame.payload = piece;
    frame.capture = &capture;
    status = session_->Send(frame, deadline, receipt);
    if (status == SendStatus::kSenderFull || status == SendStatus::kPeerCongested) {
      status = deadline.Expired() ? SendStatus::kTimedOut : SendStatus::kOk;
      continue;  // the same piece
    }
    at += piece.size();
    deadline = Deadline::After(options_.deadline);  // something moves
  }
  while (status == SendStatus::kOk) {
    const Sequence received = session_->Received();
    status = session_->Await(receipt, WaitLevel::kReceived, &capture, deadline);
    if (status != SendStatus::kTimedOut || session_->Received() == received) {
      break;
    }
    status = SendStatus::kOk;
    deadline = Deadline::After(options_.deadline);
  }
  session_->End(capture);
  return status == SendStatus::kOk        ? Fate::kApplied
         : status == SendStatus::kRefused ? FateOf(capture.refusal)
                                          : Fate::kLost;
}

}  // namespace pmirror::fs
