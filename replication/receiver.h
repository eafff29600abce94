// SPDX-License-Identifier: BSD-3-Clause
// The receiving end of one session as a state machine without I/O: which frames are admitted, and what is
// acknowledged when. Its shell (server/replica_session.h) reads frames and checks their checksums, applies
// what was admitted, persists, and sends what it is told to.
//
// Not thread-safe: one connection at a time drives it.
//
// Invariants, checked after every event in debug builds:
//   - R1: durable <= received = the sequence before expected
//   - R2: acknowledged received <= received, acknowledged durable <= durable
//   - R3: bytes received on this connection <= the limit that was granted
#pragma once

#include <cstdint>
#include <span>

#include "replication/frame.h"
#include "replication/types.h"

namespace pmirror {

class Receiver {
 public:
  struct Config {
    SessionId session{};
    SessionKind kind = SessionKind::kProcess;
    Epoch epoch{};
    uint64_t credit_window = 1 << 20;  // bytes; at least one frame of the senders' choice has to fit
  };

  enum class Verdict {
    kAdmit,      // do what the frame says, then report with Applied() or Refused()
    kDuplicate,  // was received before: nothing to do, it is acknowledged again
    kRefuse,     // not to be done: send a refusal of `code`, then Refused()
    kCut,        // the connection cannot be trusted any more (`why`): close it, change nothing
  };
  struct Decision {
    Verdict verdict;
    RefusalCode code;  // kRefuse only
    const char* why;   // string literal for the log; empty when admitted
  };

  explicit Receiver(const Config& config) : config_(config) {}

  // A connection begins with a hello that announces `next_sequence`. False: it names a frame that was
  // received already, as only a broken or foreign sender does (what was not acknowledged is sent again under
  // new sequences).
  bool Connected(uint64_t next_sequence);
  // What the hello is answered with. Requires: Connected() said true.
  HelloAckBody Greeting(uint64_t operation_received) const;

  // Judges a frame whose header passed CheckHeader() and whose checksums are right. `ranges` belong to it.
  // `newest_epoch`: that the volume has seen.
  Decision Admit(const FrameHeader& header, std::span<const WireRange> ranges, Epoch newest_epoch);

  // The outcome of the frame that was judged last (kAdmit or kRefuse).
  void Applied(const FrameHeader& header);
  void Refused(const FrameHeader& header) { Settle(header); }

  // A barrier has not been served.
  bool PersistDue() const { return barrier_ > durable_; }
  // Everything received so far was made durable, and operations up to `operation`.
  void Persisted(uint64_t operation);
  // Making it durable failed; the barriers were answered with refusals.
  void PersistFailed() { barrier_ = durable_; }

  // An acknowledgement has to go out now: it was asked for, or the sender will soon run out of credit.
  bool AckDue() const;
  // Something was received that no acknowledgement has told of: to be sent before waiting for more.
  bool AckOwed() const;
  // The acknowledgement to send. Counts as sent.
  AckBody TakeAck();

  const Config& config() const { return config_; }
  Sequence received() const { return expected_ - 1; }
  Sequence durable() const { return durable_; }

 private:
  static Decision CheckVerify(const FrameHeader& header, std::span<const WireRange> ranges);
  static Decision CheckConfirm(const FrameHeader& header, std::span<const WireRange> ranges);
  Decision CheckFields(const FrameHeader& header, std::span<const WireRange> ranges) const;
  bool MaySend(FrameKind kind) const;
  void Settle(const FrameHeader& header);
  uint64_t CreditLimit() const { return consumed_ + config_.credit_window; }
  void CheckInvariants() const;

  Config config_;
  Sequence expected_ = 1;  // of the next frame
  Sequence durable_ = 0;
  Sequence barrier_ = 0;          // of the last barrier
  Sequence received_before_ = 0;  // when the present connection began
  uint64_t operation_durable_ = 0;
  // Of this connection:
  uint64_t consumed_ = 0;  // bytes of frames that were dealt with
  uint64_t granted_ = 0;   // credit limit told last
  Sequence acknowledged_ = 0;
  Sequence acknowledged_durable_ = 0;
  bool wanted_ = false;  // an acknowledgement was asked for since the last one
  bool repeat_ = false;  // a duplicate came: tell again although nothing is new
};

}  // namespace pmirror
