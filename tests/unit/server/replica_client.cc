// SPDX-License-Identifier: BSD-3-Clause
// The test's sender. See replica_client.h.
#include "tests/unit/server/replica_client.h"

#include <gtest/gtest.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

#include "recovery/block_checksums.h"
#include "replication/crc32c.h"

namespace pmirror::server {

std::vector<std::byte> EncodeFrame(FrameHeader header, std::span<const WireRange> ranges,
                                   std::span<const std::byte> payload) {
  header.magic = kFrameMagic;
  header.version = kFrameVersion;
  header.range_count = static_cast<uint32_t>(ranges.size());
  header.payload_length = static_cast<uint32_t>(payload.size());
  header.payload_crc = Crc32c(0, payload);
  header.header_crc = HeaderCrc(header, ranges, {});
  std::vector<std::byte> frame(FrameBytes(header));
  std::memcpy(frame.data(), &header, sizeof header);
  const auto table = std::as_bytes(ranges);
  std::copy(table.begin(), table.end(), frame.begin() + sizeof header);
  std::copy(payload.begin(), payload.end(),
            frame.begin() + static_cast<ptrdiff_t>(sizeof header + table.size()));
  return frame;
}

ReplicaClient::ReplicaClient(const std::string& address, const Identity& identity) : identity_(identity) {
  const size_t colon = address.rfind(':');
  std::string host = address.substr(0, colon);
  if (host.front() == '[') {
    host = host.substr(1, host.size() - 2);
  }
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (::getaddrinfo(host.c_str(), address.substr(colon + 1).c_str(), &hints, &found) != 0) {
    ADD_FAILURE() << address;
    return;
  }
  socket_.Reset(::socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  EXPECT_EQ(::connect(socket_.get(), found->ai_addr, found->ai_addrlen), 0) << address;
  ::freeaddrinfo(found);
  const int one = 1;
  ::setsockopt(socket_.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  const timeval limit{.tv_sec = 10, .tv_usec = 0};
  ::setsockopt(socket_.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
}

std::optional<HelloAckBody> ReplicaClient::Hello(Sequence next_sequence) {
  HelloBody body{};
  std::memcpy(body.volume, identity_.volume.data(), sizeof body.volume);
  std::memcpy(body.ticket, identity_.permit.ticket.data(), sizeof body.ticket);
  body.next_sequence = next_sequence;
  body.kind = static_cast<uint32_t>(identity_.kind);
  next_ = next_sequence;
  FrameHeader header = Header(FrameKind::kHello);
  header.sequence = 0;
  next_ = next_sequence;
  SendBytes(EncodeFrame(header, {}, std::as_bytes(std::span(&body, 1))));
  const std::optional<FrameHeader> reply = ReadReply();
  if (!reply || reply->kind != static_cast<uint8_t>(FrameKind::kHelloAck)) {
    return std::nullopt;
  }
  return hello_ack_;
}

FrameHeader ReplicaClient::Header(FrameKind kind, uint8_t flags) {
  FrameHeader header{};
  header.kind = static_cast<uint8_t>(kind);
  header.flags = flags;
  header.epoch = Raw(identity_.epoch);
  header.session = Raw(identity_.permit.session);
  header.sequence = next_++;
  return header;
}

Sequence ReplicaClient::Data(uint64_t file, uint64_t order, uint64_t offset, const std::string& bytes,
                             uint8_t flags, uint64_t size_generation) {
  FrameHeader header = Header(FrameKind::kDataImage, flags);
  header.file = file;
  header.order = order;
  header.size_generation = size_generation;
  const WireRange range{offset, bytes.size()};
  SendBytes(EncodeFrame(header, {&range, 1}, std::as_bytes(std::span(bytes))));
  return header.sequence;
}

Sequence ReplicaClient::Op(uint64_t number, const NamespaceOp& op, uint8_t flags) {
  FrameHeader header = Header(FrameKind::kNamespaceOp, flags);
  header.order = number;
  std::vector<std::byte> payload;
  Encode(op, payload);
  SendBytes(EncodeFrame(header, {}, payload));
  return header.sequence;
}

Sequence ReplicaClient::Batch(uint64_t number, std::span<const std::byte> bytes, size_t piece,
                              size_t pieces) {
  Sequence last = 0;
  for (size_t at = 0; at < bytes.size() && pieces > 0; at += piece, --pieces) {
    const auto part = bytes.subspan(at, std::min(piece, bytes.size() - at));
    FrameHeader header =
        Header(FrameKind::kBatch, at + part.size() < bytes.size() ? kFlagContinues : kFlagAckWanted);
    header.order = number;
    const WireRange range{at, part.size()};
    SendBytes(EncodeFrame(header, {&range, 1}, part));
    last = header.sequence;
  }
  return last;
}

Sequence ReplicaClient::Barrier(uint64_t file) {
  FrameHeader header = Header(FrameKind::kBarrier);
  header.file = file;
  SendBytes(EncodeFrame(header, {}, {}));
  return header.sequence;
}

Sequence ReplicaClient::Grant(SessionId session, uint64_t file, FrameKind kind) {
  FrameHeader header = Header(kind, kFlagAckWanted);
  header.file = file;
  header.order = Raw(session);
  SendBytes(EncodeFrame(header, {}, {}));
  return header.sequence;
}

Sequence ReplicaClient::Heartbeat() {
  const FrameHeader header = Header(FrameKind::kHeartbeat);
  SendBytes(EncodeFrame(header, {}, {}));
  return header.sequence;
}

Sequence ReplicaClient::Verify(uint64_t file, const std::vector<WireRange>& ranges) {
  FrameHeader header = Header(FrameKind::kVerify, kFlagAckWanted);
  header.file = file;
  SendBytes(EncodeFrame(header, ranges, {}));
  return header.sequence;
}

Sequence ReplicaClient::Confirm(uint64_t file, uint64_t order, uint64_t offset, const std::string& bytes,
                                uint64_t size_generation) {
  FrameHeader header = Header(FrameKind::kConfirm, kFlagAckWanted);
  header.file = file;
  header.order = order;
  header.size_generation = size_generation;
  std::vector<BlockSum16> sums;
  for (auto left = std::as_bytes(std::span(bytes)); !left.empty(); left = left.subspan(kConfirmBlock)) {
    const recovery::BlockSum sum = recovery::SumOf(left.first(kConfirmBlock));
    sums.push_back({sum.low, sum.high});
  }
  const WireRange range{offset, bytes.size()};
  SendBytes(EncodeFrame(header, {&range, 1}, std::as_bytes(std::span(sums))));
  return header.sequence;
}

void ReplicaClient::SendBytes(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) {
      return;  // the test sees the cut when it reads
    }
    bytes = bytes.subspan(static_cast<size_t>(sent));
  }
}

bool ReplicaClient::AwaitReceived(Sequence sequence) {
  while (ack_.received_sequence < sequence) {
    if (!ReadReply()) {
      return false;
    }
  }
  return true;
}

bool ReplicaClient::AwaitDurable(Sequence sequence) {
  while (ack_.durable_sequence < sequence) {
    if (!ReadReply()) {
      return false;
    }
  }
  return true;
}

bool ReplicaClient::AwaitCut() {
  errno = 0;
  while (ReadReply()) {
  }
  return errno != EAGAIN;
}

std::optional<RefusalCode> ReplicaClient::RefusalOf(Sequence sequence) const {
  for (const RefusalBody& refusal : refusals_) {
    if (refusal.sequence == sequence) {
      return static_cast<RefusalCode>(refusal.code);
    }
  }
  return std::nullopt;
}

std::optional<FrameHeader> ReplicaClient::ReadReply() {
  FrameHeader header;
  std::byte body[sizeof(VerifiedBody)];
  if (!ReadAll(&header, sizeof header)) {
    return std::nullopt;
  }
  EXPECT_EQ(CheckHeader(header), HeaderFault::kOk);
  EXPECT_EQ(HeaderCrc(header, {}, {}), header.header_crc);
  EXPECT_EQ(header.range_count + header.extension_length, 0u);
  EXPECT_EQ(header.sequence, 0u);
  EXPECT_LE(header.payload_length, sizeof body);
  if (header.payload_length > sizeof body || !ReadAll(body, header.payload_length)) {
    return std::nullopt;
  }
  EXPECT_EQ(Crc32c(0, {body, header.payload_length}), header.payload_crc);
  switch (static_cast<FrameKind>(header.kind)) {
    case FrameKind::kAck: {
      const AckBody before = ack_;
      std::memcpy(&ack_, body, sizeof ack_);
      EXPECT_GE(ack_.received_sequence, before.received_sequence);
      EXPECT_GE(ack_.durable_sequence, before.durable_sequence);
      EXPECT_GE(ack_.credit_limit, before.credit_limit);
      ++acks_;
      break;
    }
    case FrameKind::kRefusal:
      std::memcpy(&refusals_.emplace_back(), body, sizeof(RefusalBody));
      break;
    case FrameKind::kVerified:
      std::memcpy(&verified_.emplace_back(), body, sizeof(VerifiedBody));
      EXPECT_LT(ack_.received_sequence, verified_.back().sequence) << "acknowledged before it was answered";
      break;
    case FrameKind::kConfirmed:
      std::memcpy(&confirmed_.emplace_back(), body, sizeof(ConfirmedBody));
      EXPECT_LT(ack_.received_sequence, confirmed_.back().sequence) << "acknowledged before it was answered";
      break;
    case FrameKind::kHelloAck:
      std::memcpy(&hello_ack_, body, sizeof hello_ack_);
      ack_ = {.received_sequence = 0,
              .durable_sequence = 0,
              .operation_durable = 0,
              .credit_limit = hello_ack_.credit_limit};
      break;
    default:
      ADD_FAILURE() << "a replica does not send " << Name(static_cast<FrameKind>(header.kind));
  }
  return header;
}

bool ReplicaClient::ReadAll(void* to, size_t length) {
  for (size_t at = 0; at < length;) {
    const ssize_t got = ::recv(socket_.get(), static_cast<char*>(to) + at, length - at, 0);
    if (got <= 0) {
      return false;
    }
    at += static_cast<size_t>(got);
  }
  return true;
}

}  // namespace pmirror::server
