// SPDX-License-Identifier: BSD-3-Clause
// What every Transport has to do, whatever carries its bytes. A new transport adds a factory at the bottom.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <thread>
#include <vector>

#include "replication/tcp_transport.h"
#include "tests/unit/replication/stream_pair.h"

namespace pmirror {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

Deadline Soon() { return Deadline::After(seconds(60)); }

struct Factory {
  const char* name;
  std::unique_ptr<Transport> (*make)();
  std::pair<UniqueFd, UniqueFd> (*connect)();  // the transport's end, the peer's
};

class TransportContract : public testing::TestWithParam<Factory> {
 protected:
  TransportContract() : transport_(GetParam().make()) { Connect(); }

  void Connect() {
    auto [near, far] = GetParam().connect();
    peer_ = std::move(far);
    ASSERT_TRUE(transport_->Attach(std::move(near)).ok());
  }
  // Nonblocking calls repeated until everything is through.
  void SendAll(std::span<const iovec> parts, size_t total) {
    for (size_t sent = 0; sent < total;) {
      const IoResult result = transport_->Send(parts, sent);
      ASSERT_TRUE(result.error == 0 || result.error == EAGAIN);
      sent += result.bytes;
      if (result.error == EAGAIN) {
        Wait({.writable = true});
      }
    }
  }
  Readiness Wait(Readiness wanted, Deadline deadline = Soon()) {
    const SignalBlock block;
    const SignalWindow window(SignalWindow::kInKernel);
    return transport_->Wait(wanted, deadline, window.mask());
  }
  std::vector<std::byte> PeerReads(size_t bytes) {
    std::vector<std::byte> read(bytes);
    EXPECT_EQ(::recv(peer_.get(), read.data(), bytes, MSG_WAITALL), static_cast<ssize_t>(bytes));
    return read;
  }

  std::unique_ptr<Transport> transport_;
  UniqueFd peer_;
};

TEST_P(TransportContract, PartsArriveAsOneStreamWhereverASendWasCut) {
  std::vector<std::byte> head(96);
  std::vector<std::byte> body(8 << 20);
  for (size_t i = 0; i < body.size(); ++i) {
    body[i] = static_cast<std::byte>(i * 31 + i / 4096);
  }
  const iovec parts[] = {{head.data(), head.size()}, {nullptr, 0}, {body.data(), body.size()}};
  std::vector<std::byte> read;
  std::thread reader([&] { read = PeerReads(head.size() + body.size()); });
  SendAll(parts, head.size() + body.size());
  reader.join();
  std::vector<std::byte> sent = head;
  sent.insert(sent.end(), body.begin(), body.end());
  EXPECT_TRUE(read == sent);
}

TEST_P(TransportContract, SendingToAPeerThatDoesNotReadStopsInsteadOfWaiting) {
  std::vector<std::byte> body(1 << 20);
  const iovec part{body.data(), body.size()};
  IoResult result;
  for (int i = 0; i < 1000 && result.error == 0; ++i) {
    result = transport_->Send({&part, 1}, 0);
  }
  EXPECT_EQ(result.error, EAGAIN);
  EXPECT_FALSE(Wait({.writable = true}, Deadline::After(milliseconds(1))).writable);
}

TEST_P(TransportContract, ReceivingReturnsWhatIsThereAndDoesNotWait) {
  std::vector<std::byte> room(100);
  EXPECT_EQ(transport_->Receive(room).error, EAGAIN);
  ASSERT_EQ(::send(peer_.get(), "abc", 3, 0), 3);
  EXPECT_TRUE(Wait({.readable = true}).readable);
  const IoResult result = transport_->Receive(room);
  EXPECT_EQ(result.error, 0);
  EXPECT_EQ(result.bytes, 3U);
  EXPECT_EQ(std::memcmp(room.data(), "abc", 3), 0);
}

TEST_P(TransportContract, TheEndOfTheConnectionIsAnErrorAndWakesWhoWaits) {
  peer_.Reset();
  const Readiness ready = Wait({.readable = true});
  EXPECT_TRUE(ready.readable);
  std::vector<std::byte> room(100);
  const IoResult result = transport_->Receive(room);
  EXPECT_NE(result.error, 0);
  EXPECT_NE(result.error, EAGAIN);
}

TEST_P(TransportContract, SendingOnAnEndedConnectionIsAnErrorAndNoSignal) {
  peer_.Reset();
  std::vector<std::byte> body(1 << 16);
  const iovec part{body.data(), body.size()};
  IoResult result;
  while (result.error == 0 || result.error == EAGAIN) {
    result = transport_->Send({&part, 1}, 0);  // SIGPIPE would end the test
  }
  EXPECT_TRUE(result.error == EPIPE || result.error == ECONNRESET) << result.error;
}

TEST_P(TransportContract, ShutdownWakesWhoWaitsAndThePeerLearnsIt) {
  std::thread waiter([&] { EXPECT_TRUE(Wait({.readable = true}).readable); });
  transport_->Shutdown();
  waiter.join();
  char byte = 0;
  EXPECT_EQ(::recv(peer_.get(), &byte, 1, 0), 0);
}

TEST_P(TransportContract, AWaitEndsAtItsDeadline) {
  const Readiness ready = Wait({.readable = true}, Deadline::After(milliseconds(5)));
  EXPECT_FALSE(ready.readable);
}

TEST_P(TransportContract, ANewConnectionTakesTheOldOnesPlace) {
  const UniqueFd old_peer = std::move(peer_);
  transport_->Shutdown();
  Connect();
  const iovec part{const_cast<char*>("new"), 3};
  SendAll({&part, 1}, 3);
  EXPECT_EQ(static_cast<char>(PeerReads(3)[0]), 'n');
  char byte = 0;
  EXPECT_EQ(::recv(old_peer.get(), &byte, 1, 0), 0);
}

TEST_P(TransportContract, Trap6_AbandonedTheConnectionLivesOnInAnotherOwner) {
  auto [near, far] = GetParam().connect();
  const UniqueFd duplicate(::dup(near.get()));  // as the parent of a fork has it
  ASSERT_TRUE(transport_->Attach(std::move(near)).ok());
  transport_->Abandon();
  ASSERT_EQ(::send(duplicate.get(), "x", 1, MSG_NOSIGNAL), 1);
  char byte = 0;
  EXPECT_EQ(::recv(far.get(), &byte, 1, 0), 1);
}

INSTANTIATE_TEST_SUITE_P(
    All, TransportContract,
    testing::Values(Factory{"TcpOverIpv4", [] { return std::unique_ptr<Transport>(new TcpTransport); },
                            [] { return TcpPair(AF_INET); }},
                    Factory{"TcpOverIpv6", [] { return std::unique_ptr<Transport>(new TcpTransport); },
                            [] { return TcpPair(AF_INET6); }},
                    Factory{"UnixStream", [] { return std::unique_ptr<Transport>(new TcpTransport); },
                            [] { return UnixPair(); }}),
    [](const auto& factory) { return factory.param.name; });

TEST(TcpTransport, Trap14_ADescriptorClosedAndReusedByTheProgramIsNeitherWrittenToNorClosed) {
  auto [near, far] = TcpPair(AF_INET);
  const int number = near.get();
  TcpTransport transport;
  ASSERT_TRUE(transport.Attach(std::move(near)).ok());
  const UniqueFd database(::memfd_create("database", MFD_CLOEXEC));
  ASSERT_EQ(::dup2(database.get(), number), number);  // the program thinks the number is free
  const iovec part{const_cast<char*>("frame"), 5};
  EXPECT_EQ(transport.Send({&part, 1}, 0).error, ENOTSOCK);
  EXPECT_EQ(::lseek(database.get(), 0, SEEK_END), 0);
  auto [again, far_again] = TcpPair(AF_INET);
  ASSERT_TRUE(transport.Attach(std::move(again)).ok());
  EXPECT_EQ(transport.Send({&part, 1}, 0).bytes, 5U);
  EXPECT_EQ(::write(number, "own", 3), 3);  // still the program's
  EXPECT_EQ(::close(number), 0);
}

TEST(TcpTransport, APathTimeoutNeedsATcpSocket) {
  auto [near, far] = UnixPair();
  EXPECT_EQ(SetPathTimeout(near.get(), seconds(1)).code, EINVAL);
}

}  // namespace
}  // namespace pmirror
