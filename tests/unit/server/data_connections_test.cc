// SPDX-License-Identifier: BSD-3-Clause
// The connections of the data plane: address families, resumes, credit, dead and silent peers, the end.
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <sys/socket.h>

#include <thread>

#include "tests/unit/server/data_plane_fixture.h"

namespace pmirror::server {
namespace {

TEST_F(DataPlaneTest, BothAddressFamiliesAreServed) {
  for (const size_t address : {0, 1}) {
    ReplicaClient client = bed_.Connect(bed_.Permit(SessionKind::kProcess), address);
    ASSERT_TRUE(client.Hello()) << bed_.listener().addresses()[address];
    EXPECT_TRUE(client.AwaitReceived(client.Heartbeat()));
  }
}

TEST_F(DataPlaneTest, AResumedSessionTakesOverFromItsOldConnectionAndKeepsItsGrants) {
  ReplicaClient::Identity identity = bed_.Permit(SessionKind::kProcess);
  ASSERT_TRUE(daemon_->AwaitReceived(daemon_->Grant(identity.permit.session, kFile)));
  ReplicaClient old = bed_.Connect(identity);
  ASSERT_TRUE(old.Hello());
  ASSERT_TRUE(old.AwaitDurable(old.Data(kFile, 1, 0, "ab", kFlagBarrier)));
  ASSERT_TRUE(old.AwaitReceived(old.Data(kFile, 2, 2, "cd", kFlagAckWanted)));
  identity = bed_.Permit(SessionKind::kProcess, Raw(identity.permit.session));
  ReplicaClient resumed = bed_.Connect(identity);
  const auto greeting = resumed.Hello(7);
  ASSERT_TRUE(greeting);
  EXPECT_EQ(greeting->received_sequence, 2u);
  EXPECT_EQ(greeting->durable_sequence, 1u);
  EXPECT_EQ(greeting->operation_received, 1u);
  EXPECT_TRUE(old.AwaitCut());
  ASSERT_TRUE(resumed.AwaitDurable(resumed.Data(kFile, 3, 4, "ef", kFlagBarrier)));
  EXPECT_EQ(Content(), "abcdef");
}

TEST_F(DataPlaneTest, AResumeOverSequencesThatWereReceivedIsRefused) {
  ReplicaClient::Identity identity = bed_.Permit(SessionKind::kProcess);
  ReplicaClient old = bed_.Connect(identity);
  ASSERT_TRUE(old.Hello());
  ASSERT_TRUE(old.AwaitReceived(old.Heartbeat()));
  identity = bed_.Permit(SessionKind::kProcess, Raw(identity.permit.session));
  ReplicaClient resumed = bed_.Connect(identity);
  EXPECT_FALSE(resumed.Hello(1));
}

TEST_F(DataPlaneTest, ANewDaemonSessionEndsTheLastOne) {
  ReplicaClient next = bed_.Open(SessionKind::kDaemon);
  EXPECT_TRUE(daemon_->AwaitCut());
  EXPECT_TRUE(next.AwaitReceived(next.Heartbeat()));
}

TEST_F(DataPlaneTest, CreditIsGivenBackAndMoreThanGrantedIsCut) {
  bed_.Stop();
  bed_.options().sessions.credit_window = 64 * 1024;
  Start();
  ReplicaClient process = Process();
  EXPECT_EQ(process.ack().credit_limit, 64 * 1024u);
  uint64_t sent = 0;
  for (uint64_t i = 0; i < 256; ++i) {  // 8 MiB through 64 KiB
    const std::string bytes(32 * 1024, static_cast<char>('a' + i % 26));
    const uint64_t frame = sizeof(FrameHeader) + sizeof(WireRange) + bytes.size();
    while (sent + frame > process.ack().credit_limit) {
      ASSERT_TRUE(process.AwaitReceived(process.ack().received_sequence + 1)) << i;
    }
    process.Data(kFile, i + 1, i * bytes.size(), bytes);
    sent += frame;
  }
  ASSERT_TRUE(process.AwaitDurable(process.Barrier()));
  EXPECT_EQ(Content().size(), 8u << 20);
  process.Data(kFile, 1000, 0, std::string(65 * 1024, 'z'));
  EXPECT_TRUE(process.AwaitCut());
  EXPECT_EQ(Content()[0], 'a');
}

TEST_F(DataPlaneTest, AnUnreachableNodeIsCutAndRefusedUntilItIsReachableAgain) {
  ReplicaClient process = Process();
  bed_.listener().SetReachable("n1", false);
  EXPECT_TRUE(process.AwaitCut());
  EXPECT_FALSE(bed_.Connect(bed_.Permit(SessionKind::kProcess)).Hello());
  bed_.listener().SetReachable("n1", true);
  EXPECT_TRUE(bed_.Connect(bed_.Permit(SessionKind::kProcess)).Hello());
}

TEST_F(DataPlaneTest, WhoSaysNothingIsClosedAfterTheHelloDeadline) {
  bed_.Stop();
  bed_.listening().hello_deadline = std::chrono::milliseconds(50);
  Start();
  ReplicaClient silent = bed_.Connect(bed_.Permit(SessionKind::kProcess));
  EXPECT_TRUE(silent.AwaitCut());
  ReplicaClient half = bed_.Connect(bed_.Permit(SessionKind::kProcess));
  const uint32_t magic = kFrameMagic;
  half.SendBytes(std::as_bytes(std::span(&magic, 1)));
  EXPECT_TRUE(half.AwaitCut());
}

TEST_F(DataPlaneTest, AHalfOpenConnectionIsNoticed) {
  bed_.Stop();
  bed_.listening().peer_timeout = std::chrono::seconds(1);
  Start();
  ReplicaClient process = Process();
  // From here on the client's end takes no packet any more, as a host that lost its power.
  sock_filter drop_all[] = {BPF_STMT(BPF_RET | BPF_K, 0)};
  const sock_fprog program{.len = 1, .filter = drop_all};
  ASSERT_EQ(::setsockopt(process.socket(), SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program), 0);
  const Deadline deadline = Deadline::After(std::chrono::seconds(30));
  while (bed_.listener().connections() != 1 && !deadline.Expired()) {  // the daemon's
    std::this_thread::yield();
  }
  EXPECT_EQ(bed_.listener().connections(), 1u);
}

TEST_F(DataPlaneTest, AKilledClientLeavesNoConnectionBehind) {
  Process().Close();
  const Deadline deadline = Deadline::After(std::chrono::seconds(30));
  while (bed_.listener().connections() != 1 && !deadline.Expired()) {
    std::this_thread::yield();
  }
  EXPECT_EQ(bed_.listener().connections(), 1u);
}

TEST_F(DataPlaneTest, StopEndsConnectionsInEveryState) {
  ReplicaClient process = Process();
  ReplicaClient silent = bed_.Connect(bed_.Permit(SessionKind::kProcess));
  bed_.listener().Stop();
  EXPECT_TRUE(process.AwaitCut());
  EXPECT_TRUE(silent.AwaitCut());
  EXPECT_EQ(bed_.listener().connections(), 0u);
}

TEST_F(DataPlaneTest, ABadOrTakenAddressIsAPreciseError) {
  const auto error = [&](const std::string& address) {
    return std::string(DataListener::Start({.addresses = {address}}, {}).status().message());
  };
  for (const char* const address :
       {"nonsense", "127.0.0.1", "::1:5000", ":5000", "127.0.0.1:", "127.0.0.1:port"}) {
    EXPECT_NE(error(address).find(std::string("'") + address + "'"), std::string::npos) << error(address);
  }
  const std::string taken = bed_.listener().addresses()[0];
  EXPECT_NE(error(taken).find(taken), std::string::npos) << error(taken);
  EXPECT_FALSE(DataListener::Start({}, {}).ok());
}

}  // namespace
}  // namespace pmirror::server
