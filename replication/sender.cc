// SPDX-License-Identifier: BSD-3-Clause
// The state machine of the sending end: see sender.h.
#include "replication/sender.h"

#include <algorithm>
#include <cassert>

namespace pmirror {

Error Sender::Connected(SessionId session, const HelloAckBody& resumed) {
  connected_ = false;
  if (resumed.received_sequence >= next_) {
    return {EPROTO, "resume the session: the replica claims frames that were never sent"};
  }
  if (resumed.durable_sequence > resumed.received_sequence) {
    return {EPROTO, "resume the session: the replica claims more durable than received"};
  }
  if (resumed.credit_limit < kMinCreditWindow) {
    return {EPROTO, "resume the session: the replica offers less credit than one frame needs"};
  }
  session_ = session;
  ++incarnation_;
  received_ = resumed.received_sequence;
  durable_ = resumed.durable_sequence;
  bytes_sent_ = 0;
  credit_limit_ = resumed.credit_limit;
  window_ = resumed.credit_limit;
  connected_ = true;
  return Error::Ok();
}

void Sender::Forget() {
  const uint64_t incarnation = incarnation_;
  *this = Sender();
  incarnation_ = incarnation + 1;  // receipts of the parent's connection are worth nothing here
}

Sender::Admission Sender::Admit(size_t frame_bytes) const {
  if (!connected_) {
    return Admission::kNotConnected;
  }
  if (frame_bytes > window_) {
    return Admission::kTooLarge;
  }
  return bytes_sent_ + frame_bytes <= credit_limit_ ? Admission::kAdmitted : Admission::kNoCredit;
}

Receipt Sender::Commit(size_t frame_bytes) {
  assert(Admit(frame_bytes) == Admission::kAdmitted);
  bytes_sent_ += frame_bytes;
  return {.sequence = next_++, .incarnation = incarnation_};
}

void Sender::Withdraw(const Receipt& receipt, size_t frame_bytes) {
  if (receipt.incarnation != incarnation_) {
    return;  // that connection's credit is history, and the sequence only a gap between two connections
  }
  assert(receipt.sequence + 1 == next_);
  --next_;
  bytes_sent_ -= frame_bytes;
}

void Sender::Begin(CaptureInFlight& capture) {
  capture.status = SendStatus::kOk;
  capture.refusal = {};
  capture.latest = 0;
  capture.incarnation = capture.incarnation != 0 ? capture.incarnation : incarnation_;
  capture.next = captures_;
  captures_ = &capture;
}

void Sender::End(CaptureInFlight& capture) {
  for (CaptureInFlight** at = &captures_; *at != nullptr; at = &(*at)->next) {
    if (*at == &capture) {
      *at = capture.next;
      capture.next = nullptr;
      return;
    }
  }
}

Sender::ReplyFault Sender::OnAck(SessionId session, const AckBody& ack) {
  if (session != session_) {
    return ReplyFault::kSession;
  }
  if (ack.received_sequence >= next_) {
    return ReplyFault::kBeyondSent;
  }
  if (ack.durable_sequence > ack.received_sequence) {
    return ReplyFault::kDurableBeyondReceived;
  }
  // An acknowledgement that says less than an earlier one says nothing.
  received_ = std::max(received_, ack.received_sequence);
  durable_ = std::max(durable_, ack.durable_sequence);
  operation_durable_ = std::max(operation_durable_, ack.operation_durable);
  credit_limit_ = std::max(credit_limit_, ack.credit_limit);
  return ReplyFault::kNone;
}

Sender::ReplyFault Sender::OnRefusal(SessionId session, const RefusalBody& refusal) {
  if (session != session_) {
    return ReplyFault::kSession;
  }
  if (refusal.sequence >= next_) {
    return ReplyFault::kBeyondSent;
  }
  const RefusalCode code{refusal.code};
  for (CaptureInFlight* capture = captures_; capture != nullptr; capture = capture->next) {
    const bool meant = code == RefusalCode::kOldEpoch ||
                       (refusal.sequence != 0 && capture->latest == refusal.sequence) ||
                       (capture->file != FileId::kNone && Raw(capture->file) == refusal.file &&
                        capture->order == refusal.order);
    // A refusal with a reason is not undone by one that says "again".
    if (meant && capture->status != SendStatus::kRefused) {
      capture->status = code == RefusalCode::kRecapture ? SendStatus::kRecapture : SendStatus::kRefused;
      capture->refusal = refusal;
    }
  }
  return ReplyFault::kNone;
}

template <typename Body>
Sender::ReplyFault Sender::GiveAnswer(SessionId session, const Body& body, Body* CaptureInFlight::*place) {
  if (session != session_) {
    return ReplyFault::kSession;
  }
  if (body.sequence >= next_) {
    return ReplyFault::kBeyondSent;
  }
  for (CaptureInFlight* capture = captures_; capture != nullptr; capture = capture->next) {
    if (capture->*place != nullptr && capture->latest == body.sequence) {
      *(capture->*place) = body;
    }
  }
  return ReplyFault::kNone;
}

template Sender::ReplyFault Sender::GiveAnswer(SessionId, const VerifiedBody&,
                                               VerifiedBody* CaptureInFlight::*);
template Sender::ReplyFault Sender::GiveAnswer(SessionId, const ConfirmedBody&,
                                               ConfirmedBody* CaptureInFlight::*);

std::optional<SendStatus> Sender::Outcome(const Receipt& receipt, WaitLevel level,
                                          const CaptureInFlight* capture) const {
  if (capture != nullptr && capture->status != SendStatus::kOk) {
    return capture->status;
  }
  if (receipt.incarnation != incarnation_ ||
      (capture != nullptr && capture->incarnation != receipt.incarnation)) {
    return SendStatus::kLost;
  }
  if (receipt.sequence <= (level == WaitLevel::kDurable ? durable_ : received_)) {
    return SendStatus::kOk;
  }
  if (!connected_) {
    return SendStatus::kLost;
  }
  return std::nullopt;
}

const char* Name(SendStatus status) {
  switch (status) {
    case SendStatus::kOk:
      return "acknowledged";
    case SendStatus::kRecapture:
      return "to be captured again";
    case SendStatus::kLost:
      return "the connection to the replica broke";
    case SendStatus::kRefused:
      return "the replica refused";
    case SendStatus::kTimedOut:
      return "the replica did not answer in time";
    case SendStatus::kSenderFull:
      return "this node's send buffer stayed full";
    case SendStatus::kPeerCongested:
      return "the replica is congested and granted no credit";
  }
  return "unknown";
}

}  // namespace pmirror
