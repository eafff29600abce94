// SPDX-License-Identifier: BSD-3-Clause
// The receiver's decisions: what is admitted, what is dropped, refused or cut, and when it acknowledges.
#include "replication/receiver.h"

#include <gtest/gtest.h>

#include <vector>

namespace pmirror {
namespace {

using Verdict = Receiver::Verdict;
constexpr Epoch kEpoch{5};
constexpr uint64_t kWindow = 10000;

FrameHeader Frame(FrameKind kind, Sequence sequence, uint8_t flags = 0) {
  FrameHeader header{};
  header.magic = kFrameMagic;
  header.version = kFrameVersion;
  header.kind = static_cast<uint8_t>(kind);
  header.flags = flags;
  header.epoch = Raw(kEpoch);
  header.session = 7;
  header.sequence = sequence;
  return header;
}

FrameHeader Data(Sequence sequence, uint8_t flags = 0) {
  FrameHeader header = Frame(FrameKind::kDataImage, sequence, flags);
  header.file = 3;
  header.order = 100 + sequence;
  header.range_count = 1;
  header.payload_length = 8;
  return header;
}
const std::vector<WireRange> kRange = {{64, 8}};

class ReceiverTest : public testing::Test {
 protected:
  static Receiver Make(SessionKind kind) {
    Receiver receiver({.session = SessionId{7}, .kind = kind, .epoch = kEpoch, .credit_window = kWindow});
    EXPECT_TRUE(receiver.Connected(1));
    return receiver;
  }
  Receiver::Decision Judge(const FrameHeader& header) {
    const bool data = header.kind == static_cast<uint8_t>(FrameKind::kDataImage);
    return receiver_.Admit(header, data ? std::span<const WireRange>(kRange) : std::span<const WireRange>(),
                           kEpoch);
  }
  void Apply(const FrameHeader& header) {
    ASSERT_EQ(Judge(header).verdict, Verdict::kAdmit);
    receiver_.Applied(header);
  }

  Receiver receiver_ = Make(SessionKind::kProcess);
};

TEST_F(ReceiverTest, FramesInSequenceAreAdmittedAndAcknowledgedCumulatively) {
  Apply(Data(1));
  Apply(Data(2));
  EXPECT_FALSE(receiver_.AckDue());
  EXPECT_TRUE(receiver_.AckOwed());
  Apply(Data(3, kFlagAckWanted));
  EXPECT_TRUE(receiver_.AckDue());
  const AckBody ack = receiver_.TakeAck();
  EXPECT_EQ(ack.received_sequence, 3u);
  EXPECT_EQ(ack.durable_sequence, 0u);
  EXPECT_FALSE(receiver_.AckOwed());
}

TEST_F(ReceiverTest, ABarrierIsOwedUntilPersisted) {
  Apply(Data(1));
  EXPECT_FALSE(receiver_.PersistDue());
  Apply(Frame(FrameKind::kBarrier, 2));
  EXPECT_TRUE(receiver_.PersistDue());
  receiver_.Persisted(12);
  EXPECT_FALSE(receiver_.PersistDue());
  const AckBody ack = receiver_.TakeAck();
  EXPECT_EQ(ack.durable_sequence, 2u);
  EXPECT_EQ(ack.operation_durable, 12u);
}

TEST_F(ReceiverTest, ABarrierFlagOnDataDoesTheSame) {
  Apply(Data(1, kFlagBarrier));
  EXPECT_TRUE(receiver_.PersistDue());
  EXPECT_TRUE(receiver_.AckDue());
}

TEST_F(ReceiverTest, ABarrierThatFailedIsNotDurableAndNotTriedAgainByItself) {
  Apply(Data(1, kFlagBarrier));
  receiver_.PersistFailed();
  EXPECT_FALSE(receiver_.PersistDue());
  EXPECT_EQ(receiver_.TakeAck().durable_sequence, 0u);
}

TEST_F(ReceiverTest, ARefusedFrameWithABarrierFlagIsNoBarrier) {
  ASSERT_EQ(Judge(Data(1, kFlagBarrier)).verdict, Verdict::kAdmit);
  receiver_.Refused(Data(1, kFlagBarrier));
  EXPECT_FALSE(receiver_.PersistDue());
  EXPECT_EQ(receiver_.TakeAck().received_sequence, 1u);
}

TEST_F(ReceiverTest, Trap11AReplayedFrameIsDroppedAndAcknowledgedAgain) {
  Apply(Data(1));
  receiver_.TakeAck();
  EXPECT_EQ(Judge(Data(1)).verdict, Verdict::kDuplicate);
  EXPECT_TRUE(receiver_.AckDue());
  EXPECT_EQ(receiver_.TakeAck().received_sequence, 1u);
  Apply(Data(2));
}

TEST_F(ReceiverTest, AGapCuts) { EXPECT_EQ(Judge(Data(2)).verdict, Verdict::kCut); }
TEST_F(ReceiverTest, ASequenceOfZeroCuts) { EXPECT_EQ(Judge(Data(0)).verdict, Verdict::kCut); }

TEST_F(ReceiverTest, Trap11ASessionReusedByAnotherProcessIsCut) {
  FrameHeader header = Data(1);
  header.session = 8;
  EXPECT_EQ(Judge(header).verdict, Verdict::kCut);
}

TEST_F(ReceiverTest, Trap11AnOldEpochIsRefused) {
  FrameHeader header = Data(1);
  header.epoch = Raw(kEpoch) - 1;
  EXPECT_EQ(Judge(header).code, RefusalCode::kOldEpoch);
  const auto superseded = receiver_.Admit(Data(1), kRange, Epoch{Raw(kEpoch) + 1});
  EXPECT_EQ(superseded.verdict, Verdict::kRefuse);
  EXPECT_EQ(superseded.code, RefusalCode::kOldEpoch);
  header.epoch = Raw(kEpoch) + 1;
  EXPECT_EQ(Judge(header).verdict, Verdict::kCut);
}

// A frame of the session's own old epoch must not pass under a header that names the new one.
TEST_F(ReceiverTest, Trap11ASessionOfAnOldEpochMayNotClaimTheNewOne) {
  FrameHeader header = Data(1);
  header.epoch = Raw(kEpoch) + 1;
  EXPECT_EQ(receiver_.Admit(header, kRange, Epoch{Raw(kEpoch) + 1}).code, RefusalCode::kOldEpoch);
}

TEST_F(ReceiverTest, AProcessMaySendDataBarriersAndHeartbeatsOnly) {
  FrameHeader op = Frame(FrameKind::kNamespaceOp, 1);
  op.payload_length = 1;
  op.order = 1;
  for (const FrameHeader& header :
       {op, Frame(FrameKind::kGrant, 1), Frame(FrameKind::kRevoke, 1), Frame(FrameKind::kHello, 1),
        Frame(FrameKind::kAck, 1), Frame(FrameKind::kRefusal, 1), Frame(FrameKind::kHelloAck, 1),
        Frame(FrameKind::kVerified, 1)}) {
    EXPECT_EQ(Judge(header).code, RefusalCode::kNotGranted) << Name(static_cast<FrameKind>(header.kind));
  }
  EXPECT_EQ(Judge(Frame(FrameKind::kHeartbeat, 1)).verdict, Verdict::kAdmit);
  receiver_ = Make(SessionKind::kDaemon);
  for (const FrameHeader& header : {op, Frame(FrameKind::kGrant, 1), Frame(FrameKind::kRevoke, 1)}) {
    EXPECT_EQ(Judge(header).verdict, Verdict::kAdmit) << Name(static_cast<FrameKind>(header.kind));
  }
}

TEST_F(ReceiverTest, AVerifyNamesAFileAndBoundedRangesAndNothingElse) {
  const auto verdict = [&](void (*damage)(FrameHeader&, std::vector<WireRange>&)) {
    FrameHeader header = Frame(FrameKind::kVerify, 1, kFlagAckWanted);
    header.file = 3;
    std::vector<WireRange> ranges = {{64, 8}, {4096, kMaxVerifyBytes - 8}};
    damage(header, ranges);
    header.range_count = static_cast<uint32_t>(ranges.size());
    return receiver_.Admit(header, ranges, kEpoch).verdict;
  };
  using Ranges = std::vector<WireRange>;
  EXPECT_EQ(verdict([](FrameHeader&, Ranges&) {}), Verdict::kAdmit);
  EXPECT_EQ(verdict([](FrameHeader& h, Ranges&) { h.file = 0; }), Verdict::kCut);
  EXPECT_EQ(verdict([](FrameHeader& h, Ranges&) { h.order = 1; }), Verdict::kCut);
  EXPECT_EQ(verdict([](FrameHeader& h, Ranges&) { h.size_generation = 2; }), Verdict::kCut);
  EXPECT_EQ(verdict([](FrameHeader&, Ranges& r) { r.clear(); }), Verdict::kCut);
  EXPECT_EQ(verdict([](FrameHeader&, Ranges& r) { r[0].length = 0; }), Verdict::kCut);
  EXPECT_EQ(verdict([](FrameHeader&, Ranges& r) { r[0].length = 9; }), Verdict::kCut);
  EXPECT_EQ(verdict([](FrameHeader&, Ranges& r) { r[0].offset = INT64_MAX; }), Verdict::kCut);
  EXPECT_EQ(verdict([](FrameHeader&, Ranges& r) { r.assign(kMaxVerifyRanges + 1, {0, 1}); }), Verdict::kCut);
}

TEST_F(ReceiverTest, FieldsThatContradictEachOtherCut) {
  const auto verdict = [&](void (*damage)(FrameHeader&, std::vector<WireRange>&)) {
    FrameHeader header = Data(1);
    std::vector<WireRange> ranges = kRange;
    damage(header, ranges);
    header.range_count = static_cast<uint32_t>(ranges.size());
    return receiver_.Admit(header, ranges, kEpoch).verdict;
  };
  EXPECT_EQ(verdict([](FrameHeader&, std::vector<WireRange>&) {}), Verdict::kAdmit);
  EXPECT_EQ(verdict([](FrameHeader& h, std::vector<WireRange>&) { h.file = 0; }), Verdict::kCut);
  EXPECT_EQ(verdict([](FrameHeader& h, std::vector<WireRange>&) { h.order = 0; }), Verdict::kCut);
  EXPECT_EQ(verdict([](FrameHeader& h, std::vector<WireRange>&) { h.size_generation = 3; }), Verdict::kCut);
  EXPECT_EQ(verdict([](FrameHeader& h, std::vector<WireRange>&) { h.payload_length = 9; }), Verdict::kCut);
  EXPECT_EQ(verdict([](FrameHeader&, std::vector<WireRange>& r) { r[0].length = 0; }), Verdict::kCut);
  EXPECT_EQ(verdict([](FrameHeader&, std::vector<WireRange>& r) { r[0].length = UINT64_MAX; }),
            Verdict::kCut);
  EXPECT_EQ(verdict([](FrameHeader&, std::vector<WireRange>& r) { r.clear(); }), Verdict::kCut);
  EXPECT_EQ(verdict([](FrameHeader&, std::vector<WireRange>& r) {
              r.push_back({UINT64_MAX, UINT64_MAX});
            }),
            Verdict::kCut);
}

TEST_F(ReceiverTest, ARangePastTheLargestFileIsRefused) {
  for (const uint64_t offset : {uint64_t{INT64_MAX} - 7, uint64_t{INT64_MAX}, UINT64_MAX - 8, UINT64_MAX}) {
    EXPECT_EQ(receiver_.Admit(Data(1), std::vector<WireRange>{{offset, 8}}, kEpoch).code,
              RefusalCode::kOutOfRange);
  }
  EXPECT_EQ(receiver_.Admit(Data(1), std::vector<WireRange>{{INT64_MAX - 8, 8}}, kEpoch).verdict,
            Verdict::kAdmit);
}

TEST_F(ReceiverTest, CreditComesBackBeforeItRunsOutAndMoreThanGrantedCuts) {
  const uint64_t frame = FrameBytes(Data(1));
  uint64_t limit = kWindow;
  Sequence sequence = 0;
  for (uint64_t sent = frame; sent <= kWindow * 3; sent += frame) {
    ASSERT_LE(sent, limit) << "the sender would wait for ever";
    Apply(Data(++sequence));
    if (receiver_.AckDue()) {
      limit = receiver_.TakeAck().credit_limit;
      EXPECT_EQ(limit, sent + kWindow);
    }
  }
  receiver_ = Make(SessionKind::kProcess);
  sequence = 0;
  for (uint64_t sent = frame; sent <= kWindow; sent += frame) {
    Apply(Data(++sequence));
  }
  EXPECT_EQ(Judge(Data(sequence + 1)).verdict, Verdict::kCut);
}

TEST_F(ReceiverTest, AResumedSessionTellsWhatItHasAndGoesOnBehindWhatWasLost) {
  Apply(Data(1, kFlagBarrier));
  receiver_.Persisted(0);
  Apply(Data(2));
  ASSERT_TRUE(receiver_.Connected(9));
  const HelloAckBody greeting = receiver_.Greeting(44);
  EXPECT_EQ(greeting.received_sequence, 2u);
  EXPECT_EQ(greeting.durable_sequence, 1u);
  EXPECT_EQ(greeting.operation_received, 44u);
  EXPECT_EQ(greeting.credit_limit, kWindow);
  EXPECT_FALSE(receiver_.AckOwed());
  Apply(Data(9));
}

TEST_F(ReceiverTest, AResumeOverReceivedSequencesIsNotAccepted) {
  Apply(Data(1));
  Apply(Data(2));
  EXPECT_FALSE(receiver_.Connected(2));
  EXPECT_TRUE(receiver_.Connected(3));
}

TEST_F(ReceiverTest, ABarrierOfALostConnectionIsNotServed) {
  Apply(Data(1, kFlagBarrier));
  ASSERT_TRUE(receiver_.Connected(5));
  EXPECT_FALSE(receiver_.PersistDue());
}

}  // namespace
}  // namespace pmirror
