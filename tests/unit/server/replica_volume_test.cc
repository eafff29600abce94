// SPDX-License-Identifier: BSD-3-Clause
// The control side of a replica: who may open sessions, what survives restarts, full disks.
#include "server/replica_volume.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include <filesystem>
#include <fstream>

#include "recovery/backing_owner.h"
#include "tests/unit/server/replica_bed.h"

namespace pmirror::server {
namespace {

constexpr uint64_t kFile = 10;
using Code = absl::StatusCode;

class ReplicaVolumeTest : public testing::Test {
 protected:
  void SetUp() override { bed_.Start(); }
  void Restart() {
    bed_.Stop();
    bed_.Start();
  }
  Code Prepare(const ReplicaVolume::SessionRequest& request) {
    return bed_.volume().PrepareSession(request).status().code();
  }
  std::string WhyNot(const ReplicaVolume::SessionRequest& request) {
    return std::string(bed_.volume().PrepareSession(request).status().message());
  }
  std::string RecordPath() const { return bed_.state / "v0.copy"; }
  ReplicaVolume::Departure Departure(uint64_t operation) const {
    return {.epoch = bed_.epoch, .operation = operation, .generation = 77, .mount_number = bed_.mount_number};
  }

  ReplicaBed bed_;
};

TEST_F(ReplicaVolumeTest, AFreshCopySaysSoAndTakesTheGenerationOfItsFirstPrimary) {
  ReplicaVolume::State state = bed_.volume().state();
  EXPECT_TRUE(state.empty);
  EXPECT_TRUE(state.record.clean);
  EXPECT_EQ(state.record.generation, 0u);
  (void)bed_.Permit(SessionKind::kDaemon);
  state = bed_.volume().state();
  EXPECT_EQ(state.record.generation, 77u);
  EXPECT_EQ(state.record.mount_number, 1u);
  EXPECT_FALSE(state.record.clean);
  EXPECT_EQ(recovery::LoadVolumeRecord(RecordPath())->value(), state.record)
      << "not durable before the session is open";
}

TEST_F(ReplicaVolumeTest, AnotherHistoryIsRefused) {
  (void)bed_.Permit(SessionKind::kDaemon);
  ReplicaVolume::SessionRequest request = bed_.Request(SessionKind::kDaemon);
  request.generation = 78;
  EXPECT_EQ(Prepare(request), Code::kFailedPrecondition);
  EXPECT_NE(WhyNot(request).find("generation 77"), std::string::npos) << WhyNot(request);
  EXPECT_EQ(bed_.volume().state().record.generation, 77u);
}

TEST_F(ReplicaVolumeTest, ADirectoryWithForeignContentIsNotTakenForACopy) {
  bed_.Stop();
  std::ofstream(bed_.backing / "precious") << "x";
  bed_.Start();
  EXPECT_EQ(Prepare(bed_.Request(SessionKind::kDaemon)), Code::kFailedPrecondition);
  EXPECT_FALSE(bed_.volume().state().empty);
}

TEST_F(ReplicaVolumeTest, ADirectoryOfAnotherVolumeIsRefused) {
  bed_.Stop();
  ReplicaVolume::Options other = bed_.options();
  other.uuid[3] ^= std::byte{1};
  EXPECT_EQ(ReplicaVolume::Open(other).status().code(), Code::kFailedPrecondition);
}

TEST_F(ReplicaVolumeTest, OldEpochsAndOldMountsAreSuperseded) {
  bed_.epoch = Epoch{5};
  bed_.mount_number = 3;
  (void)bed_.Permit(SessionKind::kDaemon);
  ReplicaVolume::SessionRequest request = bed_.Request(SessionKind::kDaemon);
  request.epoch = Epoch{4};
  EXPECT_EQ(Prepare(request), Code::kFailedPrecondition);
  request = bed_.Request(SessionKind::kDaemon);
  request.mount_number = 2;
  EXPECT_EQ(Prepare(request), Code::kFailedPrecondition);
  request = bed_.Request(SessionKind::kProcess);
  request.mount_number = 4;
  EXPECT_EQ(Prepare(request), Code::kFailedPrecondition) << "the daemon's session comes first";
  Restart();
  request = bed_.Request(SessionKind::kDaemon);
  request.epoch = Epoch{4};
  EXPECT_EQ(Prepare(request), Code::kFailedPrecondition) << "the epoch did not survive a restart";
}

TEST_F(ReplicaVolumeTest, ANewMountCountsOperationsFromOneAndForgetsOrders) {
  ReplicaClient first = bed_.Open(SessionKind::kDaemon);
  ASSERT_TRUE(first.AwaitReceived(first.Op(1, CreateOp(kFile, 1, "file"))));
  ASSERT_TRUE(first.AwaitReceived(first.Data(kFile, 1000, 0, "first", kFlagAckWanted)));
  bed_.mount_number = 2;
  bed_.epoch = Epoch{2};
  ReplicaClient second = bed_.Open(SessionKind::kDaemon);
  EXPECT_TRUE(first.AwaitCut());
  EXPECT_EQ(bed_.volume().applied_operation(), 0u);
  ASSERT_TRUE(second.AwaitReceived(second.Op(1, CreateOp(11, 1, "other"))));
  ASSERT_TRUE(second.AwaitReceived(second.Data(kFile, 1, 0, "secnd", kFlagAckWanted)));
  EXPECT_EQ(ReadFile(bed_.backing / "file"), "secnd");
}

TEST_F(ReplicaVolumeTest, TheMarkOfOperationsSurvivesAKillAndReplaysAreDropped) {
  {
    ReplicaClient daemon = bed_.Open(SessionKind::kDaemon);
    ASSERT_TRUE(daemon.AwaitReceived(daemon.Op(1, CreateOp(kFile, 1, "file"))));
    ASSERT_TRUE(daemon.AwaitReceived(daemon.Op(2, RenameOp(kFile, 1, "file", 1, "moved"))));
    ASSERT_TRUE(daemon.AwaitReceived(daemon.Op(3, CreateOp(11, 1, "file"))));
  }
  Restart();
  EXPECT_EQ(bed_.volume().state().operation, 3u);
  ReplicaClient daemon = bed_.Connect(bed_.Permit(SessionKind::kDaemon));
  const auto greeting = daemon.Hello();
  ASSERT_TRUE(greeting);
  EXPECT_EQ(greeting->operation_received, 3u);
  ASSERT_TRUE(daemon.AwaitReceived(daemon.Op(1, CreateOp(kFile, 1, "file"))));
  ASSERT_TRUE(daemon.AwaitReceived(daemon.Op(2, RenameOp(kFile, 1, "file", 1, "moved"))));
  EXPECT_TRUE(daemon.refusals().empty());
  EXPECT_EQ(IdOf(bed_.backing / "moved"), kFile);
  EXPECT_EQ(IdOf(bed_.backing / "file"), 11u);
}

TEST_F(ReplicaVolumeTest, ASessionIsResumedAfterARestartWithNothingReceived) {
  uint64_t session = 0;
  {
    ReplicaClient daemon = bed_.Open(SessionKind::kDaemon);
    ASSERT_TRUE(daemon.AwaitReceived(daemon.Op(1, CreateOp(kFile, 1, "file"))));
    const ReplicaClient::Identity identity = bed_.Permit(SessionKind::kProcess);
    session = Raw(identity.permit.session);
    ASSERT_TRUE(daemon.AwaitReceived(daemon.Grant(identity.permit.session, kFile)));
    ReplicaClient process = bed_.Connect(identity);
    ASSERT_TRUE(process.Hello());
    ASSERT_TRUE(process.AwaitDurable(process.Data(kFile, 1, 0, "x", kFlagBarrier)));
  }
  Restart();
  ReplicaClient process = bed_.Connect(bed_.Permit(SessionKind::kProcess, session));
  const auto greeting = process.Hello(8);
  ASSERT_TRUE(greeting);
  EXPECT_EQ(greeting->received_sequence, 0u);
  const Sequence ungranted = process.Data(kFile, 2, 0, "y", kFlagAckWanted);
  ASSERT_TRUE(process.AwaitReceived(ungranted));
  EXPECT_EQ(process.RefusalOf(ungranted), RefusalCode::kNotGranted) << "grants are the daemon's to repeat";
}

TEST_F(ReplicaVolumeTest, ASessionIsNotResumedByAnotherNodeOrAsAnotherKind) {
  (void)bed_.Permit(SessionKind::kDaemon);
  const uint64_t session = Raw(bed_.Permit(SessionKind::kProcess).permit.session);
  ReplicaVolume::SessionRequest request = bed_.Request(SessionKind::kProcess, session);
  request.node = "n9";
  EXPECT_EQ(Prepare(request), Code::kFailedPrecondition);
  EXPECT_EQ(Prepare(bed_.Request(SessionKind::kDaemon, session)), Code::kFailedPrecondition);
  EXPECT_EQ(Prepare(bed_.Request(SessionKind::kProcess, session)), Code::kOk);
}

TEST_F(ReplicaVolumeTest, LeavingRecordsACleanCopyAndEndsTheSessions) {
  ReplicaClient daemon = bed_.Open(SessionKind::kDaemon);
  ASSERT_TRUE(daemon.AwaitReceived(daemon.Op(1, CreateOp(kFile, 1, "file"))));
  EXPECT_EQ(bed_.volume().Leave(Departure(2)).code(), Code::kFailedPrecondition);
  ReplicaVolume::Departure other = Departure(1);
  other.epoch = Epoch{9};
  EXPECT_EQ(bed_.volume().Leave(other).code(), Code::kFailedPrecondition);
  EXPECT_FALSE(bed_.volume().state().record.clean);
  ASSERT_TRUE(bed_.volume().Leave(Departure(1)).ok());
  EXPECT_TRUE(daemon.AwaitCut());
  Restart();
  const ReplicaVolume::State state = bed_.volume().state();
  EXPECT_TRUE(state.record.clean);
  EXPECT_EQ(state.operation, 1u);
  EXPECT_FALSE(state.restarted_in_use);
}

TEST_F(ReplicaVolumeTest, ACopyThatIsNotWantedAnyMoreCanBeServedAnewBesideIt) {
  (void)bed_.Permit(SessionKind::kDaemon);
  EXPECT_EQ(ReplicaVolume::Open(bed_.options()).status().code(), Code::kAlreadyExists);
  const absl::StatusOr<bool> unused = bed_.volume().Retire();
  ASSERT_TRUE(unused.ok()) << unused.status();
  EXPECT_FALSE(*unused);
  EXPECT_EQ(Prepare(bed_.Request(SessionKind::kDaemon)), Code::kNotFound);
  const auto again = ReplicaVolume::Open(bed_.options());
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ((*again)->state().record.generation, 77u);
}

TEST_F(ReplicaVolumeTest, ACopyThatNeverTookPartLeavesNoTrace) {
  const absl::StatusOr<bool> unused = bed_.volume().Retire();
  ASSERT_TRUE(unused.ok()) << unused.status();
  EXPECT_TRUE(*unused);
  EXPECT_FALSE(std::filesystem::exists(RecordPath()));
  EXPECT_EQ(recovery::FindOwner(bed_.backing.path()), std::nullopt);
}

TEST_F(ReplicaVolumeTest, P9ADamagedRecordIsRefusedByNameAndNothingIsTouched) {
  (void)bed_.Permit(SessionKind::kDaemon);
  bed_.Stop();
  const std::string good = ReadFile(RecordPath());
  std::ofstream(RecordPath(), std::ios::trunc) << good.substr(0, good.size() - 2);
  const auto opened = ReplicaVolume::Open(bed_.options());
  EXPECT_EQ(opened.status().code(), Code::kDataLoss);
  EXPECT_NE(std::string(opened.status().message()).find(RecordPath()), std::string::npos) << opened.status();
  EXPECT_EQ(ReadFile(RecordPath()).size(), good.size() - 2);
}

TEST_F(ReplicaVolumeTest, AfterARestartOfTheMachineTheSameMountIsNotGoneOnWith) {
  (void)bed_.Permit(SessionKind::kDaemon);
  bed_.Stop();
  VolumeRecord record = recovery::LoadVolumeRecord(RecordPath())->value();
  record.boot = "another-boot";
  ASSERT_TRUE(recovery::StoreVolumeRecord(RecordPath(), record).ok());
  bed_.Start();
  EXPECT_TRUE(bed_.volume().state().restarted_in_use);
  EXPECT_EQ(Prepare(bed_.Request(SessionKind::kDaemon)), Code::kFailedPrecondition);
  bed_.mount_number = 2;
  EXPECT_EQ(Prepare(bed_.Request(SessionKind::kDaemon)), Code::kOk);
}

TEST_F(ReplicaVolumeTest, ObjectsWithoutIdAreCountedInTheState) {
  ReplicaClient daemon = bed_.Open(SessionKind::kDaemon);
  ASSERT_TRUE(daemon.AwaitReceived(daemon.Op(1, CreateOp(kFile, 1, "file"))));
  bed_.Stop();
  std::ofstream(bed_.backing / "stray");
  bed_.Start();
  EXPECT_EQ(bed_.volume().state().objects, 1u);
  EXPECT_EQ(bed_.volume().state().objects_without_id, 1u);
}

// A generation's operation is the whole volume's: the file's last size operation and the mark decide
// (architecture page).
TEST_F(ReplicaVolumeTest, AFrameCapturedAfterOperationsOnOtherFilesIsTaken) {
  ReplicaClient daemon = bed_.Open(SessionKind::kDaemon);
  ASSERT_TRUE(daemon.AwaitReceived(daemon.Op(1, CreateOp(kFile, 1, "file"))));
  ASSERT_TRUE(daemon.AwaitReceived(daemon.Op(2, CreateOp(11, 1, "other"))));
  const Sequence sequence = daemon.Data(kFile, 1, 0, "x", kFlagAckWanted, 2 * 2);
  ASSERT_TRUE(daemon.AwaitReceived(sequence));
  EXPECT_FALSE(daemon.RefusalOf(sequence));
}

// --- a full disk ---

class SmallReplicaTest : public testing::TestWithParam<Domain> {
 protected:
  void SetUp() override {
    if (!bed_.backing.MountSmall(1 << 20)) {
      GTEST_SKIP() << "mounting is not allowed here";
    }
    if (GetParam() == Domain::kPmem) {
      ::setenv("PMEM_IS_PMEM_FORCE", "1", 1);
    }
    bed_.Start();
    daemon_.emplace(bed_.Open(SessionKind::kDaemon));
    ASSERT_TRUE(daemon_->AwaitReceived(daemon_->Op(1, CreateOp(kFile, 1, "file"))));
    ASSERT_TRUE(daemon_->AwaitReceived(daemon_->Op(2, CreateOp(11, 1, "filler"))));
  }
  // Fills the file system but for less than a page.
  void Fill() {
    for (uint64_t offset = 0;; offset += 4096) {
      const Sequence sequence = daemon_->Data(11, 1, offset, std::string(4096, 'f'), kFlagAckWanted);
      ASSERT_TRUE(daemon_->AwaitReceived(sequence));
      if (daemon_->RefusalOf(sequence)) {
        ASSERT_EQ(daemon_->RefusalOf(sequence), RefusalCode::kNoSpace);
        ASSERT_EQ(daemon_->refusals().back().error_number, ENOSPC);
        return;
      }
      ASSERT_LT(offset, 2u << 20);
    }
  }

  ReplicaBed bed_{GetParam()};
  std::optional<ReplicaClient> daemon_;
};

TEST_P(SmallReplicaTest, Trap9AFullDiskRefusesTheWholeFrameAndTheReplicaGoesOn) {
  ASSERT_TRUE(daemon_->AwaitReceived(daemon_->Data(kFile, 1, 0, std::string(4096, 'a'), kFlagAckWanted)));
  Fill();
  // Its first range has storage, its second has not: nothing of it may be seen, not even the size.
  FrameHeader header = daemon_->Header(FrameKind::kDataImage, kFlagAckWanted);
  header.file = kFile;
  header.order = 2;
  const std::vector<WireRange> ranges = {{0, 4096}, {8192, 4096}};
  const std::string bytes(8192, 'b');
  daemon_->SendBytes(EncodeFrame(header, ranges, std::as_bytes(std::span(bytes))));
  ASSERT_TRUE(daemon_->AwaitReceived(header.sequence));
  EXPECT_EQ(daemon_->RefusalOf(header.sequence), RefusalCode::kNoSpace);
  EXPECT_EQ(ReadFile(bed_.backing / "file"), std::string(4096, 'a'));
  // What has storage can still be written, and is durable.
  ASSERT_TRUE(daemon_->AwaitDurable(daemon_->Data(kFile, 3, 0, std::string(4096, 'c'), kFlagBarrier)));
  EXPECT_EQ(ReadFile(bed_.backing / "file"), std::string(4096, 'c'));
}

TEST_P(SmallReplicaTest, Trap9ARefusedFrameIsTakenOnceThereIsRoomAgain) {
  Fill();
  const Sequence refused = daemon_->Data(kFile, 2, 0, std::string(4096, 'b'), kFlagAckWanted);
  ASSERT_TRUE(daemon_->AwaitReceived(refused));
  ASSERT_EQ(daemon_->RefusalOf(refused), RefusalCode::kNoSpace);
  ASSERT_TRUE(daemon_->AwaitReceived(daemon_->Op(3, TruncateOp(11, 0))));
  const Sequence again = daemon_->Data(kFile, 3, 0, std::string(4096, 'b'), kFlagBarrier, 2 * 3);
  ASSERT_TRUE(daemon_->AwaitDurable(again));
  EXPECT_FALSE(daemon_->RefusalOf(again));
  EXPECT_EQ(ReadFile(bed_.backing / "file"), std::string(4096, 'b'));
}

TEST_P(SmallReplicaTest, Trap9APunchedHoleIsReservedAgainBeforeItIsWritten) {
  ASSERT_TRUE(daemon_->AwaitReceived(daemon_->Data(kFile, 1, 0, std::string(8192, 'a'), kFlagAckWanted)));
  ASSERT_TRUE(daemon_->AwaitReceived(daemon_->Op(3, AllocateOp(kFile, 3, 0, 8192))));  // punch, keep size
  Fill();
  const Sequence sequence = daemon_->Data(kFile, 2, 0, std::string(8192, 'b'), kFlagAckWanted, 2 * 3);
  ASSERT_TRUE(daemon_->AwaitReceived(sequence));
  EXPECT_EQ(daemon_->RefusalOf(sequence), RefusalCode::kNoSpace);
  EXPECT_EQ(ReadFile(bed_.backing / "file"), std::string(8192, '\0'));
}

TEST_P(SmallReplicaTest, Trap9AFullDiskRefusesOperationsWithoutLeavingHalfOfOne) {
  // A symlink of this length takes a page of a tmpfs.
  uint64_t number = 3;
  Sequence sequence = 0;
  do {
    sequence = daemon_->Op(number, CreateOp(1000 + number, 1, "f" + std::to_string(number), S_IFLNK | 0777,
                                            std::string(4000, 't')));
    ASSERT_TRUE(daemon_->AwaitReceived(sequence));
    ++number;
    ASSERT_LT(number, 1000u);
  } while (!daemon_->RefusalOf(sequence));
  EXPECT_EQ(daemon_->RefusalOf(sequence), RefusalCode::kNoSpace);
  EXPECT_FALSE(std::filesystem::is_symlink(bed_.backing / ("f" + std::to_string(number - 1))));
  const Sequence behind = daemon_->Op(number, CreateOp(999999, 1, "behind"));
  ASSERT_TRUE(daemon_->AwaitReceived(behind));
  EXPECT_EQ(daemon_->RefusalOf(behind), RefusalCode::kBlocked);
}

INSTANTIATE_TEST_SUITE_P(Domains, SmallReplicaTest,
                         testing::Values(Domain::kVolatile, Domain::kFile, Domain::kPmem));

}  // namespace
}  // namespace pmirror::server
