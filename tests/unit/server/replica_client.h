// SPDX-License-Identifier: BSD-3-Clause
// For tests: the plainest possible sender of the data protocol, which can also send what no sender should.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "replication/frame.h"
#include "replication/namespace_op.h"
#include "replication/unique_fd.h"
#include "server/session_table.h"

namespace pmirror::server {

// One frame, as bytes. Sums and lengths of `header` are filled in.
std::vector<std::byte> EncodeFrame(FrameHeader header, std::span<const WireRange> ranges,
                                   std::span<const std::byte> payload);

class ReplicaClient {
 public:
  struct Identity {
    Uuid volume{};
    Epoch epoch{};
    SessionKind kind = SessionKind::kDaemon;
    SessionTable::Permit permit;
  };

  // Connects; sends nothing yet. `address` as of DataListener::addresses().
  ReplicaClient(const std::string& address, const Identity& identity);

  // Sends the hello and reads its answer. Empty: it was refused (see refusals()) or cut.
  std::optional<HelloAckBody> Hello(Sequence next_sequence = 1);

  FrameHeader Header(FrameKind kind, uint8_t flags = 0);  // takes the next sequence
  Sequence Data(uint64_t file, uint64_t order, uint64_t offset, const std::string& bytes, uint8_t flags = 0,
                uint64_t size_generation = 0);
  Sequence Op(uint64_t number, const NamespaceOp& op, uint8_t flags = kFlagAckWanted);
  Sequence Barrier(uint64_t file = 0);
  // A whole batch in pieces of `piece` bytes, or its first ones only.
  Sequence Batch(uint64_t number, std::span<const std::byte> bytes, size_t piece = 1 << 20,
                 size_t pieces = SIZE_MAX);
  Sequence Grant(SessionId session, uint64_t file, FrameKind kind = FrameKind::kGrant);
  Sequence Heartbeat();
  Sequence Verify(uint64_t file, const std::vector<WireRange>& ranges);
  // Asks about the blocks of `bytes`, which are whole ones.
  Sequence Confirm(uint64_t file, uint64_t order, uint64_t offset, const std::string& bytes,
                   uint64_t size_generation = 0);
  void SendBytes(std::span<const std::byte> bytes);

  // Reads until an acknowledgement covers `sequence`; refusals on the way are kept. False: the connection
  // ended.
  bool AwaitReceived(Sequence sequence);
  bool AwaitDurable(Sequence sequence);
  // The connection ends without another acknowledgement or after some; false when the peer stays (10 s).
  bool AwaitCut();

  const AckBody& ack() const { return ack_; }
  int acks() const { return acks_; }
  const std::vector<RefusalBody>& refusals() const { return refusals_; }
  // Code of the refusal of that frame, if it was refused.
  std::optional<RefusalCode> RefusalOf(Sequence sequence) const;
  const std::vector<VerifiedBody>& verified() const { return verified_; }
  const std::vector<ConfirmedBody>& confirmed() const { return confirmed_; }
  int socket() const { return socket_.get(); }
  void Close() { socket_.Reset(); }
  Sequence next_sequence() const { return next_; }

 private:
  // One reply frame of the replica. Empty: the connection ended.
  std::optional<FrameHeader> ReadReply();
  bool ReadAll(void* to, size_t length);

  const Identity identity_;
  UniqueFd socket_;
  Sequence next_ = 1;
  AckBody ack_{};
  HelloAckBody hello_ack_{};
  int acks_ = 0;
  std::vector<RefusalBody> refusals_;
  std::vector<VerifiedBody> verified_;
  std::vector<ConfirmedBody> confirmed_;
};

}  // namespace pmirror::server
