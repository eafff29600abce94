// SPDX-License-Identifier: BSD-3-Clause
// The worked example of docs/internals/data-protocol.md: what the real sender writes, byte for byte, and what
// the replica reads from it; and the real sender against the real replica.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <cstring>
#include <fstream>

#include "fmt/format.h"
#include "replication/data_session.h"
#include "server/frame_reader.h"
#include "tests/unit/server/replica_bed.h"

namespace pmirror::server {
namespace {

constexpr auto kPatience = std::chrono::seconds(20);

// Hands out one end of a socket pair as a connection of session 7.
class PairConnector : public Connector {
 public:
  Result<Connection> Connect(SessionId, Sequence, Deadline) override {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
      return Error::FromErrno("make a socket pair");
    }
    peer.Reset(ends[1]);
    return Connection{
        UniqueFd(ends[0]),
        SessionId{7},
        {.received_sequence = 0, .durable_sequence = 0, .operation_received = 0, .credit_limit = 1 << 20}};
  }
  UniqueFd peer;
};

FrameToSend Example(std::span<const WireRange> ranges, const std::string& bytes) {
  FrameToSend frame;
  frame.kind = FrameKind::kDataImage;
  frame.flags = kFlagAckWanted | kFlagBarrier;
  frame.epoch = Epoch{3};
  frame.set_version = SetVersion{5};
  frame.file = FileId{uint64_t{2} << 40 | 9};
  frame.order = 1234567890;
  frame.size_generation = 2 * 21;
  frame.ranges = ranges;
  frame.payload = std::as_bytes(std::span(bytes));
  return frame;
}

std::vector<std::byte> Sent(const FrameToSend& frame) {
  PairConnector connector;
  auto session = DataSession::Create(connector);
  EXPECT_TRUE(session.ok());
  EXPECT_TRUE(session.value()->EnsureConnected(Deadline::After(kPatience)).ok());
  Receipt receipt;
  EXPECT_EQ(session.value()->Send(frame, Deadline::After(kPatience), receipt), SendStatus::kOk);
  std::vector<std::byte> bytes(1000);
  const ssize_t got = ::recv(connector.peer.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
  bytes.resize(got > 0 ? static_cast<size_t>(got) : 0);
  return bytes;
}

// Lines "offset: hex bytes  meaning" of the fenced block behind the word "example" in the page.
std::vector<std::byte> DocumentedBytes() {
  std::ifstream page(PMIRROR_SOURCE_DIR "/docs/internals/data-protocol.md");
  std::vector<std::byte> bytes;
  bool inside = false;
  for (std::string line; std::getline(page, line);) {
    if (line.starts_with("```")) {
      inside = line == "```frame";
      continue;
    }
    for (size_t at = 6;
         inside && at + 1 < line.size() && std::isxdigit(static_cast<unsigned char>(line[at])) && at < 30;
         at += 3) {
      bytes.push_back(static_cast<std::byte>(std::stoi(line.substr(at, 2), nullptr, 16)));
    }
  }
  return bytes;
}

std::string Hex(const std::vector<std::byte>& bytes) {
  std::string text;
  for (size_t i = 0; i < bytes.size(); ++i) {
    text += i % 8 == 0 ? fmt::format("\n{:4}: {:02x}", i, std::to_integer<unsigned>(bytes[i]))
                       : fmt::format(" {:02x}", std::to_integer<unsigned>(bytes[i]));
  }
  return text;
}

TEST(WireExample, ThePageShowsWhatTheSenderWritesAndTheReplicaReads) {
  const std::vector<WireRange> ranges = {{4096, 8}};
  const std::vector<std::byte> sent = Sent(Example(ranges, "pmirror!"));
  EXPECT_EQ(Hex(sent), Hex(DocumentedBytes()));

  FrameReader reader;
  const std::span<std::byte> space = reader.Space();
  std::copy(sent.begin(), sent.end(), space.begin());
  reader.Filled(sent.size());
  FrameReader::Frame frame;
  HeaderFault fault{};
  ASSERT_EQ(reader.Next(frame, fault), FrameReader::Result::kFrame);
  EXPECT_EQ(frame.header.session, 7u);
  EXPECT_EQ(frame.header.sequence, 1u);
  EXPECT_EQ(frame.header.order, 1234567890u);
  ASSERT_EQ(frame.ranges.size(), 1u);
  EXPECT_EQ(frame.ranges[0].offset, 4096u);
  EXPECT_EQ(std::memcmp(frame.payload.data(), "pmirror!", 8), 0);
  EXPECT_EQ(reader.Next(frame, fault), FrameReader::Result::kIncomplete);
}

// What the daemons do: permission over the control plane, then a connection with a hello.
class BedConnector : public Connector {
 public:
  BedConnector(ReplicaBed& bed, SessionKind kind) : bed_(bed), kind_(kind) {}
  Result<Connection> Connect(SessionId session, Sequence next_sequence, Deadline) override {
    const ReplicaClient::Identity identity = bed_.Permit(kind_, Raw(session));
    ReplicaClient client = bed_.Connect(identity);
    const auto greeting = client.Hello(next_sequence);
    if (!greeting) {
      return Error{ECONNREFUSED, "greet the replica"};
    }
    return Connection{UniqueFd(::fcntl(client.socket(), F_DUPFD_CLOEXEC, 3)), identity.permit.session,
                      *greeting};
  }

 private:
  ReplicaBed& bed_;
  const SessionKind kind_;
};

TEST(SenderMeetsReplica, ManyFramesThroughLittleCreditAreDurableAndInPlace) {
  ReplicaBed bed;
  bed.options().sessions.credit_window = 64 * 1024;
  bed.Start();
  BedConnector connector(bed, SessionKind::kDaemon);
  auto session = DataSession::Create(connector);
  ASSERT_TRUE(session.ok());
  ASSERT_TRUE(session.value()->EnsureConnected(Deadline::After(kPatience)).ok());
  std::vector<std::byte> op;
  Encode(CreateOp(10, 1, "file"), op);
  FrameToSend create;
  create.kind = FrameKind::kNamespaceOp;
  create.flags = kFlagAckWanted;
  create.epoch = bed.epoch;
  create.order = 1;
  create.payload = op;
  Receipt receipt;
  ASSERT_EQ(session.value()->Send(create, Deadline::After(kPatience), receipt), SendStatus::kOk);
  std::string expected;
  for (uint64_t i = 0; i < 512; ++i) {  // 8 MiB
    const std::string bytes(16384, static_cast<char>('a' + i % 26));
    const WireRange range{expected.size(), bytes.size()};
    expected += bytes;
    FrameToSend frame = Example({&range, 1}, bytes);
    frame.flags = i == 511 ? kFlagAckWanted | kFlagBarrier : kFlagContinues;
    frame.epoch = bed.epoch;
    frame.file = FileId{10};
    frame.size_generation = 2;
    ASSERT_EQ(session.value()->Send(frame, Deadline::After(kPatience), receipt), SendStatus::kOk) << i;
  }
  EXPECT_EQ(session.value()->Await(receipt, WaitLevel::kDurable, nullptr, Deadline::After(kPatience)),
            SendStatus::kOk);
  EXPECT_EQ(ReadFile(bed.backing / "file"), expected);
  EXPECT_EQ(session.value()->counters().refusals, 0u);
  EXPECT_EQ(session.value()->counters().protocol_faults, 0u);
}

TEST(SenderMeetsReplica, ACutIsSeenAndTheSessionGoesOnOverANewConnection) {
  ReplicaBed bed;
  bed.Start();
  BedConnector connector(bed, SessionKind::kDaemon);
  auto session = DataSession::Create(connector);
  ASSERT_TRUE(session.ok());
  FrameToSend barrier;
  barrier.kind = FrameKind::kBarrier;
  barrier.epoch = bed.epoch;
  Receipt receipt;
  for (int round = 0; round < 5; ++round) {
    ASSERT_TRUE(session.value()->EnsureConnected(Deadline::After(kPatience)).ok()) << round;
    ASSERT_EQ(session.value()->Send(barrier, Deadline::After(kPatience), receipt), SendStatus::kOk);
    ASSERT_EQ(session.value()->Await(receipt, WaitLevel::kDurable, nullptr, Deadline::After(kPatience)),
              SendStatus::kOk);
    bed.listener().SetReachable("n1", false);
    bed.listener().SetReachable("n1", true);
    SendStatus status = SendStatus::kOk;
    while (status == SendStatus::kOk) {
      status = session.value()->Send(barrier, Deadline::After(kPatience), receipt);
      if (status == SendStatus::kOk) {
        status = session.value()->Await(receipt, WaitLevel::kDurable, nullptr, Deadline::After(kPatience));
      }
    }
    ASSERT_EQ(status, SendStatus::kLost);
  }
  EXPECT_EQ(session.value()->counters().reconnects, 4u);
}

}  // namespace
}  // namespace pmirror::server
