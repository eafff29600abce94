// SPDX-License-Identifier: BSD-3-Clause
// The sending state machine: admission, replies and outcomes as tables, and random histories against an
// oracle.
#include "replication/sender.h"

#include <gtest/gtest.h>

#include <list>
#include <random>
#include <set>
#include <vector>

namespace pmirror {
namespace {

using Admission = Sender::Admission;
using Fault = Sender::ReplyFault;

constexpr SessionId kSession{9};
constexpr uint64_t kWindow = kMinCreditWindow;

HelloAckBody Hello(Sequence received = 0, Sequence durable = 0, uint64_t credit = kWindow) {
  return {.received_sequence = received,
          .durable_sequence = durable,
          .operation_received = 0,
          .credit_limit = credit};
}

AckBody Ack(Sequence received, Sequence durable, uint64_t credit = kWindow) {
  return {.received_sequence = received,
          .durable_sequence = durable,
          .operation_durable = 0,
          .credit_limit = credit};
}

RefusalBody Refusal(Sequence sequence, FileId file, uint64_t order, RefusalCode code) {
  return {.sequence = sequence,
          .file = Raw(file),
          .order = order,
          .code = static_cast<uint32_t>(code),
          .error_number = 0};
}

class SenderTest : public testing::Test {
 protected:
  SenderTest() { EXPECT_TRUE(sender_.Connected(kSession, Hello()).ok()); }
  Sender sender_;
};

TEST_F(SenderTest, AHelloThatClaimsTooMuchOrOffersTooLittleIsRefused) {
  struct Case {
    HelloAckBody hello;
    bool accepted;
  };
  const Case cases[] = {{Hello(), true},
                        {Hello(1), false},  // nothing was sent
                        {Hello(0, 1), false},
                        {Hello(0, 0, kWindow - 1), false},
                        {Hello(UINT64_MAX), false}};
  for (const Case& item : cases) {
    Sender fresh;
    EXPECT_EQ(fresh.Connected(kSession, item.hello).ok(), item.accepted);
    EXPECT_EQ(fresh.connected(), item.accepted);
  }
}

TEST_F(SenderTest, CreditAdmitsUpToItsLimitAndNoByteMore) {
  EXPECT_EQ(sender_.Admit(kWindow), Admission::kAdmitted);
  EXPECT_EQ(sender_.Admit(kWindow + 1), Admission::kTooLarge);
  sender_.Commit(kWindow - 100);
  EXPECT_EQ(sender_.Admit(100), Admission::kAdmitted);
  EXPECT_EQ(sender_.Admit(101), Admission::kNoCredit);
  EXPECT_EQ(sender_.OnAck(kSession, Ack(1, 0, 2 * kWindow)), Fault::kNone);
  EXPECT_EQ(sender_.Admit(kWindow), Admission::kAdmitted);
  sender_.Lost();
  EXPECT_EQ(sender_.Admit(1), Admission::kNotConnected);
}

TEST_F(SenderTest, AWithdrawnFrameGivesItsSequenceAndCreditBack) {
  const Receipt receipt = sender_.Commit(kWindow);
  sender_.Withdraw(receipt, kWindow);
  EXPECT_EQ(sender_.Commit(kWindow).sequence, receipt.sequence);
}

TEST_F(SenderTest, AFrameWithdrawnAfterAReconnectLeavesTheNewConnectionAlone) {
  const Receipt receipt = sender_.Commit(kWindow);
  ASSERT_TRUE(sender_.Connected(kSession, Hello()).ok());
  sender_.Withdraw(receipt, kWindow);
  EXPECT_EQ(sender_.Commit(kWindow).sequence, receipt.sequence + 1);
  EXPECT_EQ(sender_.Admit(1), Admission::kNoCredit);
}

TEST_F(SenderTest, RepliesThatCannotBeTrueAreFaults) {
  sender_.Commit(100);
  EXPECT_EQ(sender_.OnAck(SessionId{8}, Ack(1, 1)), Fault::kSession);
  EXPECT_EQ(sender_.OnAck(kSession, Ack(2, 0)), Fault::kBeyondSent);
  EXPECT_EQ(sender_.OnAck(kSession, Ack(0, 1)), Fault::kDurableBeyondReceived);
  EXPECT_EQ(sender_.OnRefusal(SessionId{8}, Refusal(1, FileId{5}, 1, RefusalCode::kNoSpace)),
            Fault::kSession);
  EXPECT_EQ(sender_.OnRefusal(kSession, Refusal(2, FileId{5}, 1, RefusalCode::kNoSpace)), Fault::kBeyondSent);
  EXPECT_EQ(sender_.received(), 0U);
}

TEST_F(SenderTest, AnAcknowledgementThatSaysLessTakesNothingBack) {
  for (int i = 0; i < 3; ++i) {
    sender_.Commit(100);
  }
  ASSERT_EQ(sender_.OnAck(kSession, Ack(3, 2, 3 * kWindow)), Fault::kNone);
  ASSERT_EQ(sender_.OnAck(kSession, Ack(1, 1, kWindow)), Fault::kNone);
  EXPECT_EQ(sender_.received(), 3U);
  EXPECT_EQ(sender_.durable(), 2U);
  EXPECT_EQ(sender_.Admit(kWindow), Admission::kAdmitted);
}

TEST_F(SenderTest, ReceivedAndDurableAreAwaitedApart) {
  const Receipt receipt = sender_.Commit(100);
  EXPECT_EQ(sender_.Outcome(receipt, WaitLevel::kReceived, nullptr), std::nullopt);
  ASSERT_EQ(sender_.OnAck(kSession, Ack(1, 0)), Fault::kNone);
  EXPECT_EQ(sender_.Outcome(receipt, WaitLevel::kReceived, nullptr), SendStatus::kOk);
  EXPECT_EQ(sender_.Outcome(receipt, WaitLevel::kDurable, nullptr), std::nullopt);
  ASSERT_EQ(sender_.OnAck(kSession, Ack(1, 1)), Fault::kNone);
  EXPECT_EQ(sender_.Outcome(receipt, WaitLevel::kDurable, nullptr), SendStatus::kOk);
}

TEST_F(SenderTest, ARefusalIsStrongerThanTheAcknowledgementThatCoversIt) {
  CaptureInFlight capture{.file = FileId{5}, .order = 7};
  sender_.Begin(capture);
  const Receipt receipt = sender_.Commit(100);
  ASSERT_EQ(sender_.OnRefusal(kSession, Refusal(1, FileId{5}, 7, RefusalCode::kRecapture)), Fault::kNone);
  ASSERT_EQ(sender_.OnAck(kSession, Ack(1, 1)), Fault::kNone);
  EXPECT_EQ(sender_.Outcome(receipt, WaitLevel::kDurable, &capture), SendStatus::kRecapture);
  EXPECT_EQ(sender_.Outcome(receipt, WaitLevel::kDurable, nullptr), SendStatus::kOk);
  sender_.End(capture);
}

TEST_F(SenderTest, ARefusalMarksTheCaptureOfItsFileAndOrderOnly) {
  struct Case {
    FileId file;
    uint64_t order;
    SendStatus expected;
  };
  const Case cases[] = {
      {FileId{5}, 7, SendStatus::kRefused}, {FileId{5}, 8, SendStatus::kOk}, {FileId{6}, 7, SendStatus::kOk}};
  std::list<CaptureInFlight> captures;
  for (const Case& item : cases) {
    captures.push_back({.file = item.file, .order = item.order});
    sender_.Begin(captures.back());
  }
  sender_.Commit(100);
  ASSERT_EQ(sender_.OnRefusal(kSession, Refusal(1, FileId{5}, 7, RefusalCode::kNoSpace)), Fault::kNone);
  auto capture = captures.begin();
  for (const Case& item : cases) {
    EXPECT_EQ(capture->status, item.expected);
    sender_.End(*capture++);
  }
}

TEST_F(SenderTest, ARefusalOfACapturesLatestFrameConcernsItWhateverItNames) {
  CaptureInFlight operation{.file = FileId::kNone, .order = 12};
  CaptureInFlight other{.file = FileId::kNone, .order = 0};
  sender_.Begin(operation);
  sender_.Begin(other);
  operation.latest = sender_.Commit(100).sequence;
  ASSERT_EQ(sender_.OnRefusal(kSession, Refusal(1, FileId::kNone, 0, RefusalCode::kBlocked)), Fault::kNone);
  EXPECT_EQ(operation.status, SendStatus::kRefused);
  EXPECT_EQ(other.status, SendStatus::kOk);
}

TEST_F(SenderTest, AnOldEpochConcernsEveryCapture) {
  CaptureInFlight capture{.file = FileId{5}, .order = 7};
  CaptureInFlight other{.file = FileId{6}, .order = 1};
  sender_.Begin(capture);
  sender_.Begin(other);
  sender_.Commit(100);
  ASSERT_EQ(sender_.OnRefusal(kSession, Refusal(1, FileId{5}, 7, RefusalCode::kOldEpoch)), Fault::kNone);
  EXPECT_EQ(capture.status, SendStatus::kRefused);
  EXPECT_EQ(other.status, SendStatus::kRefused);
}

TEST_F(SenderTest, AReasonIsNotUndoneByARecapture) {
  CaptureInFlight capture{.file = FileId{5}, .order = 7};
  sender_.Begin(capture);
  sender_.Commit(100);
  sender_.Commit(100);
  ASSERT_EQ(sender_.OnRefusal(kSession, Refusal(1, FileId{5}, 7, RefusalCode::kNoSpace)), Fault::kNone);
  ASSERT_EQ(sender_.OnRefusal(kSession, Refusal(2, FileId{5}, 7, RefusalCode::kRecapture)), Fault::kNone);
  EXPECT_EQ(capture.status, SendStatus::kRefused);
  EXPECT_EQ(capture.refusal.code, static_cast<uint32_t>(RefusalCode::kNoSpace));
}

TEST_F(SenderTest, AReceiptIsOfOneConnectionOnlyWhateverTheNextOneClaims) {
  const Receipt receipt = sender_.Commit(100);
  sender_.Lost();
  EXPECT_EQ(sender_.Outcome(receipt, WaitLevel::kReceived, nullptr), SendStatus::kLost);
  ASSERT_TRUE(sender_.Connected(kSession, Hello(1, 1)).ok());
  EXPECT_EQ(sender_.Outcome(receipt, WaitLevel::kReceived, nullptr), SendStatus::kLost);
}

TEST_F(SenderTest, AnAcknowledgementBeforeTheCutCounts) {
  const Receipt receipt = sender_.Commit(100);
  ASSERT_EQ(sender_.OnAck(kSession, Ack(1, 1)), Fault::kNone);
  sender_.Lost();
  EXPECT_EQ(sender_.Outcome(receipt, WaitLevel::kDurable, nullptr), SendStatus::kOk);
}

TEST_F(SenderTest, P1_ACaptureOfSeveralFramesIsLostWhenACutFallsBetweenThemAlthoughTheLastIsAcknowledged) {
  CaptureInFlight capture;
  capture.file = FileId{5};
  capture.order = 7;
  sender_.Begin(capture);
  sender_.Commit(100);
  sender_.Lost();  // the first frame with it; another thread reconnects at once
  ASSERT_TRUE(sender_.Connected(kSession, Hello(0, 0)).ok());
  const Receipt last = sender_.Commit(100);
  ASSERT_EQ(sender_.OnAck(kSession, Ack(2, 2)), Fault::kNone);
  EXPECT_EQ(sender_.Outcome(last, WaitLevel::kDurable, &capture), SendStatus::kLost);
  sender_.End(capture);
}

TEST_F(SenderTest, P1_ACaptureWhoseOrderWasTakenBeforeTheConnectionIsLost) {
  CaptureInFlight capture;
  capture.file = FileId{5};
  capture.incarnation = sender_.incarnation();  // then its order number is taken
  sender_.Lost();
  ASSERT_TRUE(sender_.Connected(kSession, Hello(0, 0)).ok());
  sender_.Begin(capture);
  const Receipt receipt = sender_.Commit(100);
  ASSERT_EQ(sender_.OnAck(kSession, Ack(1, 1)), Fault::kNone);
  EXPECT_EQ(sender_.Outcome(receipt, WaitLevel::kDurable, &capture), SendStatus::kLost);
  sender_.End(capture);
}

TEST_F(SenderTest, Trap6_TheChildOfAForkIsANewSession) {
  const Receipt receipt = sender_.Commit(100);
  ASSERT_EQ(sender_.OnAck(kSession, Ack(1, 1)), Fault::kNone);
  sender_.Forget();
  EXPECT_EQ(sender_.session(), SessionId{});
  EXPECT_EQ(sender_.next_sequence(), 1U);
  EXPECT_EQ(sender_.Outcome(receipt, WaitLevel::kDurable, nullptr), SendStatus::kLost);
}

// A replica and a network that know everything: what was sent, what was refused, what got lost. The sender
// may say kOk only for what the oracle has at that level, and must say something once the oracle has told it.
class History {
 public:
  explicit History(uint32_t seed) : random_(seed) { Reconnect(); }

  void Run(int steps) {
    for (int i = 0; i < steps; ++i) {
      switch (random_() % 8) {
        case 0:
        case 1:
        case 2:
          Send();
          break;
        case 3:
        case 4:
          Receive();
          break;
        case 5:
          Persist();
          break;
        case 6:
          Tell();
          break;
        case 7:
          if (random_() % 8 == 0) {
            Reconnect();
          }
          break;
      }
      Check();
    }
  }

 private:
  struct InFlight {
    CaptureInFlight capture;
    Receipt receipt;
    size_t bytes = 0;
  };

  void Reconnect() {
    sender_.Lost();
    told_received_ = told_durable_ = durable_;  // a new connection's hello
    received_ = durable_;
    if (sender_.next_sequence() > 1) {
      received_ = told_received_ = std::min(sender_.next_sequence() - 1, arrived_);
      durable_ = told_durable_ = std::min(durable_, received_);
    }
    HelloAckBody hello = Hello(received_, durable_, window_);
    ASSERT_TRUE(sender_.Connected(kSession, hello).ok());
    // Frames on the way and refusals not told are lost with the connection.
    arrived_ = received_ = sender_.next_sequence() - 1;
    consumed_ = sent_ = 0;
    granted_ = window_;
    refused_.clear();
    first_ = sender_.next_sequence();
  }

  void Send() {
    const size_t bytes = 100 + random_() % 3000;
    const bool fits = sent_ + bytes <= granted_;
    ASSERT_EQ(sender_.Admit(bytes) == Admission::kAdmitted, fits);
    if (!fits) {
      return;
    }
    frames_.emplace_back();
    InFlight& frame = frames_.back();
    frame.capture.file = FileId{1 + random_() % 3};
    frame.capture.order = ++order_;
    sender_.Begin(frame.capture);
    frame.receipt = sender_.Commit(bytes);
    frame.bytes = bytes;
    sent_ += bytes;
  }

  void Receive() {
    for (InFlight& frame : frames_) {
      if (frame.receipt.incarnation == sender_.incarnation() && frame.receipt.sequence == arrived_ + 1) {
        ++arrived_;
        received_ = arrived_;
        consumed_ += frame.bytes;
        if (random_() % 5 == 0) {
          refused_.insert(frame.receipt.sequence);
          const RefusalCode code = random_() % 2 == 0 ? RefusalCode::kRecapture : RefusalCode::kNoSpace;
          ASSERT_EQ(sender_.OnRefusal(kSession, Refusal(frame.receipt.sequence, frame.capture.file,
                                                        frame.capture.order, code)),
                    Fault::kNone);
        }
        return;
      }
    }
  }

  void Persist() { durable_ = received_; }

  void Tell() {
    told_received_ = std::max(told_received_, received_);
    told_durable_ = std::max(told_durable_, durable_);
    granted_ = std::max(granted_, consumed_ + window_);
    ASSERT_EQ(sender_.OnAck(kSession, Ack(received_, durable_, granted_)), Fault::kNone);
  }

  void Check() {
    EXPECT_LE(sender_.durable(), sender_.received());
    EXPECT_LT(sender_.received(), sender_.next_sequence());
    for (auto frame = frames_.begin(); frame != frames_.end();) {
      const auto outcome = sender_.Outcome(frame->receipt, WaitLevel::kDurable, &frame->capture);
      const bool here = frame->receipt.incarnation == sender_.incarnation();
      const bool refused = here && refused_.count(frame->receipt.sequence) != 0;
      const bool told = here && frame->receipt.sequence <= told_durable_ && frame->receipt.sequence >= first_;
      if (refused) {
        ASSERT_TRUE(outcome == SendStatus::kRecapture || outcome == SendStatus::kRefused);
      } else if (!here) {
        ASSERT_TRUE(outcome == SendStatus::kLost || frame->capture.status != SendStatus::kOk);
      } else {
        ASSERT_EQ(outcome, told ? std::optional(SendStatus::kOk) : std::nullopt);
      }
      if (outcome.has_value()) {
        sender_.End(frame->capture);
        frame = frames_.erase(frame);
      } else {
        ++frame;
      }
    }
  }

  std::mt19937 random_;
  Sender sender_;
  const uint64_t window_ = kWindow;
  std::list<InFlight> frames_;
  std::set<Sequence> refused_;  // of this connection
  Sequence first_ = 1;          // of this connection
  Sequence arrived_ = 0, received_ = 0, durable_ = 0;
  Sequence told_received_ = 0, told_durable_ = 0;
  uint64_t sent_ = 0, consumed_ = 0, granted_ = 0;
  uint64_t order_ = 0;
};

TEST(SenderHistories, TheOutcomeIsWhatTheReplicaHasDoneWhateverHappens) {
  for (uint32_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    History history(seed);
    history.Run(500);
    if (testing::Test::HasFatalFailure()) {
      return;
    }
  }
}

}  // namespace
}  // namespace pmirror
