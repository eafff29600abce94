// SPDX-License-Identifier: BSD-3-Clause
// The sending end of a session as a state machine without I/O: sequences, credit, what the replica has, which
// captures it refused. Events in (connected, lost, a reply), decisions out. No locks: the owner serialises.
//
// Invariants, within one incarnation of the connection: durable <= received < next sequence; bytes sent <=
// credit limit; all four only grow. Sequences go on over a reconnect, credit starts again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "replication/data_session.h"
#include "replication/frame.h"
#include "replication/result.h"
#include "replication/types.h"

namespace pmirror {

// The smallest credit window a replica may offer: half of it carries a frame of kMinFrameBudget.
constexpr size_t kMinCreditWindow = 2 * kMinFrameBudget;

class Sender {
 public:
  // Why a frame may or may not be sent now.
  enum class Admission { kAdmitted, kNotConnected, kNoCredit, kTooLarge };
  // What is wrong with a reply; the connection has to be cut.
  enum class ReplyFault { kNone, kSession, kBeyondSent, kDurableBeyondReceived };

  // A connection was made. EPROTO: the replica claims frames that were never sent, or offers too little
  // credit; the sender stays unconnected.
  Error Connected(SessionId session, const HelloAckBody& resumed);
  void Lost() { connected_ = false; }
  // The child of a fork: nothing was ever sent, nobody waits.
  void Forget();

  bool connected() const { return connected_; }
  SessionId session() const { return session_; }
  uint64_t incarnation() const { return incarnation_; }
  Sequence next_sequence() const { return next_; }
  Sequence received() const { return received_; }
  Sequence durable() const { return durable_; }
  uint64_t operation_durable() const { return operation_durable_; }
  size_t window() const { return window_; }

  Admission Admit(size_t frame_bytes) const;
  // Takes the next sequence and the credit for it. Requires: Admit(frame_bytes) == kAdmitted.
  Receipt Commit(size_t frame_bytes);
  // Undoes the latest Commit, of a frame of which no byte was sent.
  void Withdraw(const Receipt& receipt, size_t frame_bytes);

  void Begin(CaptureInFlight& capture);
  void End(CaptureInFlight& capture);

  ReplyFault OnAck(SessionId session, const AckBody& ack);
  // Marks the captures that it concerns: the one of that file and order, or all when the epoch is old. A
  // refusal comes before any acknowledgement that covers its sequence.
  ReplyFault OnRefusal(SessionId session, const RefusalBody& refusal);
  // Gives it to the capture whose latest frame it answers; nobody may wait for it any more.
  ReplyFault OnAnswer(SessionId session, const VerifiedBody& verified) {
    return GiveAnswer(session, verified, &CaptureInFlight::verified);
  }
  ReplyFault OnAnswer(SessionId session, const ConfirmedBody& confirmed) {
    return GiveAnswer(session, confirmed, &CaptureInFlight::confirmed);
  }

  // How waiting for a frame ends, or nothing while it goes on. A refusal comes first: a frame counts as
  // received also when it was refused. Then an acknowledgement, also one that came before the connection was
  // lost.
  std::optional<SendStatus> Outcome(const Receipt& receipt, WaitLevel level,
                                    const CaptureInFlight* capture) const;

 private:
  template <typename Body>
  ReplyFault GiveAnswer(SessionId session, const Body& body, Body* CaptureInFlight::*place);

  SessionId session_{};
  bool connected_ = false;
  uint64_t incarnation_ = 0;  // connections made so far; a receipt is of one
  Sequence next_ = 1;
  Sequence received_ = 0;
  Sequence durable_ = 0;
  uint64_t operation_durable_ = 0;
  uint64_t bytes_sent_ = 0;    // frame bytes on this connection
  uint64_t credit_limit_ = 0;  // which may not exceed this
  size_t window_ = 0;          // the limit at the connection's start: the largest frame that can ever be sent
  CaptureInFlight* captures_ = nullptr;
};

}  // namespace pmirror
