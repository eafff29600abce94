// SPDX-License-Identifier: BSD-3-Clause
// The replica from its socket: what a sender gets for good frames and for bad ones, and what is in the file
// afterwards.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <chrono>
#include <cstring>
#include <random>
#include <thread>

#include "replication/crc32c.h"
#include "tests/unit/server/data_plane_fixture.h"

namespace pmirror::server {
namespace {

TEST_F(DataPlaneTest, BytesAreInTheFileWhenTheyAreAcknowledged) {
  ReplicaClient process = Process();
  ASSERT_TRUE(process.AwaitReceived(process.Data(kFile, 1, 3, "hello", kFlagAckWanted)));
  EXPECT_EQ(Content(), std::string("\0\0\0hello", 8));
  EXPECT_EQ(process.ack().durable_sequence, 0u);
  ASSERT_TRUE(process.AwaitDurable(process.Data(kFile, 2, 0, "abc", kFlagBarrier)));
  EXPECT_EQ(Content(), "abchello");
  EXPECT_TRUE(process.refusals().empty());
}

TEST_F(DataPlaneTest, ManyRangesOfOneFrameLandWhereTheyBelong) {
  ReplicaClient process = Process();
  FrameHeader header = process.Header(FrameKind::kDataImage, kFlagBarrier);
  header.file = kFile;
  header.order = 1;
  const std::vector<WireRange> ranges = {{0, 2}, {10, 3}, {5000, 1}};
  const std::string bytes = "aabbbc";
  process.SendBytes(EncodeFrame(header, ranges, std::as_bytes(std::span(bytes))));
  ASSERT_TRUE(process.AwaitDurable(1));
  std::string expected(5001, '\0');
  expected.replace(0, 2, "aa").replace(10, 3, "bbb").replace(5000, 1, "c");
  EXPECT_EQ(Content(), expected);
}

TEST_F(DataPlaneTest, ABarrierFrameCoversWhatCameBeforeItAndAHeartbeatIsAnswered) {
  ReplicaClient process = Process();
  process.Data(kFile, 1, 0, "abc");
  ASSERT_TRUE(process.AwaitDurable(process.Barrier()));
  ASSERT_TRUE(process.AwaitReceived(process.Heartbeat()));
}

TEST_F(DataPlaneTest, WhatNobodyAskedToAcknowledgeIsAcknowledgedAllTheSame) {
  ReplicaClient process = Process();
  ASSERT_TRUE(process.AwaitReceived(process.Data(kFile, 1, 0, "abc")));
}

TEST_F(DataPlaneTest, FramesThatArriveTogetherShareAnAcknowledgement) {
  ReplicaClient process = Process();
  std::vector<std::byte> burst;
  for (uint64_t i = 1; i <= 10; ++i) {
    FrameHeader header = process.Header(FrameKind::kDataImage, kFlagBarrier);
    header.file = kFile;
    header.order = i;
    const WireRange range{i, 1};
    const std::byte x{'x'};
    const auto frame = EncodeFrame(header, {&range, 1}, {&x, 1});
    burst.insert(burst.end(), frame.begin(), frame.end());
  }
  process.SendBytes(burst);
  ASSERT_TRUE(process.AwaitDurable(10));
  EXPECT_LE(process.acks(), 2);  // two when the kernel cut the burst
}

TEST_F(DataPlaneTest, Trap1TheNewerImageWinsWhateverArrivesLast) {
  ReplicaClient a = Process();
  ReplicaClient b = Process();
  ASSERT_TRUE(b.AwaitReceived(b.Data(kFile, 20, 2, "new", kFlagAckWanted)));
  ASSERT_TRUE(a.AwaitReceived(a.Data(kFile, 10, 0, "oldold!", kFlagAckWanted)));
  EXPECT_EQ(Content(), "olnewd!");
  EXPECT_TRUE(a.refusals().empty());
}

TEST_F(DataPlaneTest, AFrameOfAnOlderSizeIsCapturedAgainAndOfANewerWaitsForTheOperation) {
  ReplicaClient process = Process();
  ASSERT_TRUE(process.AwaitReceived(process.Data(kFile, 1, 0, std::string(100, 'x'), kFlagAckWanted)));
  const uint64_t truncate = ++operations_;
  const Sequence early = process.Data(kFile, 3, 0, "new", kFlagAckWanted, 2 * truncate);
  ASSERT_TRUE(daemon_->AwaitReceived(daemon_->Op(truncate, TruncateOp(kFile, 0))));
  ASSERT_TRUE(process.AwaitReceived(early));
  EXPECT_FALSE(process.RefusalOf(early));
  EXPECT_EQ(Content(), "new");
  const Sequence late = process.Data(kFile, 2, 0, "old and long", kFlagAckWanted, 0);
  ASSERT_TRUE(process.AwaitReceived(late));
  EXPECT_EQ(process.RefusalOf(late), RefusalCode::kRecapture);
  EXPECT_EQ(process.refusals()[0].order, 2u);
  EXPECT_EQ(Content(), "new");
}

TEST_F(DataPlaneTest, AFrameWhoseSizeOperationNeverComesIsAnsweredInTime) {
  ReplicaClient process = Process();
  const Sequence sequence = process.Data(kFile, 1, 0, "x", kFlagAckWanted, 2 * 99);
  ASSERT_TRUE(process.AwaitReceived(sequence));
  EXPECT_EQ(process.RefusalOf(sequence), RefusalCode::kRecapture);
  // On the daemon's own connection the operation can only come behind it.
  const Sequence own = daemon_->Data(kFile, 1, 0, "x", kFlagAckWanted, 2 * 99);
  ASSERT_TRUE(daemon_->AwaitReceived(own));
  EXPECT_EQ(daemon_->RefusalOf(own), RefusalCode::kRecapture);
  EXPECT_EQ(Content(), "");
}

// --- refusals: one precise answer, nothing changed ---

TEST_F(DataPlaneTest, P9AMissingFileAnUngrantedOneAndAForeignKindAreRefusedByName) {
  ReplicaClient process = Process();
  const Sequence ungranted = process.Data(11, 1, 0, "x", kFlagAckWanted);
  const Sequence kind = process.Grant(SessionId{1}, kFile);
  const Sequence missing = daemon_->Data(99, 1, 0, "x", kFlagAckWanted);
  const Sequence good = process.Data(kFile, 1, 0, "good", kFlagBarrier);
  ASSERT_TRUE(process.AwaitDurable(good));
  ASSERT_TRUE(daemon_->AwaitReceived(missing));
  EXPECT_EQ(process.RefusalOf(ungranted), RefusalCode::kNotGranted);
  EXPECT_EQ(process.RefusalOf(kind), RefusalCode::kNotGranted);
  EXPECT_EQ(daemon_->RefusalOf(missing), RefusalCode::kNoSuchFile);
  EXPECT_FALSE(process.RefusalOf(good));
  EXPECT_EQ(Content(), "good");
}

TEST_F(DataPlaneTest, P9ARangePastTheLargestFileIsRefusedAndTheFileStaysAsItWas) {
  ReplicaClient process = Process();
  const Sequence beyond = process.Data(kFile, 1, INT64_MAX - 1, "xxxx", kFlagAckWanted);
  ASSERT_TRUE(process.AwaitReceived(beyond));
  EXPECT_EQ(process.RefusalOf(beyond), RefusalCode::kOutOfRange);
  EXPECT_EQ(Content(), "");
}

TEST_F(DataPlaneTest, AVerifyTellsWhatTheFileHoldsAndTheNewestCaptureOfIt) {
  ReplicaClient process = Process();
  const auto crc = [](std::string_view text) { return Crc32c(0, std::as_bytes(std::span(text))); };
  process.Data(kFile, 7, 0, "0123456789");
  process.Data(kFile, 9, 4, "xy");
  const Sequence first = process.Verify(kFile, {{0, 4}, {6, 4}});
  const Sequence second = process.Verify(kFile, {{0, 100}});
  ASSERT_TRUE(process.AwaitReceived(second));
  ASSERT_EQ(process.verified().size(), 2U);
  EXPECT_EQ(process.verified()[0].sequence, first);
  EXPECT_EQ(process.verified()[0].file, kFile);
  EXPECT_EQ(process.verified()[0].range_count, 2U);
  EXPECT_EQ(process.verified()[0].order, 7U);
  EXPECT_EQ(process.verified()[0].crc[0], crc("0123"));
  EXPECT_EQ(process.verified()[0].crc[1], crc("6789"));
  EXPECT_EQ(process.verified()[1].order, 9U);
  EXPECT_EQ(process.verified()[1].crc[0], crc("0123xy6789")) << "up to the end of the file";
  // Bytes that were changed under the replica show.
  const int fd = ::open((bed_.backing / "file").c_str(), O_WRONLY | O_CLOEXEC);
  ASSERT_EQ(::pwrite(fd, "!", 1, 0), 1);
  ::close(fd);
  ASSERT_TRUE(process.AwaitReceived(process.Verify(kFile, {{0, 4}})));
  EXPECT_EQ(process.verified()[2].crc[0], crc("!123"));
}

TEST_F(DataPlaneTest, P9AVerifyOfAFileThatTheSessionMayNotWriteIsRefused) {
  ReplicaClient stranger = bed_.Open(SessionKind::kProcess);
  const Sequence refused = stranger.Verify(kFile, {{0, 4}});
  ASSERT_TRUE(stranger.AwaitReceived(refused));
  EXPECT_EQ(stranger.RefusalOf(refused), RefusalCode::kNotGranted);
  EXPECT_TRUE(stranger.verified().empty());
  const Sequence unknown = daemon_->Verify(999, {{0, 4}});
  ASSERT_TRUE(daemon_->AwaitReceived(unknown));
  EXPECT_EQ(daemon_->RefusalOf(unknown), RefusalCode::kNoSuchFile);
}

TEST_F(DataPlaneTest, ARevokedFileAndARevokedSessionAreClosed) {
  const ReplicaClient::Identity identity = bed_.Permit(SessionKind::kProcess);
  ASSERT_TRUE(daemon_->AwaitReceived(daemon_->Grant(identity.permit.session, kFile)));
  ReplicaClient process = bed_.Connect(identity);
  ASSERT_TRUE(process.Hello());
  ASSERT_TRUE(process.AwaitReceived(process.Data(kFile, 1, 0, "x", kFlagAckWanted)));
  ASSERT_TRUE(daemon_->AwaitReceived(daemon_->Grant(identity.permit.session, kFile, FrameKind::kRevoke)));
  const Sequence refused = process.Data(kFile, 2, 0, "y", kFlagAckWanted);
  ASSERT_TRUE(process.AwaitReceived(refused));
  EXPECT_EQ(process.RefusalOf(refused), RefusalCode::kNotGranted);
  ASSERT_TRUE(daemon_->AwaitReceived(daemon_->Grant(identity.permit.session, 0, FrameKind::kRevoke)));
  EXPECT_TRUE(process.AwaitCut());
  EXPECT_EQ(Content(), "x");
  // Nobody grants to a session that is not there.
  const Sequence grant = daemon_->Grant(identity.permit.session, kFile);
  ASSERT_TRUE(daemon_->AwaitReceived(grant));
  EXPECT_EQ(daemon_->RefusalOf(grant), RefusalCode::kNotGranted);
}

TEST_F(DataPlaneTest, ARefusedOperationBlocksThoseBehindItUntilItIsRepeated) {
  const Sequence bad = daemon_->Op(2, CreateOp(20, 99, "orphaned"));
  const Sequence behind = daemon_->Op(3, CreateOp(21, 1, "next"));
  ASSERT_TRUE(daemon_->AwaitReceived(behind));
  EXPECT_EQ(daemon_->RefusalOf(bad), RefusalCode::kNoSuchFile);
  EXPECT_EQ(daemon_->RefusalOf(behind), RefusalCode::kBlocked);
  ASSERT_TRUE(daemon_->AwaitReceived(daemon_->Op(2, CreateOp(20, 1, "repaired"))));
  ASSERT_TRUE(daemon_->AwaitReceived(daemon_->Op(3, CreateOp(21, 1, "next"))));
  EXPECT_EQ(daemon_->refusals().size(), 2u);
  EXPECT_EQ(bed_.volume().applied_operation(), 3u);
}

TEST_F(DataPlaneTest, AnOperationAtOrBelowTheMarkIsDroppedAndAcknowledged) {
  ASSERT_TRUE(daemon_->AwaitReceived(daemon_->Op(2, EntryOp(OpKind::kUnlink, kFile, 1, "file"))));
  ASSERT_TRUE(daemon_->AwaitReceived(daemon_->Op(1, CreateOp(kFile, 1, "file"))));
  EXPECT_TRUE(daemon_->refusals().empty());
  EXPECT_FALSE(std::filesystem::exists(bed_.backing / "file"));
  ASSERT_TRUE(daemon_->AwaitDurable(daemon_->Barrier()));
  EXPECT_EQ(daemon_->ack().operation_durable, 2u);
}

// --- trap 11 ---

TEST_F(DataPlaneTest, Trap11AFrameCutAtEveryByteChangesNothingAndTheSessionGoesOn) {
  ReplicaClient::Identity identity = bed_.Permit(SessionKind::kProcess);
  ASSERT_TRUE(daemon_->AwaitReceived(daemon_->Grant(identity.permit.session, kFile)));
  ASSERT_TRUE(daemon_->AwaitReceived(daemon_->Data(kFile, 1, 0, "before", kFlagAckWanted)));
  Sequence next = 1;
  for (size_t cut = 0;; ++cut) {
    ReplicaClient process = bed_.Connect(identity);
    ASSERT_TRUE(process.Hello(next)) << "cut " << cut;
    FrameHeader header = process.Header(FrameKind::kDataImage, kFlagAckWanted);
    header.file = kFile;
    header.order = 100 + cut;
    const WireRange range{0, 6};
    const std::string bytes = "after!";
    const auto frame = EncodeFrame(header, {&range, 1}, std::as_bytes(std::span(bytes)));
    process.SendBytes(std::span(frame).first(std::min(cut, frame.size())));
    if (cut >= frame.size()) {
      ASSERT_TRUE(process.AwaitReceived(next));
      EXPECT_EQ(Content(), "after!");
      break;
    }
    process.Close();
    ++next;
    identity = bed_.Permit(SessionKind::kProcess, Raw(identity.permit.session));
    ASSERT_EQ(Content(), "before") << "cut " << cut;
  }
}

TEST_F(DataPlaneTest, Trap11AReplayedFrameIsNotAppliedTwice) {
  ReplicaClient process = Process();
  FrameHeader header = process.Header(FrameKind::kDataImage, kFlagAckWanted);
  header.file = kFile;
  header.order = 5;
  const WireRange range{0, 3};
  const std::string bytes = "one";
  const auto frame = EncodeFrame(header, {&range, 1}, std::as_bytes(std::span(bytes)));
  process.SendBytes(frame);
  ASSERT_TRUE(process.AwaitReceived(1));
  ASSERT_TRUE(process.AwaitReceived(process.Data(kFile, 5, 0, "two", kFlagAckWanted)));
  process.SendBytes(frame);
  ASSERT_TRUE(process.AwaitReceived(process.Data(kFile, 6, 5, "!", kFlagAckWanted)));
  EXPECT_EQ(Content(), std::string("two\0\0!", 6));
  EXPECT_EQ(bed_.volume().state().counters.duplicates, 1u);
}

TEST_F(DataPlaneTest, Trap11AnOldEpochIsRefusedAndClosedOnLiveAndOnNewConnections) {
  ReplicaClient process = Process();
  ReplicaClient::Identity late = bed_.Permit(SessionKind::kProcess);
  bed_.epoch = Epoch{2};
  (void)bed_.Permit(SessionKind::kDaemon);
  EXPECT_TRUE(process.AwaitCut());
  EXPECT_TRUE(daemon_->AwaitCut());
  ReplicaClient old = bed_.Connect(late);
  EXPECT_FALSE(old.Hello());
  EXPECT_EQ(old.refusals().size(), 1u);
  bed_.epoch = Epoch{1};
  EXPECT_EQ(bed_.volume().PrepareSession(bed_.Request(SessionKind::kDaemon)).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(DataPlaneTest, Trap11AFrameWithAnOldEpochInItsHeaderIsRefusedAndEndsTheConnection) {
  bed_.epoch = Epoch{2};
  daemon_.emplace(bed_.Open(SessionKind::kDaemon));
  ReplicaClient process = Process();
  FrameHeader header = process.Header(FrameKind::kDataImage, kFlagAckWanted);
  header.epoch = 1;
  header.file = kFile;
  header.order = 1;
  const WireRange range{0, 1};
  const std::byte x{'x'};
  process.SendBytes(EncodeFrame(header, {&range, 1}, {&x, 1}));
  EXPECT_TRUE(process.AwaitCut());
  EXPECT_EQ(process.RefusalOf(1), RefusalCode::kOldEpoch);
  EXPECT_EQ(Content(), "");
}

TEST_F(DataPlaneTest, P3AProgramIsNotServedBeyondTheDeadlineWithoutItsDaemon) {
  daemon_.reset();
  bed_.Stop();
  bed_.options().deadline = std::chrono::nanoseconds(1);
  Start();
  ReplicaClient process = Process();
  EXPECT_TRUE(process.AwaitReceived(process.Data(kFile, 1, 0, "before", kFlagAckWanted)));
  daemon_->Close();
  const Deadline deadline = Deadline::After(std::chrono::seconds(20));
  while (!bed_.volume().DaemonIsGone() && !deadline.Expired()) {
    std::this_thread::yield();
  }
  process.Data(kFile, 2, 0, "behind", kFlagAckWanted);
  EXPECT_TRUE(process.AwaitCut());
  EXPECT_EQ(Content(), "before");
}

TEST_F(DataPlaneTest, Trap11AnotherSessionsNumberInAFrameIsCut) {
  ReplicaClient process = Process();
  FrameHeader header = process.Header(FrameKind::kDataImage, kFlagAckWanted);
  header.session ^= 1;
  header.file = kFile;
  header.order = 1;
  const WireRange range{0, 1};
  const std::byte x{'x'};
  process.SendBytes(EncodeFrame(header, {&range, 1}, {&x, 1}));
  EXPECT_TRUE(process.AwaitCut());
  EXPECT_EQ(Content(), "");
}

TEST_F(DataPlaneTest, ATicketWorksOnceAndOnlyForItsKind) {
  const ReplicaClient::Identity identity = bed_.Permit(SessionKind::kProcess);
  ReplicaClient first = bed_.Connect(identity);
  ASSERT_TRUE(first.Hello());
  ReplicaClient second = bed_.Connect(identity);
  EXPECT_FALSE(second.Hello());
  EXPECT_EQ(second.refusals().at(0).code, static_cast<uint32_t>(RefusalCode::kNotGranted));
  ReplicaClient::Identity wrong = bed_.Permit(SessionKind::kProcess);
  wrong.kind = SessionKind::kDaemon;
  EXPECT_FALSE(bed_.Connect(wrong).Hello());
  ReplicaClient::Identity elsewhere = bed_.Permit(SessionKind::kProcess);
  elsewhere.volume[0] ^= std::byte{1};
  EXPECT_FALSE(bed_.Connect(elsewhere).Hello());
  EXPECT_TRUE(first.AwaitReceived(first.Heartbeat()));
}

TEST_F(DataPlaneTest, ADamagedFrameCutsIsCountedAndSeveralInARowRetireThePath) {
  ReplicaClient::Identity identity = bed_.Permit(SessionKind::kProcess);
  ASSERT_TRUE(daemon_->AwaitReceived(daemon_->Grant(identity.permit.session, kFile)));
  for (Sequence fault = 1; fault <= 3; ++fault) {
    ReplicaClient process = bed_.Connect(identity);
    ASSERT_TRUE(process.Hello(fault));
    FrameHeader header = process.Header(FrameKind::kDataImage, kFlagAckWanted);
    header.file = kFile;
    header.order = 1;
    const WireRange range{0, 1};
    const std::byte x{'x'};
    auto frame = EncodeFrame(header, {&range, 1}, {&x, 1});
    frame.back() ^= std::byte{1};
    process.SendBytes(frame);
    EXPECT_TRUE(process.AwaitCut());
    EXPECT_EQ(bed_.volume().state().counters.checksum_faults, fault);
    if (fault < 3) {
      identity = bed_.Permit(SessionKind::kProcess, Raw(identity.permit.session));
    }
  }
  EXPECT_EQ(bed_.volume()
                .PrepareSession(bed_.Request(SessionKind::kProcess, Raw(identity.permit.session)))
                .status()
                .code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Content(), "");
}

TEST_F(DataPlaneTest, EveryFlippedBitOfAFrameIsCutOrRefusedAndNothingIsWritten) {
  // A new session each time: several damaged connections in a row retire one.
  for (size_t byte = 0; byte < sizeof(FrameHeader) + sizeof(WireRange) + 4; byte += 1) {
    ReplicaClient process = Process();
    FrameHeader header = process.Header(FrameKind::kDataImage, kFlagAckWanted);
    header.file = kFile;
    header.order = 1;
    const WireRange range{0, 4};
    const std::string bytes = "evil";
    auto frame = EncodeFrame(header, {&range, 1}, std::as_bytes(std::span(bytes)));
    frame[byte] ^= std::byte{1} << (byte % 8);
    process.SendBytes(frame);
    ::shutdown(process.socket(), SHUT_WR);  // a longer length makes it wait for bytes that never come
    ASSERT_TRUE(process.AwaitCut()) << "byte " << byte;
    ASSERT_EQ(process.ack().received_sequence, 0u) << "byte " << byte;
  }
  EXPECT_EQ(Content(), "");
}

TEST_F(DataPlaneTest, GarbageIsCutAndTheOthersGoOn) {
  std::mt19937_64 random(3);
  ReplicaClient process = Process();
  for (int i = 0; i < 50; ++i) {
    ReplicaClient noise = bed_.Connect(bed_.Permit(SessionKind::kProcess));
    if (i % 2 == 0) {
      ASSERT_TRUE(noise.Hello());
    }
    std::vector<std::byte> bytes(1 + random() % 5000);
    for (std::byte& byte : bytes) {
      byte = static_cast<std::byte>(random());
    }
    noise.SendBytes(bytes);
    ::shutdown(noise.socket(), SHUT_WR);
    EXPECT_TRUE(noise.AwaitCut());
  }
  EXPECT_TRUE(process.AwaitReceived(process.Heartbeat()));
}

// --- many at once ---

TEST_F(DataPlaneTest, SessionsSideBySideEndWithTheNewestImageOfEveryByte) {
  constexpr int kSessions = 4;
  constexpr uint64_t kFrames = 300;
  constexpr uint64_t kBytes = 4000;
  struct Image {
    uint64_t order, offset, length;
  };
  std::vector<Image> sent_images[kSessions];
  std::vector<ReplicaClient> clients;
  for (int i = 0; i < kSessions; ++i) {
    clients.push_back(Process());
  }
  std::vector<std::thread> threads;
  for (int i = 0; i < kSessions; ++i) {
    threads.emplace_back([&, i] {
      std::mt19937 random(static_cast<uint32_t>(i));
      uint64_t sent = 0;
      for (uint64_t n = 1; n <= kFrames; ++n) {
        const uint64_t order = n * kSessions + static_cast<uint64_t>(i);
        const uint64_t offset = random() % kBytes;
        const uint64_t length = 1 + random() % 64;
        // Every byte says from which order it came.
        sent_images[i].push_back({order, offset, length});
        std::string bytes(length, static_cast<char>(order % 251));
        sent = clients[i].Data(kFile, order, offset, bytes, n % 16 == 0 ? kFlagBarrier : 0);
      }
      EXPECT_TRUE(clients[i].AwaitDurable(clients[i].Barrier()));
      EXPECT_GE(clients[i].ack().received_sequence, sent);
      EXPECT_TRUE(clients[i].refusals().empty());
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  std::vector<uint64_t> newest(kBytes + 64, 0);
  for (const auto& images : sent_images) {
    for (const auto& [order, offset, length] : images) {
      for (uint64_t at = offset; at < offset + length; ++at) {
        newest[at] = std::max(newest[at], order);
      }
    }
  }
  const std::string content = Content();
  for (size_t at = 0; at < content.size(); ++at) {
    ASSERT_EQ(static_cast<unsigned char>(content[at]), newest[at] % 251) << "byte " << at;
  }
}

}  // namespace
}  // namespace pmirror::server
