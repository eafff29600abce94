// SPDX-License-Identifier: BSD-3-Clause
// `pmirror settle` on a copy whose resync was cut: what it refuses, what it keeps, and that it can be interrupted (promise P8).
#include "server/settle.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "server/host.h"
#include "server/undo_log.h"
#include "tests/unit/server/replica_bed.h"

namespace pmirror::server {
namespace {

using Code = absl::StatusCode;
using testing::HasSubstr;

constexpr uint64_t kFile = 10;

// A copy that a resync has changed and not made whole, without a daemon.
class SettleTest : public testing::Test {
 protected:
  void SetUp() override {
    bed_.Start();
    {
      ReplicaClient daemon = bed_.Open(SessionKind::kDaemon);
      ASSERT_TRUE(daemon.AwaitReceived(daemon.Op(1, CreateOp(kFile, 1, "file"))));
      ASSERT_TRUE(daemon.AwaitDurable(daemon.Data(kFile, 1, 0, "old", kFlagBarrier)));
    }
    legal_ = Snapshot(bed_.backing.path());
    bed_.mount_number = 2;
    bed_.epoch = Epoch{Raw(bed_.epoch) + 1};
    const auto token = bed_.volume().BeginResync(
        {.node = "n1", .epoch = bed_.epoch, .generation = 77, .mount_number = bed_.mount_number});
    ASSERT_TRUE(token.ok()) << token.status();
    ASSERT_TRUE(bed_.volume().ChangeTree(*token, EntryOp(OpKind::kUnlink, kFile, 1, "file")).ok());
    ASSERT_TRUE(bed_.volume().ChangeTree(*token, CreateOp(12, 1, "new")).ok());
    bed_.Stop();
    mixture_ = Snapshot(bed_.backing.path());
  }
  std::string RecordPath() const { return bed_.state / "v0.copy"; }
  absl::StatusOr<std::string> SettleIt(const std::string& record = "") const {
    return Settle(bed_.backing.path(), record);
  }
  // Refused, with the remedy, and nothing was changed.
  void ExpectRefused(Code code, const std::string& text, const std::string& record = "") const {
    const auto settled = SettleIt(record);
    EXPECT_EQ(settled.status().code(), code) << settled.status();
    EXPECT_THAT(std::string(settled.status().message()), HasSubstr(text));
    EXPECT_EQ(Snapshot(bed_.backing.path()), mixture_);
  }

  ReplicaBed bed_{Domain::kFile};
  std::vector<std::string> legal_;
  std::vector<std::string> mixture_;
};

TEST_F(SettleTest, P8_TheFilesAreThoseOfTheLastConsistencyPointAndOlderPrimariesStayRefused) {
  const auto settled = SettleIt();
  ASSERT_TRUE(settled.ok()) << settled.status();
  EXPECT_THAT(*settled, HasSubstr("operation 1 of mount 1"));
  EXPECT_EQ(Snapshot(bed_.backing.path()), legal_);
  const auto record = recovery::LoadVolumeRecord(RecordPath());
  ASSERT_TRUE(record.ok() && record->has_value());
  EXPECT_EQ((*record)->epoch, bed_.epoch) << "the epoch is not taken back";
  EXPECT_EQ((*record)->mount_number, 1U);
  EXPECT_TRUE((*record)->rolled_back);
  EXPECT_FALSE((*record)->resyncing);
}

TEST_F(SettleTest, P8_ACrashBeforeTheRecordWasWrittenIsNoReasonNotToBeginAgain) {
  const std::string log = ReadFile(UndoLogPath(bed_.backing.path()));
  const std::string record = ReadFile(RecordPath());
  ASSERT_TRUE(SettleIt().ok());
  std::ofstream(UndoLogPath(bed_.backing.path()), std::ios::binary) << log;
  std::ofstream(RecordPath(), std::ios::binary) << record;
  ASSERT_TRUE(SettleIt().ok());
  EXPECT_EQ(Snapshot(bed_.backing.path()), legal_);
  EXPECT_FALSE(std::filesystem::exists(UndoLogPath(bed_.backing.path())));
}

TEST_F(SettleTest, P9_ADaemonOfTheStateDirectoryIsInTheWayAlsoWhenItServesOtherVolumes) {
  const auto lock = LockStateDirectory(bed_.state.path());
  ASSERT_TRUE(lock.ok()) << lock.status();
  ExpectRefused(Code::kAlreadyExists, bed_.state.path());
}

TEST_F(SettleTest, P9_ARecordThatIsNotThereIsNamedWithTheRemedy) {
  std::filesystem::rename(RecordPath(), bed_.state / "moved.copy");
  ExpectRefused(Code::kFailedPrecondition, "--state");
  EXPECT_TRUE(SettleIt(bed_.state / "moved.copy").ok());
  EXPECT_EQ(Snapshot(bed_.backing.path()), legal_);
}

TEST_F(SettleTest, P9_ARecordOfAnotherVolumeIsRefused) {
  auto record = **recovery::LoadVolumeRecord(RecordPath());
  record.volume[0] ^= std::byte{1};
  const std::string other = bed_.state / "v1.copy";
  ASSERT_TRUE(recovery::StoreVolumeRecord(other, record).ok());
  ExpectRefused(Code::kFailedPrecondition, recovery::UuidText(record.volume), other);
}

TEST_F(SettleTest, P9_ADamagedRecordIsRefused) {
  {
    std::fstream file(RecordPath(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(20);
    file.put('\x7f');
  }
  ExpectRefused(Code::kDataLoss, RecordPath());
}

TEST_F(SettleTest, ADirectoryThatNoReplicaEverUsedHasNothingToSettle) {
  const TempDirectory blank;
  ASSERT_EQ(::mkdir((blank / ".pmirror").c_str(), 0700), 0);
  const auto settled = Settle(blank.path(), "");
  ASSERT_TRUE(settled.ok()) << settled.status();
  EXPECT_THAT(*settled, HasSubstr("nothing to settle"));
}

}  // namespace
}  // namespace pmirror::server
