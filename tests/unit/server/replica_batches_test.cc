// SPDX-License-Identifier: BSD-3-Clause
// A replica that trails: what it shows after each batch, and after a crash anywhere (docs/internals/rpo.md).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "recovery/batch.h"
#include "server/settle.h"
#include "tests/unit/server/replica_bed.h"

namespace pmirror::server {
namespace {

using recovery::BatchBuilder;
using testing::HasSubstr;

constexpr uint64_t kFile = 10;
constexpr uint64_t kOther = 11;

class ReplicaBatches : public testing::Test {
 protected:
  void SetUp() override {
    bed_.Start();
    daemon_.emplace(bed_.Open(SessionKind::kDaemon));
    ASSERT_TRUE(daemon_->AwaitReceived(daemon_->Op(1, CreateOp(kFile, 1, "file"))));
    ASSERT_TRUE(daemon_->AwaitDurable(daemon_->Data(kFile, 1, 0, std::string(8000, 'o'), kFlagBarrier)));
    ASSERT_TRUE(Trail().ok());
  }
  absl::StatusOr<uint64_t> Trail() {
    return bed_.volume().BeginTrailing(
        {.node = "n1", .epoch = bed_.epoch, .generation = 77, .mount_number = bed_.mount_number});
  }
  void Restart(bool open = true) {
    daemon_.reset();
    bed_.Stop();
    bed_.Start();
    if (!open) {
      return;
    }
    daemon_.emplace(bed_.Open(SessionKind::kDaemon));
  }
  static void Lay(BatchBuilder& batch, uint64_t file, uint64_t offset, const std::string& text) {
    const auto bytes = std::as_bytes(std::span(text));
    const WireRange range{offset, text.size()};
    batch.Lay(FileId{file}, {&range, 1},
              std::make_shared<const std::vector<std::byte>>(bytes.begin(), bytes.end()));
  }
  static void Append(BatchBuilder& batch, uint64_t number, const NamespaceOp& op) {
    auto encoded = std::make_shared<std::vector<std::byte>>();
    Encode(op, *encoded);
    batch.Append(number, encoded, op);
  }
  std::vector<std::byte> Encoded(const BatchBuilder& batch, uint64_t number) const {
    return batch.Encode({.number = number, .mount_number = bed_.mount_number, .cut_at = 0});
  }
  // Refused with, or nothing.
  std::optional<RefusalCode> Send(const BatchBuilder& batch, uint64_t number) {
    const Sequence sent = daemon_->Batch(number, Encoded(batch, number), 1000);
    EXPECT_TRUE(daemon_->AwaitReceived(sent));
    return daemon_->RefusalOf(sent);
  }
  // The first batch of the tests: another file, and bytes in both.
  static BatchBuilder First() {
    BatchBuilder batch;
    Append(batch, 2, CreateOp(kOther, 1, "other"));
    Lay(batch, kFile, 100, "first");
    Lay(batch, kOther, 0, std::string(3000, 'n'));
    return batch;
  }
  std::string File() const { return ReadFile(bed_.backing / "file"); }
  std::string JournalPath() const { return bed_.backing / ".pmirror/batch"; }

  ReplicaBed bed_{Domain::kFile};
  std::optional<ReplicaClient> daemon_;
};

TEST_F(ReplicaBatches, ABatchIsThereWhenItIsAcknowledged) {
  ASSERT_EQ(Send(First(), 1), std::nullopt);
  EXPECT_EQ(File().substr(98, 9), "oofirstoo");
  EXPECT_EQ(ReadFile(bed_.backing / "other"), std::string(3000, 'n'));
  const ReplicaVolume::State state = bed_.volume().state();
  EXPECT_EQ(state.batch, 1u);
  EXPECT_EQ(state.operation, 2u);
  EXPECT_TRUE(state.promotable);
  EXPECT_THAT(state.image, HasSubstr("batch 1 of mount 1"));
}

TEST_F(ReplicaBatches, P2_NothingOfABatchShowsBeforeAllOfItHasCome) {
  daemon_->Batch(1, Encoded(First(), 1), 1000, 2);
  ASSERT_TRUE(daemon_->AwaitReceived(daemon_->Heartbeat()));
  EXPECT_EQ(File(), std::string(8000, 'o'));
  EXPECT_FALSE(std::filesystem::exists(bed_.backing / "other"));
  Restart();
  EXPECT_EQ(File(), std::string(8000, 'o'));
  EXPECT_EQ(bed_.volume().state().batch, 0u);
  EXPECT_EQ(Send(First(), 1), std::nullopt) << "from its beginning";
  EXPECT_EQ(File().substr(98, 9), "oofirstoo");
}

TEST_F(ReplicaBatches, ARepeatedBatchIsAcknowledgedAndChangesNothing) {
  ASSERT_EQ(Send(First(), 1), std::nullopt);
  BatchBuilder second;
  Lay(second, kFile, 100, "SECON");
  ASSERT_EQ(Send(second, 2), std::nullopt);
  ASSERT_EQ(Send(second, 2), std::nullopt);
  EXPECT_EQ(File().substr(98, 9), "ooSECONoo");
  EXPECT_EQ(Send(First(), 1), RefusalCode::kBlocked) << "older than what is there";
  EXPECT_EQ(Send(First(), 7), RefusalCode::kBlocked) << "others lie between";
  EXPECT_EQ(File().substr(98, 9), "ooSECONoo");
}

// P2, P3: the daemon was killed between the journal and the files.
TEST_F(ReplicaBatches, P3_ABatchThatIsInTheJournalIsCompletedAtTheStart) {
  daemon_.reset();
  bed_.Stop();
  {
    const auto bytes = Encoded(First(), 1);
    std::ofstream journal(JournalPath(), std::ios::binary);
    journal.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  }
  bed_.Start();
  EXPECT_EQ(bed_.volume().state().batch, 1u);
  EXPECT_EQ(bed_.volume().state().operation, 2u);
  EXPECT_EQ(File().substr(98, 9), "oofirstoo");
  EXPECT_EQ(ReadFile(bed_.backing / "other"), std::string(3000, 'n'));
}

TEST_F(ReplicaBatches, P8_SettleCompletesTheJournalOfADeadDaemon) {
  daemon_.reset();
  bed_.Stop();
  {
    const auto bytes = Encoded(First(), 1);
    std::ofstream journal(JournalPath(), std::ios::binary);
    journal.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  }
  for (int i = 0; i < 2; ++i) {
    const auto settled = Settle(bed_.backing.path(), "");
    ASSERT_TRUE(settled.ok()) << settled.status();
    EXPECT_THAT(*settled, HasSubstr("batch 1 of mount 1"));
    EXPECT_EQ(File().substr(98, 9), "oofirstoo");
  }
}

TEST_F(ReplicaBatches, P9_ADamagedJournalIsSaidAndNotApplied) {
  ASSERT_EQ(Send(First(), 1), std::nullopt);
  daemon_.reset();
  bed_.Stop();
  {
    std::fstream journal(JournalPath(), std::ios::binary | std::ios::in | std::ios::out);
    journal.seekp(90);
    journal.put('?');
  }
  const auto settled = Settle(bed_.backing.path(), "");
  ASSERT_FALSE(settled.ok());
  EXPECT_THAT(std::string(settled.status().message()), HasSubstr(JournalPath()));
  bed_.Start();
  EXPECT_FALSE(bed_.volume().state().promotable);
  EXPECT_TRUE(bed_.volume().state().restarted_in_use) << "it costs a comparison, not data";
  ASSERT_TRUE(
      bed_.volume()
          .BeginResync(
              {.node = "n1", .epoch = bed_.epoch, .generation = 77, .mount_number = bed_.mount_number})
          .ok());
  EXPECT_FALSE(std::filesystem::exists(JournalPath()));
  EXPECT_FALSE(bed_.volume().state().promotable) << "half of a batch is no point to go back to";
  Restart(/*open=*/false);
  EXPECT_FALSE(bed_.volume().state().promotable);
}

TEST_F(ReplicaBatches, P5_BytesOfAFileThatIsNotThereAreADifferenceOfTheCopies) {
  BatchBuilder batch;
  Lay(batch, 99, 0, "lost");
  EXPECT_EQ(Send(batch, 1), RefusalCode::kNoSuchFile);
  EXPECT_FALSE(bed_.volume().state().promotable);
  daemon_.reset();
  bed_.mount_number = 2;
  EXPECT_FALSE(bed_.volume().PrepareSession(bed_.Request(SessionKind::kDaemon)).ok())
      << "nor may a mount follow";
  ASSERT_TRUE(
      bed_.volume()
          .BeginResync(
              {.node = "n1", .epoch = bed_.epoch, .generation = 77, .mount_number = bed_.mount_number})
          .ok());
  EXPECT_FALSE(bed_.volume().state().promotable);
}

TEST_F(ReplicaBatches, P2_WhatSaysThatABatchIsHalfGoesAfterTheRecordSaysSo) {
  BatchBuilder batch;
  Lay(batch, 99, 0, "lost");
  EXPECT_EQ(Send(batch, 1), RefusalCode::kNoSuchFile);
  daemon_.reset();
  const std::filesystem::path in_the_way = bed_.state / "v0.copy.new";
  std::filesystem::create_directory(in_the_way);  // the record cannot be written
  EXPECT_FALSE(
      bed_.volume()
          .BeginResync(
              {.node = "n1", .epoch = bed_.epoch, .generation = 77, .mount_number = bed_.mount_number})
          .ok());
  std::filesystem::remove(in_the_way);
  Restart(/*open=*/false);
  EXPECT_FALSE(bed_.volume().state().promotable);
}

TEST_F(ReplicaBatches, BytesOfAFileThatTheBatchRemovedAreNone) {
  BatchBuilder batch;
  Lay(batch, kFile, 0, "gone");
  Append(batch, 2, EntryOp(OpKind::kUnlink, kFile, 1, "file"));
  EXPECT_EQ(Send(batch, 1), std::nullopt);
  EXPECT_FALSE(std::filesystem::exists(bed_.backing / "file"));
}

// Who sent before it trailed, and has not heard of it.
TEST_F(ReplicaBatches, P2_NothingElseChangesACopyThatTrails) {
  const Sequence data = daemon_->Data(kFile, 2, 0, "direct", kFlagAckWanted);
  const Sequence operation = daemon_->Op(2, CreateOp(kOther, 1, "other"));
  ASSERT_TRUE(daemon_->AwaitReceived(operation));
  EXPECT_EQ(daemon_->RefusalOf(data), RefusalCode::kRecapture);
  EXPECT_EQ(daemon_->RefusalOf(operation), RefusalCode::kBlocked);
  EXPECT_EQ(File(), std::string(8000, 'o'));
  EXPECT_FALSE(bed_.volume().PrepareSession(bed_.Request(SessionKind::kProcess)).ok());
}

TEST_F(ReplicaBatches, AResyncOrANewMountEndsIt) {
  ASSERT_EQ(Send(First(), 1), std::nullopt);
  EXPECT_TRUE(std::filesystem::exists(JournalPath()));
  daemon_.reset();
  bed_.mount_number = 2;
  daemon_.emplace(bed_.Open(SessionKind::kDaemon));
  EXPECT_FALSE(bed_.volume().state().record.trailing);
  EXPECT_FALSE(std::filesystem::exists(JournalPath()));
  ASSERT_TRUE(daemon_->AwaitReceived(daemon_->Data(kFile, 1, 0, "direct", kFlagAckWanted)));
  EXPECT_EQ(File().substr(0, 6), "direct");
  ASSERT_TRUE(Trail().ok());
  daemon_.reset();
  const auto token = bed_.volume().BeginResync(
      {.node = "n1", .epoch = bed_.epoch, .generation = 77, .mount_number = bed_.mount_number});
  ASSERT_TRUE(token.ok()) << token.status();
  EXPECT_FALSE(bed_.volume().state().record.trailing);
}

TEST_F(ReplicaBatches, TheMachineMayGoDownWhileItTrails) {
  ASSERT_EQ(Send(First(), 1), std::nullopt);
  daemon_.reset();
  bed_.Stop();
  auto record = *recovery::LoadVolumeRecord(bed_.state / "v0.copy").value();
  record.boot = "another";
  ASSERT_TRUE(recovery::StoreVolumeRecord(bed_.state / "v0.copy", record).ok());
  bed_.Start();
  EXPECT_FALSE(bed_.volume().state().restarted_in_use);
  EXPECT_EQ(bed_.volume().state().batch, 1u);
  daemon_.emplace(bed_.Open(SessionKind::kDaemon));
  BatchBuilder second;
  Lay(second, kOther, 5, "second");
  EXPECT_EQ(Send(second, 2), std::nullopt);
}

}  // namespace
}  // namespace pmirror::server
