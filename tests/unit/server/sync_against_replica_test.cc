// SPDX-License-Identifier: BSD-3-Clause
// The sending side (Replication, DataSession) against the real receiving side, over TCP: both ends of the
// data protocol as they are in use, with a cut now and then.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <atomic>
#include <fstream>
#include <iterator>
#include <random>
#include <thread>

#include "replication/open_connection.h"
#include "replication/replicate.h"
#include "replication/tcp_transport.h"
#include "tests/unit/server/replica_bed.h"

namespace pmirror::server {
namespace {

using std::chrono::seconds;

Deadline Soon() { return Deadline::After(seconds(60)); }

// Asks the volume for a ticket as the daemon of the primary would by its control service.
class BedConnector : public Connector {
 public:
  BedConnector(ReplicaBed& bed, SessionKind kind) : bed_(bed), kind_(kind) {}
  Result<Connection> Connect(SessionId session, Sequence next_sequence, Deadline deadline) override {
    const auto permit = bed_.volume().PrepareSession(bed_.Request(kind_, Raw(session)));
    if (!permit.ok()) {
      return Error{absl::IsFailedPrecondition(permit.status()) ? ESTALE : ECONNREFUSED, "prepare a session"};
    }
    auto socket = ConnectTcp(bed_.listener().addresses()[address_++ % 2], deadline, kDefaultPathTimeout);
    if (!socket.ok()) {
      return socket.error();
    }
    const HelloTerms terms{.volume = bed_.options().uuid,
                           .kind = kind_,
                           .ticket = permit->ticket,
                           .epoch = bed_.epoch,
                           .session = permit->session,
                           .next_sequence = next_sequence};
    return ExchangeHello(std::move(socket.value()), terms, deadline);
  }

 private:
  ReplicaBed& bed_;
  const SessionKind kind_;
  size_t address_ = 0;
};

class Observer : public SyncObserver {
 public:
  void Suspended(FileId) override {}
  void Resumed(FileId) override {}
  void Failed(FileId, int) override {}
  void Recaptured() override { ++recaptured; }
  std::atomic<int> recaptured{0};
};

class Memory : public ByteSource {
 public:
  Result<size_t> Copy(Extent extent, std::span<std::byte> out) override {
    std::copy_n(bytes.begin() + static_cast<ptrdiff_t>(extent.offset), extent.length, out.begin());
    return static_cast<size_t>(extent.length);
  }
  std::vector<std::byte> bytes = std::vector<std::byte>(1 << 20);
};

class SyncAgainstReplica : public testing::Test {
 protected:
  static constexpr FileId kFile{1000};

  void SetUp() override {
    bed_.Start();
    daemon_ = std::move(DataSession::Create(daemon_connector_).value());
    process_ = std::move(DataSession::Create(process_connector_).value());
    ASSERT_TRUE(daemon_->EnsureConnected(Soon()).ok());
    ASSERT_TRUE(process_->EnsureConnected(Soon()).ok());
    CreateFile();
    Grant();
    page_->epoch = Raw(bed_.epoch);
    page_->state = static_cast<uint32_t>(VolumeState::kServing);
    ConfigureReplicas(*page_, 1);
    page_->set = SetWord::Make(1, 0, SetVersion{1}).raw;
    page_->deadline_ns = 60'000'000'000;
    order_.next = 1;
  }

  void CreateFile() {
    NamespaceOp op;
    op.kind = OpKind::kCreate;
    op.target = kFile;
    op.parent = FileId::kRoot;
    op.name = "file";
    op.mode = S_IFREG | 0644;
    std::vector<std::byte> payload;
    Encode(op, payload);
    FrameToSend frame;
    frame.kind = FrameKind::kNamespaceOp;
    frame.flags = kFlagAckWanted;
    frame.epoch = bed_.epoch;
    frame.order = 1;
    frame.payload = payload;
    SendAndAwait(frame);
  }

  // The process's session has no id before it is connected; its number is the second one.
  void Grant() {
    FrameToSend frame;
    frame.kind = FrameKind::kGrant;
    frame.flags = kFlagAckWanted;
    frame.epoch = bed_.epoch;
    frame.file = kFile;
    for (const auto& session : bed_.volume().state().sessions) {
      if (session.identity.kind == SessionKind::kProcess) {
        frame.order = Raw(session.identity.id);
      }
    }
    SendAndAwait(frame);
  }

  void SendAndAwait(const FrameToSend& frame) {
    Receipt receipt;
    ASSERT_EQ(daemon_->Send(frame, Soon(), receipt), SendStatus::kOk);
    ASSERT_EQ(daemon_->Await(receipt, WaitLevel::kReceived, nullptr, Soon()), SendStatus::kOk);
  }

  Error Sync(std::vector<Extent> extents, ByteSource& source) {
    DataSession* const sessions[] = {process_.get()};
    return Replication(*page_, sessions, *pool_, observer_)
        .Replicate({.file = kFile, .order = &order_, .slot = &page_->slots[0]}, extents, source,
                   WaitLevel::kDurable, nullptr);
  }

  std::vector<std::byte> OnReplica() const {
    std::ifstream file(bed_.backing.path() + "/file", std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    const auto raw = std::as_bytes(std::span(bytes));
    return {raw.begin(), raw.end()};
  }

  ReplicaBed bed_;
  BedConnector daemon_connector_{bed_, SessionKind::kDaemon};
  BedConnector process_connector_{bed_, SessionKind::kProcess};
  std::unique_ptr<DataSession> daemon_;
  std::unique_ptr<DataSession> process_;
  std::unique_ptr<VolumePage> page_ = std::make_unique<VolumePage>();
  OrderPage order_{};
  std::unique_ptr<StagingPool> pool_ = std::move(StagingPool::Create(256 * 1024).value());
  Observer observer_;
};

TEST_F(SyncAgainstReplica, P1_WhatWasSyncedIsInTheReplicasFile) {
  Memory source;
  std::mt19937 random(1);
  for (std::byte& byte : source.bytes) {
    byte = static_cast<std::byte>(random());
  }
  ASSERT_TRUE(Sync({{0, source.bytes.size()}}, source).ok());
  EXPECT_TRUE(OnReplica() == source.bytes);
  std::fill_n(source.bytes.begin() + 4096, 64, std::byte{0xEE});
  ASSERT_TRUE(Sync({{4096, 64}}, source).ok());
  EXPECT_TRUE(OnReplica() == source.bytes);
}

TEST_F(SyncAgainstReplica, P6_CutsInTheMiddleOfTheTrafficOfManyThreadsLoseNothing) {
  constexpr int kThreads = 6;
  constexpr uint64_t kPart = 100'000;
  std::atomic<bool> stop{false};
  std::thread cutter([&] {
    uint64_t seen = 0;
    while (!stop) {
      const uint64_t frames = process_->counters().frames;
      if (frames >= seen + 100) {
        seen = frames;
        process_->Disconnect();
      }
      std::this_thread::yield();
    }
  });
  std::vector<std::thread> threads;
  threads.reserve(kThreads);
  for (int thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      Memory source;
      for (int round = 1; round <= 100; ++round) {
        std::fill(source.bytes.begin(), source.bytes.end(), static_cast<std::byte>(round));
        ASSERT_TRUE(Sync({{static_cast<uint64_t>(thread) * kPart, kPart}}, source).ok());
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  stop = true;
  cutter.join();
  EXPECT_TRUE(OnReplica() == std::vector<std::byte>(kThreads * kPart, std::byte{100}));
  EXPECT_GT(process_->counters().reconnects, 0U);
  EXPECT_EQ(process_->counters().protocol_faults, 0U);
}

TEST_F(SyncAgainstReplica, AFileThatWasNotGrantedIsNotWritten) {
  page_->deadline_ns = 100'000'000;
  page_->on_loss = static_cast<uint32_t>(OnLoss::kFail);
  Memory source;
  DataSession* const sessions[] = {process_.get()};
  const Extent extent{0, 64};
  EXPECT_EQ(Replication(*page_, sessions, *pool_, observer_)
                .Replicate({.file = FileId{1001}, .order = &order_, .slot = &page_->slots[0]}, {&extent, 1},
                           source, WaitLevel::kDurable, nullptr)
                .code,
            EIO);
}

TEST_F(SyncAgainstReplica, P4_AnOldEpochIsStale) {
  bed_.epoch = Epoch{2};
  bed_.mount_number = 2;
  ASSERT_TRUE(bed_.volume().PrepareSession(bed_.Request(SessionKind::kDaemon)).ok());
  bed_.epoch = Epoch{1};  // what this primary still believes
  Memory source;
  EXPECT_EQ(Sync({{0, 64}}, source).code, ESTALE);
}

TEST_F(SyncAgainstReplica, AHelloWithoutATicketIsRefused) {
  auto socket = ConnectTcp(bed_.listener().addresses()[0], Soon(), kDefaultPathTimeout);
  ASSERT_TRUE(socket.ok());
  const std::array<std::byte, 16> ticket{};
  const auto connection =
      ExchangeHello(std::move(socket.value()), {.volume = bed_.options().uuid, .ticket = ticket}, Soon());
  EXPECT_EQ(connection.error().code, EACCES);
}

TEST(ConnectTcp, P9_WhatIsNoAddressIsRefused) {
  for (const char* address : {"", "host", ":1", "host:", "127.0.0.1:notaport"}) {
    EXPECT_EQ(ConnectTcp(address, Soon(), kDefaultPathTimeout).error().code, EINVAL) << address;
  }
}

TEST(ConnectTcp, APortThatNobodyListensOnIsRefusedByThePeer) {
  EXPECT_EQ(ConnectTcp("127.0.0.1:1", Soon(), kDefaultPathTimeout).error().code, ECONNREFUSED);
}

}  // namespace
}  // namespace pmirror::server
