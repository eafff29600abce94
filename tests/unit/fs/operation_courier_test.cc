// SPDX-License-Identifier: BSD-3-Clause
// Operations on their way to a replica: order, sharing of round trips, refusals, cuts.
#include "fs/operation_courier.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "tests/unit/replication/fake_replica.h"

namespace pmirror::fs {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class OperationCourierTest : public testing::Test {
 protected:
  OperationCourierTest() {
    session_ = std::move(DataSession::Create(replica_)).value();
    courier_ = std::make_unique<OperationCourier>(log_, *session_, Epoch{1});
  }
  uint64_t Append() {
    NamespaceOp op;
    op.kind = OpKind::kUnlink;
    op.target = FileId{7};
    op.parent = FileId::kRoot;
    op.name = "name";
    return log_.Append(op);
  }
  // The operations in the order of their coming, as the replica saw them; `answer` decides.
  void Watch(std::function<FakeReplica::Answer(uint64_t)> answer) {
    replica_.SetScript([this, answer](const FakeReplica::Frame& frame) {
      if (frame.kind() != FrameKind::kNamespaceOp) {
        return FakeReplica::Answer{};
      }
      const FakeReplica::Answer decided = answer(frame.header.order);
      const std::lock_guard lock(mutex_);
      seen_.push_back(frame.header.order);
      return decided;
    });
  }
  std::vector<uint64_t> seen() {
    const std::lock_guard lock(mutex_);
    return seen_;
  }

  std::mutex mutex_;
  std::vector<uint64_t> seen_;  // guarded by mutex_
  FakeReplica replica_;         // its threads use what is above
  OperationLog log_;
  std::unique_ptr<DataSession> session_;
  std::unique_ptr<OperationCourier> courier_;
};

TEST_F(OperationCourierTest, OperationsArriveOnceAndInTheirOrderWhoeverWaitsForThem) {
  Watch([](uint64_t) { return FakeReplica::Answer{}; });
  constexpr int kThreads = 4;
  constexpr int kEach = 50;
  std::atomic<int> failed = 0;
  std::vector<std::thread> threads;
  threads.reserve(kThreads);
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      for (int k = 0; k < kEach; ++k) {
        failed += courier_->Deliver(Append(), Deadline::After(seconds(20))) == 0 ? 0 : 1;
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(failed, 0);
  std::vector<uint64_t> expected;
  for (uint64_t number = 1; number <= kThreads * kEach; ++number) {
    expected.push_back(number);
  }
  EXPECT_EQ(seen(), expected);
  EXPECT_EQ(courier_->applied(), log_.last());
}

TEST_F(OperationCourierTest, Trap9_ARefusedOperationTellsItsOwnCallerWhyAlsoWhenAnotherThreadSentIt) {
  std::atomic<bool> full = true;
  Watch([&](uint64_t number) {
    if (!full || number == 1) {
      return FakeReplica::Answer{};
    }
    return FakeReplica::Answer{FakeReplica::Reaction::kRefuse,
                               number == 2 ? RefusalCode::kNoSpace : RefusalCode::kBlocked};
  });
  Append();
  const uint64_t refused = Append();
  const uint64_t behind = Append();
  // The caller of the last one sends all three in one batch.
  EXPECT_EQ(courier_->Deliver(behind, Deadline::After(milliseconds(200))), ENOSPC);
  EXPECT_EQ(courier_->Deliver(refused, Deadline::After(milliseconds(50))), ENOSPC);
  EXPECT_EQ(courier_->applied(), 1U);
  EXPECT_EQ(courier_->refusal(), ENOSPC);

  full = false;  // somebody has made room: the same operations go through, nothing was skipped
  EXPECT_EQ(courier_->Deliver(behind, Deadline::After(seconds(20))), 0);
  EXPECT_EQ(courier_->refusal(), 0);
}

// What a ReplicaLink does: each new connection says how far the replica is.
class ResumingConnector : public Connector {
 public:
  explicit ResumingConnector(FakeReplica& replica) : replica_(replica) {}
  Result<Connection> Connect(SessionId session, Sequence next_sequence, Deadline deadline) override {
    Result<Connection> connection = replica_.Connect(session, next_sequence, deadline);
    if (connection.ok() && courier != nullptr) {
      courier->Resumed(applied);
    }
    return connection;
  }
  OperationCourier* courier = nullptr;
  std::atomic<uint64_t> applied{0};

 private:
  FakeReplica& replica_;
};

TEST_F(OperationCourierTest, P3_ARefusedOperationWhoseRepeatWasAppliedWithoutAnAnswerIsNotFollowedByNothing) {
  ResumingConnector connector(replica_);
  const std::unique_ptr<DataSession> session = std::move(DataSession::Create(connector)).value();
  OperationCourier courier(log_, *session, Epoch{1});
  connector.courier = &courier;
  Watch([](uint64_t) { return FakeReplica::Answer{FakeReplica::Reaction::kRefuse, RefusalCode::kNoSpace}; });
  Append();
  EXPECT_EQ(courier.Deliver(1, Deadline::After(milliseconds(100))), ENOSPC);
  connector.applied = 1;  // as if the repeat had arrived and the connection broken before its answer
  session->Disconnect();
  EXPECT_EQ(courier.Deliver(1, Deadline::After(seconds(20))), 0);
  EXPECT_EQ(courier.applied(), 1U);
}

TEST_F(OperationCourierTest, P3_ACutIsAbsorbed) {
  std::atomic<int> cuts = 3;
  Watch([&](uint64_t) {
    return FakeReplica::Answer{cuts-- > 0 ? FakeReplica::Reaction::kCut : FakeReplica::Reaction::kApply};
  });
  EXPECT_EQ(courier_->Deliver(Append(), Deadline::After(seconds(20))), 0);
  EXPECT_GE(replica_.connects(), 4U);
}

TEST_F(OperationCourierTest, P6_WithoutAnAnswerTheDeadlineEndsTheWait) {
  Watch([](uint64_t) { return FakeReplica::Answer{FakeReplica::Reaction::kNoAnswer}; });
  EXPECT_EQ(courier_->Deliver(Append(), Deadline::After(milliseconds(50))), EIO);
  // The next one goes on waiting for what was sent, instead of sending it again.
  EXPECT_EQ(courier_->Deliver(1, Deadline::After(milliseconds(50))), EIO);
  EXPECT_EQ(seen(), std::vector<uint64_t>{1});
}

TEST_F(OperationCourierTest, P4_ASupersededPrimaryLearnsItAtOnce) {
  Watch([](uint64_t) { return FakeReplica::Answer{FakeReplica::Reaction::kRefuse, RefusalCode::kOldEpoch}; });
  EXPECT_EQ(courier_->Deliver(Append(), Deadline::After(seconds(20))), ESTALE);
}

TEST_F(OperationCourierTest, AfterAReconnectOnlyWhatTheReplicaLacksIsReplayed) {
  Watch([](uint64_t) { return FakeReplica::Answer{}; });
  Append();
  Append();
  courier_->Resumed(1);  // it had the first one
  EXPECT_EQ(courier_->Deliver(2, Deadline::After(seconds(20))), 0);
  EXPECT_EQ(seen(), std::vector<uint64_t>{2});
}

}  // namespace
}  // namespace pmirror::fs
