// SPDX-License-Identifier: BSD-3-Clause
// A replica while it is resynchronised: what it could be promoted from, in every state that a crash leaves, and `pmirror settle`.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "server/settle.h"
#include "server/undo_log.h"
#include "tests/unit/server/replica_bed.h"

namespace pmirror::server {
namespace {

using Code = absl::StatusCode;
using testing::HasSubstr;

constexpr uint64_t kFile = 10;
constexpr uint64_t kOther = 11;

// A copy that took part in mount 1 with two operations, and a resync of it to mount 2.
class ReplicaResyncTest : public testing::Test {
 protected:
  void SetUp() override { Begin(); }
  void Begin() {
    bed_.Start();
    ReplicaClient daemon = bed_.Open(SessionKind::kDaemon);
    ASSERT_TRUE(daemon.AwaitReceived(daemon.Op(1, CreateOp(kFile, 1, "file"))));
    ASSERT_TRUE(daemon.AwaitReceived(daemon.Op(2, CreateOp(kOther, 1, "other"))));
    ASSERT_TRUE(daemon.AwaitDurable(daemon.Data(kFile, 1, 0, Old(), kFlagBarrier)));
    bed_.mount_number = 2;
  }
  static std::string Old() { return std::string(10'000, 'o'); }

  void Restart() {
    bed_.Stop();
    bed_.Start();
  }
  absl::Status BeginResync() {
    const auto token = bed_.volume().BeginResync(
        {.node = "n1", .epoch = bed_.epoch, .generation = 77, .mount_number = bed_.mount_number});
    token_ = token.ok() ? *token : 0;
    return token.status();
  }
  // Its tree, then the mount, then bytes in the session of it, as resync and programs send them.
  void ChangeEverything() {
    ASSERT_TRUE(bed_.volume().ChangeTree(token_, EntryOp(OpKind::kUnlink, kOther, 1, "other")).ok());
    ASSERT_TRUE(bed_.volume().ChangeTree(token_, CreateOp(12, 1, "new")).ok());
    ASSERT_TRUE(bed_.volume().AdoptMount(token_, 40).ok());
    ReplicaClient daemon = bed_.Open(SessionKind::kDaemon);
    ASSERT_TRUE(daemon.AwaitReceived(daemon.Op(41, TruncateOp(kFile, 5000))));
    ASSERT_TRUE(daemon.AwaitReceived(daemon.Data(kFile, 1, 100, "new", kFlagAckWanted, 2 * 41)));
    ASSERT_EQ(ReadFile(bed_.backing / "file").size(), 5000u);
  }
  absl::StatusOr<std::string> SettleIt() { return Settle(bed_.backing.path(), ""); }
  recovery::VolumeRecord Record() const {
    return recovery::LoadVolumeRecord(bed_.state / "v0.copy")->value();
  }
  ReplicaVolume::State State() { return bed_.volume().state(); }
  std::string LogPath() const { return UndoLogPath(bed_.backing.path()); }

  ReplicaBed bed_{Domain::kFile};
  uint64_t token_ = 0;
};

TEST_F(ReplicaResyncTest, P2_P8_AResyncThatWasCutIsSettledToTheLastConsistencyPoint) {
  const std::vector<std::string> before = Snapshot(bed_.backing.path());
  ASSERT_TRUE(State().promotable);
  ASSERT_TRUE(BeginResync().ok());
  EXPECT_TRUE(State().promotable);
  EXPECT_THAT(State().image, HasSubstr("operation 2 of mount 1"));
  ChangeEverything();
  EXPECT_TRUE(State().promotable);
  bed_.Stop();
  const auto settled = SettleIt();
  ASSERT_TRUE(settled.ok()) << settled.status();
  EXPECT_THAT(*settled, HasSubstr("operation 2 of mount 1"));
  EXPECT_EQ(ReadFile(bed_.backing / "file"), Old());
  EXPECT_FALSE(std::filesystem::exists(LogPath()));
  EXPECT_THAT(*SettleIt(), HasSubstr("nothing"));
  bed_.Start();
  EXPECT_TRUE(State().promotable);
  EXPECT_EQ(State().record.mount_number, 1u);
  EXPECT_EQ(State().operation, 2u);
  EXPECT_FALSE(State().record.resyncing);
  EXPECT_EQ(Snapshot(bed_.backing.path()), before);
}

TEST_F(ReplicaResyncTest, P5_ACopyThatWasTakenBackFollowsNobodyWithoutAnotherResync) {
  ASSERT_TRUE(BeginResync().ok());
  ChangeEverything();
  bed_.Stop();
  ASSERT_TRUE(SettleIt().ok());
  bed_.Start();
  EXPECT_TRUE(State().restarted_in_use);
  for (const uint64_t mount : {1, 2, 3}) {
    bed_.mount_number = mount;
    EXPECT_EQ(bed_.volume().PrepareSession(bed_.Request(SessionKind::kDaemon)).status().code(),
              Code::kFailedPrecondition);
  }
  ASSERT_TRUE(BeginResync().ok());
  ASSERT_TRUE(bed_.volume().AdoptMount(token_, 7).ok());
  ASSERT_TRUE(bed_.volume().EndResync(token_).ok());
  (void)bed_.Permit(SessionKind::kDaemon);
}

TEST_F(ReplicaResyncTest, P2_AResyncThatIsBegunAgainStillLeadsToTheSamePoint) {
  ASSERT_TRUE(BeginResync().ok());
  ChangeEverything();
  const uint64_t undo = Record().undo;
  EXPECT_NE(undo, 0u);
  Restart();
  EXPECT_TRUE(State().promotable);
  bed_.mount_number = 3;
  ASSERT_TRUE(BeginResync().ok());
  EXPECT_EQ(Record().undo, undo);
  EXPECT_THAT(State().image, HasSubstr("operation 2 of mount 1"));
  bed_.Stop();
  ASSERT_TRUE(SettleIt().ok());
  EXPECT_EQ(ReadFile(bed_.backing / "file"), Old());
  EXPECT_TRUE(std::filesystem::exists(bed_.backing / "other"));
}

TEST_F(ReplicaResyncTest, AResyncThatAnotherHasEndedIsAbortedSoThatItIsBegunAnew) {
  ASSERT_TRUE(BeginResync().ok());
  const uint64_t first = token_;
  ASSERT_TRUE(BeginResync().ok());
  EXPECT_EQ(bed_.volume().ChangeTree(first, CreateOp(12, 1, "new")).code(), Code::kAborted);
  EXPECT_EQ(bed_.volume().AdoptMount(first, 40).code(), Code::kAborted);
  EXPECT_EQ(bed_.volume().EndResync(first).code(), Code::kAborted);
  Restart();
  EXPECT_EQ(bed_.volume().AdoptMount(token_, 40).code(), Code::kAborted);
}

TEST_F(ReplicaResyncTest, P2_NoSessionOfTheMountIsOpenedUntilTheResyncHasBroughtTheTree) {
  bed_.mount_number = 1;  // that of the sessions that have just ended
  ASSERT_TRUE(BeginResync().ok());
  for (const SessionKind kind : {SessionKind::kProcess, SessionKind::kDaemon}) {
    EXPECT_EQ(bed_.volume().PrepareSession(bed_.Request(kind)).status().code(), Code::kUnavailable);
  }
  ASSERT_TRUE(bed_.volume().AdoptMount(token_, 2).ok());
  for (const SessionKind kind : {SessionKind::kDaemon, SessionKind::kProcess}) {
    EXPECT_TRUE(bed_.volume().PrepareSession(bed_.Request(kind)).ok());
  }
}

TEST_F(ReplicaResyncTest, P5_AResyncThatHasEndedIsNotTakenBackWhateverTheCrashLeft) {
  ASSERT_TRUE(BeginResync().ok());
  ChangeEverything();
  const std::string log = ReadFile(LogPath());
  ASSERT_TRUE(bed_.volume().EndResync(token_).ok());
  EXPECT_FALSE(std::filesystem::exists(LogPath()));
  EXPECT_TRUE(State().promotable);
  bed_.Stop();
  const std::vector<std::string> after = Snapshot(bed_.backing.path());
  std::ofstream(LogPath(), std::ios::binary)
      << log;  // as when the crash came between the record and the removal
  EXPECT_THAT(*SettleIt(), HasSubstr("nothing"));
  EXPECT_FALSE(std::filesystem::exists(LogPath()));
  std::ofstream(LogPath(), std::ios::binary) << log;
  bed_.Start();
  EXPECT_FALSE(std::filesystem::exists(LogPath()));
  EXPECT_EQ(Snapshot(bed_.backing.path()), after);
}

TEST_F(ReplicaResyncTest, P5_ADamagedLogIsNoWayBackAndSaysSo) {
  ASSERT_TRUE(BeginResync().ok());
  ChangeEverything();
  bed_.Stop();
  {
    std::fstream log(LogPath(), std::ios::in | std::ios::out | std::ios::binary);
    log.seekp(2 * UndoLogFile::kBlock + 100);
    log.put('\x7f');
  }
  const std::vector<std::string> mixture = Snapshot(bed_.backing.path());
  EXPECT_EQ(SettleIt().status().code(), Code::kDataLoss);
  EXPECT_THAT(std::string(SettleIt().status().message()), HasSubstr(LogPath()));
  EXPECT_EQ(Snapshot(bed_.backing.path()), mixture);
  bed_.Start();
  EXPECT_FALSE(State().promotable);
  EXPECT_THAT(State().image, HasSubstr("not promotable until the resync has ended"));
  EXPECT_EQ(Record().undo, 0u);
  bed_.Stop();
  EXPECT_EQ(SettleIt().status().code(), Code::kFailedPrecondition);
}

TEST_F(ReplicaResyncTest, P9_SettleRefusesWhatADaemonServesAndWhatIsNoBackingDirectory) {
  EXPECT_EQ(SettleIt().status().code(), Code::kAlreadyExists);
  EXPECT_EQ(Settle(bed_.state.path(), "").status().code(), Code::kFailedPrecondition);
  bed_.Stop();
  EXPECT_EQ(Settle(bed_.backing.path(), bed_.state / "v1.copy").status().code(), Code::kFailedPrecondition);
  EXPECT_TRUE(SettleIt().ok());
}

class FullReplicaResyncTest : public ReplicaResyncTest {
 protected:
  void SetUp() override {
    if (!bed_.backing.MountSmall(4 << 20)) {
      GTEST_SKIP() << "mounting is not allowed here";
    }
    Begin();
  }
  void Fill(uint64_t leave) {
    std::filesystem::create_directory(bed_.backing / ".pmirror/fill");
    const uint64_t room = std::filesystem::space(bed_.backing.path()).available;
    std::ofstream(bed_.backing / ".pmirror/fill/er") << std::string(room - leave, 'f');
  }
};

TEST_F(FullReplicaResyncTest, P2_Trap9_WithoutRoomForALogTheCopySaysDurablyThatItIsNotPromotable) {
  Fill(100'000);  // less than the reserve
  ASSERT_TRUE(BeginResync().ok());
  EXPECT_FALSE(State().promotable);
  EXPECT_THAT(State().image, HasSubstr("not promotable until the resync has ended: no room for an undo log"));
  EXPECT_TRUE(Record().resyncing);
  EXPECT_EQ(Record().undo, 0u);
  ChangeEverything();
  bed_.Stop();
  EXPECT_EQ(SettleIt().status().code(), Code::kFailedPrecondition);
  bed_.Start();
  ASSERT_TRUE(BeginResync().ok());
  EXPECT_FALSE(State().promotable);
  ASSERT_TRUE(bed_.volume().AdoptMount(token_, 50).ok());
  ASSERT_TRUE(bed_.volume().EndResync(token_).ok());
  EXPECT_TRUE(State().promotable);
}

TEST_F(FullReplicaResyncTest, P2_Trap9_ALogThatFillsTheDiskIsGivenUpAndTheResyncGoesOn) {
  Fill(1 << 20);
  ASSERT_TRUE(BeginResync().ok());
  ASSERT_TRUE(State().promotable);
  ASSERT_TRUE(bed_.volume().AdoptMount(token_, 40).ok());
  ReplicaClient daemon = bed_.Open(SessionKind::kDaemon);
  ASSERT_TRUE(daemon.AwaitReceived(daemon.Data(kFile, 1, 0, "new", kFlagAckWanted)));
  ASSERT_TRUE(State().promotable);
  for (uint64_t offset = 0; offset < 900'000; offset += 50'000) {  // other's bytes need no undo, but room
    const Sequence sequence = daemon.Data(kOther, 1, offset, std::string(50'000, 'n'), kFlagAckWanted);
    ASSERT_TRUE(daemon.AwaitReceived(sequence));
    ASSERT_FALSE(daemon.RefusalOf(sequence));
  }
  const Sequence sequence = daemon.Data(kFile, 2, 5000, "new", kFlagAckWanted);
  ASSERT_TRUE(daemon.AwaitReceived(sequence));
  EXPECT_FALSE(daemon.RefusalOf(sequence));
  EXPECT_FALSE(State().promotable);
  EXPECT_THAT(State().image, HasSubstr("no room for an undo log"));
  EXPECT_FALSE(std::filesystem::exists(LogPath()));
  Restart();
  EXPECT_FALSE(State().promotable);
  EXPECT_EQ(Record().undo, 0u);
  bed_.Stop();
  EXPECT_EQ(SettleIt().status().code(), Code::kFailedPrecondition);
  EXPECT_EQ(ReadFile(bed_.backing / "file").substr(5000, 4), "newo");
}

}  // namespace
}  // namespace pmirror::server
