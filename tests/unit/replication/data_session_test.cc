// SPDX-License-Identifier: BSD-3-Clause
// DataSession against a scripted replica on real sockets.
#include "replication/data_session.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <thread>

#include "replication/sender.h"
#include "tests/unit/replication/fake_replica.h"
#include "tests/unit/replication/run_threads.h"

namespace pmirror {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Reaction = FakeReplica::Reaction;

constexpr FileId kFile{77};

Deadline Soon() { return Deadline::After(seconds(60)); }
Deadline Shortly() { return Deadline::After(milliseconds(60)); }

class DataSessionTest : public testing::TestWithParam<FakeReplica::Link> {
 protected:
  DataSessionTest() : replica_(GetParam()), session_(std::move(DataSession::Create(replica_).value())) {}
  ~DataSessionTest() override {
    session_->Disconnect();
    EXPECT_EQ(replica_.faults(), 0U);
  }

  // Sends `bytes` of `fill` at `offset`, and waits.
  SendStatus Put(uint64_t order, uint64_t offset, size_t bytes, uint8_t fill, Deadline deadline,
                 CaptureInFlight* capture = nullptr) {
    Receipt receipt;
    const SendStatus sent = Send(order, offset, bytes, fill, deadline, receipt, capture);
    return sent == SendStatus::kOk ? session_->Await(receipt, WaitLevel::kDurable, capture, deadline) : sent;
  }

  SendStatus Send(uint64_t order, uint64_t offset, size_t bytes, uint8_t fill, Deadline deadline,
                  Receipt& receipt, CaptureInFlight* capture = nullptr) {
    const std::vector<std::byte> payload(bytes, std::byte{fill});
    const WireRange range{.offset = offset, .length = bytes};
    FrameToSend frame;
    frame.flags = kFlagAckWanted | kFlagBarrier;
    frame.file = kFile;
    frame.order = order;
    frame.ranges = std::span(&range, 1);
    frame.payload = payload;
    frame.capture = capture;
    return session_->Send(frame, deadline, receipt);
  }

  FakeReplica replica_;
  std::unique_ptr<DataSession> session_;
};

TEST_P(DataSessionTest, AFrameIsAppliedAndItsAcknowledgementEndsTheWait) {
  ASSERT_TRUE(session_->EnsureConnected(Soon()).ok());
  EXPECT_EQ(Put(1, 0, 64, 0xAB, Soon()), SendStatus::kOk);
  EXPECT_EQ(replica_.Image(kFile), std::vector<std::byte>(64, std::byte{0xAB}));
  EXPECT_EQ(session_->counters().frames, 1U);
}

TEST_P(DataSessionTest, WithoutAConnectionSendingIsLost) {
  EXPECT_EQ(Put(1, 0, 64, 1, Soon()), SendStatus::kLost);
  EXPECT_FALSE(session_->connected());
}

TEST_P(DataSessionTest, AnAcknowledgementInSingleBytesIsUnderstood) {
  ASSERT_TRUE(session_->EnsureConnected(Soon()).ok());
  replica_.SetScript([](const auto&) { return FakeReplica::Answer{.reaction = Reaction::kSlowReply}; });
  for (uint64_t order = 1; order <= 20; ++order) {
    ASSERT_EQ(Put(order, 0, 64, 3, Soon()), SendStatus::kOk);
  }
}

TEST_P(DataSessionTest, WithoutAnAnswerTheWaitEndsAtTheDeadlineAndTheSessionGoesOn) {
  ASSERT_TRUE(session_->EnsureConnected(Soon()).ok());
  replica_.SetScript([](const FakeReplica::Frame& frame) {
    return FakeReplica::Answer{.reaction = frame.header.order == 1 ? Reaction::kNoAnswer : Reaction::kApply};
  });
  EXPECT_EQ(Put(1, 0, 64, 1, Shortly()), SendStatus::kTimedOut);
  EXPECT_EQ(Put(2, 0, 64, 2, Soon()), SendStatus::kOk);
}

TEST_P(DataSessionTest, ARefusalFindsItsCaptureWhateverTheOrderOfReplies) {
  ASSERT_TRUE(session_->EnsureConnected(Soon()).ok());
  replica_.SetScript([](const FakeReplica::Frame& frame) {
    if (frame.header.order == 1) {
      return FakeReplica::Answer{.reaction = Reaction::kNoAnswer};
    }
    return FakeReplica::Answer{.reaction = Reaction::kRefuse, .code = RefusalCode::kNoSpace};
  });
  CaptureInFlight first{.file = kFile, .order = 1};
  CaptureInFlight second{.file = kFile, .order = 2};
  session_->Begin(first);
  session_->Begin(second);
  Receipt first_receipt;
  Receipt second_receipt;
  ASSERT_EQ(Send(1, 0, 64, 1, Soon(), first_receipt, &first), SendStatus::kOk);
  ASSERT_EQ(Send(2, 0, 64, 2, Soon(), second_receipt, &second), SendStatus::kOk);
  EXPECT_EQ(session_->Await(second_receipt, WaitLevel::kDurable, &second, Soon()), SendStatus::kRefused);
  EXPECT_EQ(session_->Await(first_receipt, WaitLevel::kDurable, &first, Soon()), SendStatus::kOk);
  session_->End(first);
  session_->End(second);
  EXPECT_EQ(second.refusal.code, static_cast<uint32_t>(RefusalCode::kNoSpace));
  EXPECT_EQ(session_->counters().refusals, 1U);
}

TEST_P(DataSessionTest, ACutIsLostAndAReconnectGoesOnWithTheSameSession) {
  ASSERT_TRUE(session_->EnsureConnected(Soon()).ok());
  ASSERT_EQ(Put(1, 0, 64, 1, Soon()), SendStatus::kOk);
  replica_.SetScript([](const FakeReplica::Frame& frame) {
    return FakeReplica::Answer{.reaction = frame.header.order == 2 ? Reaction::kCut : Reaction::kApply};
  });
  EXPECT_EQ(Put(2, 0, 64, 2, Soon()), SendStatus::kLost);
  ASSERT_TRUE(session_->EnsureConnected(Soon()).ok());
  EXPECT_EQ(Put(3, 0, 64, 3, Soon()), SendStatus::kOk);
  EXPECT_EQ(replica_.connects(), 2U);
  EXPECT_EQ(session_->counters().reconnects, 1U);
  EXPECT_EQ(replica_.Image(kFile), std::vector<std::byte>(64, std::byte{3}));
}

TEST_P(DataSessionTest, Trap11_ACutInTheMiddleOfAnAcknowledgementIsLost) {
  ASSERT_TRUE(session_->EnsureConnected(Soon()).ok());
  replica_.SetScript([](const FakeReplica::Frame& frame) {
    return FakeReplica::Answer{.reaction =
                                   frame.header.order == 1 ? Reaction::kCutInReply : Reaction::kApply};
  });
  EXPECT_EQ(Put(1, 0, 64, 1, Soon()), SendStatus::kLost);
  ASSERT_TRUE(session_->EnsureConnected(Soon()).ok());
  EXPECT_EQ(Put(2, 0, 64, 2, Soon()), SendStatus::kOk);
}

TEST_P(DataSessionTest, Trap11_ACutAnywhereInAFrameIsLost) {
  for (const uint64_t cut_after : {1, 95, 96, 97, 111, 112, 113, 175}) {
    ASSERT_TRUE(session_->EnsureConnected(Soon()).ok());
    replica_.CutAfterBytes(cut_after);
    ASSERT_EQ(Put(1, 0, 64, 1, Soon()), SendStatus::kLost) << cut_after;
  }
  EXPECT_EQ(replica_.frames(FrameKind::kDataImage), 0U);
}

TEST_P(DataSessionTest, GarbageFromTheReplicaCutsTheConnection) {
  ASSERT_TRUE(session_->EnsureConnected(Soon()).ok());
  replica_.SetScript([](const auto&) { return FakeReplica::Answer{.reaction = Reaction::kGarbage}; });
  EXPECT_EQ(Put(1, 0, 64, 1, Soon()), SendStatus::kLost);
  EXPECT_EQ(session_->counters().protocol_faults, 1U);
}

TEST_P(DataSessionTest, WithoutCreditSendingWaitsAndSaysThatThePeerIsCongested) {
  replica_.SetWindow(kMinCreditWindow);
  ASSERT_TRUE(session_->EnsureConnected(Soon()).ok());
  replica_.Pause(true);
  Receipt receipt;
  SendStatus status = SendStatus::kOk;
  for (uint64_t order = 1; status == SendStatus::kOk && order < 100; ++order) {
    status = Send(order, 0, 1000, 1, Shortly(), receipt);
  }
  EXPECT_EQ(status, SendStatus::kPeerCongested);
  EXPECT_GT(session_->counters().peer_congested, 0U);
  EXPECT_EQ(session_->counters().sender_full, 0U);
  replica_.Pause(false);
  EXPECT_EQ(Put(200, 0, 1000, 2, Soon()), SendStatus::kOk);
}

TEST_P(DataSessionTest, AFullTransportIsNotCongestionAndAHalfSentFrameThatExpiresCutsTheConnection) {
  replica_.SetWindow(uint64_t{1} << 30);
  ASSERT_TRUE(session_->EnsureConnected(Soon()).ok());
  replica_.Pause(true);
  Receipt receipt;
  SendStatus status = SendStatus::kOk;
  for (uint64_t order = 1; status == SendStatus::kOk && order < 200; ++order) {
    status = Send(order, 0, kMaxPayload, 1, Shortly(), receipt);
  }
  EXPECT_TRUE(status == SendStatus::kLost || status == SendStatus::kSenderFull);
  EXPECT_GT(session_->counters().sender_full, 0U);
  EXPECT_EQ(session_->counters().peer_congested, 0U);
  EXPECT_EQ(session_->connected(), status == SendStatus::kSenderFull);
  replica_.Pause(false);
}

TEST_P(DataSessionTest, AFrameThatTheWindowCanNeverHoldAsksForSmallerOnes) {
  replica_.SetWindow(kMinCreditWindow);
  ASSERT_TRUE(session_->EnsureConnected(Soon()).ok());
  EXPECT_EQ(session_->FrameBudget(), kMinFrameBudget);
  EXPECT_EQ(Put(1, 0, 2 * kMinCreditWindow, 1, Soon()), SendStatus::kRecapture);
}

TEST_P(DataSessionTest, TooSmallAWindowIsRefused) {
  replica_.SetWindow(kMinCreditWindow - 1);
  EXPECT_EQ(session_->EnsureConnected(Soon()).code, EPROTO);
  EXPECT_FALSE(session_->connected());
}

TEST_P(DataSessionTest, DisconnectWakesWhoWaits) {
  ASSERT_TRUE(session_->EnsureConnected(Soon()).ok());
  replica_.SetScript([](const auto&) { return FakeReplica::Answer{.reaction = Reaction::kNoAnswer}; });
  std::thread waiter([&] { EXPECT_EQ(Put(1, 0, 64, 1, Soon()), SendStatus::kLost); });
  ASSERT_TRUE(replica_.WaitFor(
      [](const FakeReplica& replica) { return replica.frames(FrameKind::kDataImage) == 1; }));
  session_->Disconnect();
  waiter.join();
}

TEST_P(DataSessionTest, SeveralThatReconnectMakeOneConnection) {
  ASSERT_TRUE(session_->EnsureConnected(Soon()).ok());
  session_->Disconnect();
  RunThreads(8, [&](int) { EXPECT_TRUE(session_->EnsureConnected(Soon()).ok()); });
  EXPECT_EQ(replica_.connects(), 2U);
}

TEST_P(DataSessionTest, AFailedConnectIsReported) {
  replica_.SetConnectError(ECONNREFUSED);
  EXPECT_EQ(session_->EnsureConnected(Soon()).code, ECONNREFUSED);
  replica_.SetConnectError(0);
  EXPECT_TRUE(session_->EnsureConnected(Soon()).ok());
}

TEST_P(DataSessionTest, AHeartbeatIsAnsweredByAnAcknowledgement) {
  ASSERT_TRUE(session_->EnsureConnected(Soon()).ok());
  FrameToSend frame;
  frame.kind = FrameKind::kHeartbeat;
  frame.flags = kFlagAckWanted;
  Receipt receipt;
  ASSERT_EQ(session_->Send(frame, Soon(), receipt), SendStatus::kOk);
  EXPECT_EQ(session_->Await(receipt, WaitLevel::kReceived, nullptr, Soon()), SendStatus::kOk);
}

TEST_P(DataSessionTest, SixteenThreadsShareTheSessionThroughCutsAndEachGetsItsBytesAcross) {
  constexpr int kThreads = 16;
  constexpr uint64_t kRounds = 100;
  std::atomic<uint64_t> order{1};
  std::atomic<uint64_t> frames{0};
  replica_.SetScript([&](const auto&) {
    const uint64_t number = ++frames;
    if (number % 97 == 0) {
      return FakeReplica::Answer{.reaction = Reaction::kCut};
    }
    return FakeReplica::Answer{.reaction = number % 101 == 0 ? Reaction::kCutInReply : Reaction::kApply};
  });
  RunThreads(kThreads, [&](int thread) {
    for (uint64_t round = 1; round <= kRounds; ++round) {
      SendStatus status = SendStatus::kLost;
      while (status != SendStatus::kOk) {
        ASSERT_TRUE(session_->EnsureConnected(Soon()).ok());
        status = Put(order++, static_cast<uint64_t>(thread) * 512, 512, static_cast<uint8_t>(round), Soon());
        ASSERT_TRUE(status == SendStatus::kOk || status == SendStatus::kLost);
      }
    }
  });
  EXPECT_EQ(replica_.Image(kFile), std::vector<std::byte>(kThreads * 512, std::byte{kRounds}));
  EXPECT_GT(session_->counters().reconnects, 0U);
}

TEST_P(DataSessionTest, LargeFramesOfManyThreadsDoNotMix) {
  constexpr int kThreads = 4;
  constexpr size_t kBytes = 300'000;
  replica_.SetWindow(kMaxFrame);
  ASSERT_TRUE(session_->EnsureConnected(Soon()).ok());
  RunThreads(kThreads, [&](int thread) {
    for (uint64_t order = 1; order <= 10; ++order) {
      ASSERT_EQ(Put(order, static_cast<uint64_t>(thread) * kBytes, kBytes,
                    static_cast<uint8_t>(thread * 16 + static_cast<int>(order)), Soon()),
                SendStatus::kOk);
    }
  });
  const std::vector<std::byte> image = replica_.Image(kFile);
  ASSERT_EQ(image.size(), kThreads * kBytes);
  for (size_t i = 0; i < image.size(); ++i) {
    ASSERT_EQ(image[i], static_cast<std::byte>(i / kBytes * 16 + 10)) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Links, DataSessionTest,
                         testing::Values(FakeReplica::Link::kUnix, FakeReplica::Link::kTcp4,
                                         FakeReplica::Link::kTcp6),
                         [](const auto& link) {
                           return link.param == FakeReplica::Link::kUnix   ? "Unix"
                                  : link.param == FakeReplica::Link::kTcp4 ? "Tcp4"
                                                                           : "Tcp6";
                         });

}  // namespace
}  // namespace pmirror
