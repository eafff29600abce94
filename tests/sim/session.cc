// SPDX-License-Identifier: BSD-3-Clause
// How session.h does it.
#include "tests/sim/session.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "replication/crc32c.h"

namespace pmirror::sim {
namespace {

void Append(std::vector<std::byte>& out, std::span<const std::byte> bytes) {
  out.insert(out.end(), bytes.begin(), bytes.end());
}

FrameHeader HeaderOf(const FrameToSend& frame) {
  FrameHeader header{};
  header.kind = static_cast<uint8_t>(frame.kind);
  header.flags = frame.flags;
  header.epoch = Raw(frame.epoch);
  header.set_version = Raw(frame.set_version);
  header.file = Raw(frame.file);
  header.order = frame.order;
  header.size_generation = frame.size_generation;
  return header;
}

}  // namespace

std::vector<std::byte> Encoded(FrameHeader header, std::span<const WireRange> ranges,
                               std::span<const std::byte> payload) {
  header.magic = kFrameMagic;
  header.version = kFrameVersion;
  header.range_count = static_cast<uint32_t>(ranges.size());
  header.payload_length = static_cast<uint32_t>(payload.size());
  header.payload_crc = payload.empty() ? 0 : Crc32c(0, payload);
  header.header_crc = HeaderCrc(header, ranges, {});
  std::vector<std::byte> out;
  out.reserve(sizeof header + ranges.size_bytes() + payload.size());
  Append(out, std::as_bytes(std::span(&header, 1)));
  Append(out, std::as_bytes(ranges));
  Append(out, payload);
  return out;
}

Task<int> Session::EnsureConnected(Time deadline) {
  while (!sender_.connected()) {
    if (busy_) {
      if (world_.now() >= deadline) {
        co_return ETIMEDOUT;
      }
      co_await changed_.Wait(deadline);
      continue;
    }
    busy_ = true;
    const SessionId session = sender_.session();
    const Sequence next = sender_.next_sequence();
    Connected made = co_await connecting_.Connect(session, next, deadline);
    busy_ = false;
    changed_.Notify();
    if (made.error != 0) {
      co_return made.error;
    }
    replies_.Reset();
    if (!sender_.Connected(made.session, made.resumed).ok()) {
      made.connection->Close(Side::kPrimary);
      co_return EPROTO;
    }
    connection_ = made.connection;
    world_.loop.Spawn(group_, ReadReplies(connection_));
  }
  co_return 0;
}

Task<> Session::ReadReplies(std::shared_ptr<Connection> connection) {
  while (connection == connection_) {
    std::vector<std::byte>& arrived = connection->Arrived(Side::kPrimary);
    bool good = true;
    while (good && !arrived.empty()) {
      const std::span<std::byte> room = replies_.Room();
      const size_t length = std::min(room.size(), arrived.size());
      std::memcpy(room.data(), arrived.data(), length);
      arrived.erase(arrived.begin(), arrived.begin() + static_cast<ptrdiff_t>(length));
      replies_.Filled(length);
      good = TakeReplies();
      changed_.Notify();
    }
    if (!good || connection->Dead(Side::kPrimary)) {
      if (connection == connection_) {
        MarkLost();
      }
      co_return;
    }
    co_await connection->Readable(Side::kPrimary).Wait(kForever);
  }
}

bool Session::TakeReplies() {
  while (true) {
    Sender::ReplyFault fault = Sender::ReplyFault::kNone;
    switch (replies_.Take()) {
      case ReplyReader::Next::kNone:
        return true;
      case ReplyReader::Next::kAck:
        fault = sender_.OnAck(SessionId{replies_.header().session}, replies_.ack());
        break;
      case ReplyReader::Next::kRefusal:
        fault = sender_.OnRefusal(SessionId{replies_.header().session}, replies_.refusal());
        break;
      case ReplyReader::Next::kVerified:  // nothing is verified or confirmed here
      case ReplyReader::Next::kConfirmed:
      case ReplyReader::Next::kOther:
        break;
      case ReplyReader::Next::kHelloAck:
      case ReplyReader::Next::kFault:
        return false;
    }
    if (fault != Sender::ReplyFault::kNone) {
      world_.Trace("session {} cut: reply fault {}", Raw(sender_.session()), static_cast<int>(fault));
      return false;
    }
  }
}

void Session::MarkLost() {
  sender_.Lost();
  if (connection_ != nullptr) {
    connection_->Close(Side::kPrimary);
    connection_ = nullptr;
  }
  changed_.Notify();
}

Task<SendStatus> Session::Send(const FrameToSend& frame, Time deadline, Receipt& receipt) {
  const size_t bytes = sizeof(FrameHeader) + frame.ranges.size_bytes() + frame.payload.size();
  while (true) {
    if (frame.capture != nullptr && frame.capture->status != SendStatus::kOk) {
      co_return frame.capture->status;
    }
    const Sender::Admission admission = sender_.Admit(bytes);
    if (admission == Sender::Admission::kNotConnected) {
      co_return SendStatus::kLost;
    }
    if (admission == Sender::Admission::kTooLarge) {
      co_return SendStatus::kRecapture;
    }
    if (admission == Sender::Admission::kAdmitted) {
      break;
    }
    if (world_.now() >= deadline) {
      co_return SendStatus::kPeerCongested;
    }
    co_await changed_.Wait(deadline);
  }
  receipt = sender_.Commit(bytes);
  if (frame.capture != nullptr) {
    frame.capture->latest = receipt.sequence;
  }
  FrameHeader header = HeaderOf(frame);
  header.session = Raw(sender_.session());
  header.sequence = receipt.sequence;
  header.durable_sequence = sender_.durable();
  std::vector<std::byte> encoded = Encoded(header, frame.ranges, frame.payload);
  if (world_.rng().Chance(5) && sender_.Admit(bytes) == Sender::Admission::kAdmitted) {
    connection_->Send(Side::kPrimary, encoded);  // twice: the replica drops one, or cuts for the credit
  }
  connection_->Send(Side::kPrimary, std::move(encoded));
  co_return SendStatus::kOk;
}

Task<SendStatus> Session::Await(const Receipt& receipt, WaitLevel level, const CaptureInFlight* capture,
                                Time deadline) {
  while (true) {
    const std::optional<SendStatus> outcome = sender_.Outcome(receipt, level, capture);
    if (outcome.has_value()) {
      co_return *outcome;
    }
    if (world_.now() >= deadline) {
      co_return SendStatus::kTimedOut;
    }
    co_await changed_.Wait(deadline);
  }
}

}  // namespace pmirror::sim
