// SPDX-License-Identifier: BSD-3-Clause
// The sending end of a session, step by step: the real Sender and ReplyReader, in place of DataSession's threads coroutines.
// Mirrors replication/data_session.cc: EnsureConnected, Send, Await, Disconnect, and the reading of replies in session_io.cc.
#pragma once

#include <memory>

#include "replication/data_session.h"
#include "replication/reply_reader.h"
#include "replication/sender.h"
#include "tests/sim/network.h"
#include "tests/sim/world.h"

namespace pmirror::sim {

struct Connected {
  int error = 0;
  std::shared_ptr<Connection> connection;
  SessionId session{};
  HelloAckBody resumed{};
};

// As pmirror::Connector.
class Connecting {
 public:
  virtual ~Connecting() = default;
  virtual Task<Connected> Connect(SessionId session, Sequence next, Time deadline) = 0;
};

class Session {
 public:
  // `group`: of the process that it lives in.
  Session(World& world, Group& group, Connecting& connecting)
      : world_(world), group_(group), connecting_(connecting), changed_(world.loop) {}
  ~Session() {
    if (connection_ != nullptr) {
      connection_->Close(Side::kPrimary);
    }
  }

  Task<int> EnsureConnected(Time deadline);
  void Begin(CaptureInFlight& capture) { sender_.Begin(capture); }
  void End(CaptureInFlight& capture) { sender_.End(capture); }
  Task<SendStatus> Send(const FrameToSend& frame, Time deadline, Receipt& receipt);
  Task<SendStatus> Await(const Receipt& receipt, WaitLevel level, const CaptureInFlight* capture,
                         Time deadline);
  void Disconnect() { MarkLost(); }

  bool connected() const { return sender_.connected(); }
  uint64_t incarnation() const { return sender_.incarnation(); }
  Sequence received() const { return sender_.received(); }
  uint64_t operation_durable() const { return sender_.operation_durable(); }
  SessionId id() const { return sender_.session(); }
  size_t FrameBudget() const { return std::max<size_t>(sender_.window() / 2, kMinFrameBudget); }

 private:
  Task<> ReadReplies(std::shared_ptr<Connection> connection);
  bool TakeReplies();
  void MarkLost();

  World& world_;
  Group& group_;
  Connecting& connecting_;
  Signal changed_;
  Sender sender_;
  ReplyReader replies_;
  std::shared_ptr<Connection> connection_;
  bool busy_ = false;  // somebody connects
};

// The bytes of a frame on the wire.
std::vector<std::byte> Encoded(FrameHeader header, std::span<const WireRange> ranges,
                               std::span<const std::byte> payload);

}  // namespace pmirror::sim
