// SPDX-License-Identifier: BSD-3-Clause
// The receiving end of a session. See receiver.h.
#include "replication/receiver.h"

#include <cassert>

namespace pmirror {
namespace {

using Decision = Receiver::Decision;
using Verdict = Receiver::Verdict;

constexpr Decision kAdmitted{Verdict::kAdmit, {}, ""};
constexpr Decision Cut(const char* why) { return {Verdict::kCut, {}, why}; }
constexpr Decision Refuse(RefusalCode code, const char* why) { return {Verdict::kRefuse, code, why}; }

bool Ends(const WireRange& range, uint64_t& end) {
  return !__builtin_add_overflow(range.offset, range.length, &end) && end <= INT64_MAX;
}

}  // namespace

bool Receiver::Connected(uint64_t next_sequence) {
  if (next_sequence < expected_) {
    return false;
  }
  // Frames between were lost with the last connection; their sender knows, and sends what was in them again.
  received_before_ = received();
  expected_ = next_sequence;
  barrier_ = durable_;
  consumed_ = 0;
  granted_ = CreditLimit();
  acknowledged_ = received();
  acknowledged_durable_ = durable_;
  wanted_ = repeat_ = false;
  CheckInvariants();
  return true;
}

HelloAckBody Receiver::Greeting(uint64_t operation_received) const {
  return {received_before_, durable_, operation_received, granted_};
}

Decision Receiver::Admit(const FrameHeader& header, std::span<const WireRange> ranges, Epoch newest_epoch) {
  if (header.session != Raw(config_.session)) {
    return Cut("frame of another session");
  }
  if (header.epoch > Raw(newest_epoch)) {
    return Cut("epoch that no session was opened for");
  }
  if (consumed_ + FrameBytes(header) > granted_) {
    return Cut("more bytes than were granted");
  }
  if (header.sequence > expected_) {
    return Cut("gap in the sequence");
  }
  if (header.sequence == 0) {
    return Cut("frame without a sequence");
  }
  if (header.sequence < expected_) {
    consumed_ += FrameBytes(header);
    repeat_ = true;
    return {Verdict::kDuplicate, {}, "received before"};
  }
  if (header.epoch < Raw(newest_epoch) || Raw(config_.epoch) < Raw(newest_epoch)) {
    return Refuse(RefusalCode::kOldEpoch, "epoch was superseded");
  }
  if (!MaySend(static_cast<FrameKind>(header.kind))) {
    return Refuse(RefusalCode::kNotGranted, "kind that this session may not send");
  }
  return CheckFields(header, ranges);
}

bool Receiver::MaySend(FrameKind kind) const {
  switch (kind) {
    case FrameKind::kDataImage:
    case FrameKind::kBarrier:
    case FrameKind::kHeartbeat:
    case FrameKind::kVerify:
      return true;
    case FrameKind::kNamespaceOp:
    case FrameKind::kGrant:
    case FrameKind::kRevoke:
    case FrameKind::kBatch:
    case FrameKind::kConfirm:
      return config_.kind == SessionKind::kDaemon;
    case FrameKind::kHello:  // the first frame only
    case FrameKind::kHelloAck:
    case FrameKind::kAck:
    case FrameKind::kRefusal:
    case FrameKind::kVerified:
    case FrameKind::kConfirmed:
      return false;
  }
  return false;
}

// A frame that contradicts itself was not made by a sender of ours, whatever its checksum says.
Decision Receiver::CheckFields(const FrameHeader& header, std::span<const WireRange> ranges) const {
  if ((header.flags & kFlagGroup) != 0 && static_cast<FrameKind>(header.kind) != FrameKind::kDataImage) {
    return Cut("group that is no data image");
  }
  if (static_cast<FrameKind>(header.kind) == FrameKind::kBatch) {
    const bool fits = header.range_count == 1 && header.order != 0 && header.size_generation == 0 &&
                      header.payload_length != 0 && ranges.front().length == header.payload_length;
    return fits ? kAdmitted : Cut("fields that do not fit the kind");
  }
  if (static_cast<FrameKind>(header.kind) == FrameKind::kVerify) {
    return CheckVerify(header, ranges);
  }
  if (static_cast<FrameKind>(header.kind) == FrameKind::kConfirm) {
    return CheckConfirm(header, ranges);
  }
  if (static_cast<FrameKind>(header.kind) != FrameKind::kDataImage) {
    const bool body = static_cast<FrameKind>(header.kind) == FrameKind::kNamespaceOp;
    const bool fits = header.range_count == 0 && header.size_generation == 0 &&
                      body == (header.payload_length != 0) && (!body || header.order != 0);
    return fits ? kAdmitted : Cut("fields that do not fit the kind");
  }
  if (header.file == 0 || header.order == 0 || header.range_count == 0 || header.size_generation % 2 != 0) {
    return Cut("data image without file, order number, ranges or settled generation");
  }
  uint64_t bytes = 0;
  bool beyond = false;
  for (const WireRange& range : ranges) {
    uint64_t end = 0;
    if (range.length == 0 || range.length > kMaxPayload) {
      return Cut("range of no bytes or of more than a frame holds");
    }
    beyond |= !Ends(range, end);
    bytes += range.length;  // at most kMaxRanges * kMaxPayload
  }
  if ((header.flags & kFlagGroup) != 0 && (header.flags & kFlagContinues) != 0) {
    return Cut("group of several frames");
  }
  if (bytes != header.payload_length) {
    return Cut("ranges that do not add up to the payload");
  }
  return beyond ? Refuse(RefusalCode::kOutOfRange, "range past the largest file") : kAdmitted;
}

Decision Receiver::CheckVerify(const FrameHeader& header, std::span<const WireRange> ranges) {
  if (header.file == 0 || header.order != 0 || header.size_generation != 0 || header.payload_length != 0 ||
      header.range_count == 0 || header.range_count > kMaxVerifyRanges) {
    return Cut("verify without file or ranges, or with more than they");
  }
  uint64_t bytes = 0;
  for (const WireRange& range : ranges) {
    uint64_t end = 0;
    if (range.length == 0 || range.length > kMaxVerifyBytes || !Ends(range, end)) {
      return Cut("verify of a range of no bytes, of too many, or past the largest file");
    }
    bytes += range.length;  // at most kMaxVerifyRanges * kMaxVerifyBytes
  }
  return bytes <= kMaxVerifyBytes ? kAdmitted : Cut("verify of more bytes than are answered at once");
}

Decision Receiver::CheckConfirm(const FrameHeader& header, std::span<const WireRange> ranges) {
  uint64_t end = 0;
  const bool fits = header.file != 0 && header.order != 0 && header.size_generation % 2 == 0 &&
                    header.range_count == 1 && ranges.front().length != 0 &&
                    ranges.front().offset % kConfirmBlock == 0 &&
                    ranges.front().length % kConfirmBlock == 0 &&
                    ranges.front().length <= uint64_t{kConfirmBlock} * kMaxConfirmBlocks &&
                    header.payload_length == ranges.front().length / kConfirmBlock * sizeof(BlockSum16) &&
                    Ends(ranges.front(), end);
  return fits ? kAdmitted : Cut("confirmation of no whole blocks, or of too many");
}

void Receiver::Applied(const FrameHeader& header) {
  Settle(header);
  if (header.kind == static_cast<uint8_t>(FrameKind::kBarrier) || (header.flags & kFlagBarrier) != 0) {
    barrier_ = header.sequence;
  }
}

void Receiver::Settle(const FrameHeader& header) {
  assert(header.sequence == expected_);
  consumed_ += FrameBytes(header);
  ++expected_;
  wanted_ |= (header.flags & (kFlagAckWanted | kFlagBarrier)) != 0 ||
             header.kind == static_cast<uint8_t>(FrameKind::kBarrier) ||
             header.kind == static_cast<uint8_t>(FrameKind::kHeartbeat);
  CheckInvariants();
}

void Receiver::Persisted(uint64_t operation) {
  durable_ = received();
  operation_durable_ = operation;
  CheckInvariants();
}

bool Receiver::AckDue() const {
  return wanted_ || repeat_ || CreditLimit() - granted_ >= config_.credit_window / 2;
}

bool Receiver::AckOwed() const {
  return AckDue() || acknowledged_ != received() || acknowledged_durable_ != durable_;
}

AckBody Receiver::TakeAck() {
  wanted_ = repeat_ = false;
  acknowledged_ = received();
  acknowledged_durable_ = durable_;
  granted_ = CreditLimit();
  CheckInvariants();
  return {received(), durable_, operation_durable_, granted_};
}

void Receiver::CheckInvariants() const {
  assert(durable_ <= received());
  assert(acknowledged_ <= received() && acknowledged_durable_ <= durable_);
  assert(consumed_ <= granted_);
}

}  // namespace pmirror
