// SPDX-License-Identifier: BSD-3-Clause
// Flush groups on a replica: the journal under power cuts at every operation, and the copy after a crash.
#include "server/group_journal.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "server/settle.h"
#include "tests/unit/recovery/forgetful_storage.h"
#include "tests/unit/server/data_plane_fixture.h"

namespace pmirror::server {
namespace {

using recovery::ForgetfulStorage;
using testing::HasSubstr;

std::span<const std::byte> Bytes(const std::string& text) { return std::as_bytes(std::span(text)); }

std::string Text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

const std::string kFirst = "first" + std::string(1500, 'f');
const std::string kSecond = "second" + std::string(700, 's');

// Two groups, one after the other; `done` counts the steps that returned success.
void TwoGroups(GroupJournal& journal, int& done) {
  const std::vector<ApplyPiece> one = {{0, 5, 0}, {9000, kFirst.size() - 5, 5}};
  const std::vector<ApplyPiece> two = {{100, kSecond.size() - 6, 6}};  // without the first bytes of its frame
  for (const auto& step :
       {std::function<int()>([&] { return journal.Begin(FileId{10}, one, Bytes(kFirst)); }),
        std::function<int()>([&] { return journal.End(); }),
        std::function<int()>([&] { return journal.Begin(FileId{11}, two, Bytes(kSecond)); }),
        std::function<int()>([&] { return journal.End(); })}) {
    if (step() != 0) {
      return;
    }
    ++done;
  }
}

TEST(GroupJournal, P2_ACutAnywhereLeavesAWholeRecordOrNoneAndNoneBehindItsEnd) {
  ForgetfulStorage complete;
  GroupJournal journal("/b", true, complete);
  int all = 0;
  TwoGroups(journal, all);
  ASSERT_EQ(all, 4);
  for (uint64_t cut = 0; cut <= complete.operations(); ++cut) {
    for (uint64_t seed = 0; seed < 40; ++seed) {
      ForgetfulStorage storage;
      storage.CutBefore(cut);
      GroupJournal cut_journal("/b", true, storage);
      int done = 0;
      TwoGroups(cut_journal, done);
      recovery::RandomChoice choice(seed);
      const auto survivor = storage.AfterPowerCut(choice);
      const auto found = GroupJournal("/b", true, *survivor).Load();
      ASSERT_TRUE(found.ok()) << found.status();
      ASSERT_LE(found->has_value(), done != 4) << "cut " << cut << ", seed " << seed;
      if (found->has_value()) {
        const bool first = (*found)->file == FileId{10};
        ASSERT_EQ(Text((*found)->payload), first ? kFirst : kSecond.substr(6));
        ASSERT_EQ((*found)->pieces.size(), first ? 2U : 1U);
        ASSERT_EQ(first, done <= 1) << "the first one again, after its end";
      }
    }
  }
}

TEST(GroupJournal, P2_WhatHasBegunIsThereAfterACutUntilItsEndBegins) {
  for (uint64_t seed = 0; seed < 40; ++seed) {
    ForgetfulStorage storage;
    GroupJournal journal("/b", true, storage);
    const ApplyPiece piece{7, kFirst.size(), 0};
    for (int group = 0; group < 3; ++group) {
      ASSERT_EQ(journal.Begin(FileId{10}, {&piece, 1}, Bytes(kFirst)), 0);
      recovery::RandomChoice choice(seed);
      const auto survivor = storage.AfterPowerCut(choice);
      const auto found = GroupJournal("/b", true, *survivor).Load();
      ASSERT_TRUE(found.ok() && found->has_value()) << "group " << group << ", seed " << seed;
      ASSERT_EQ(Text((*found)->payload), kFirst);
      ASSERT_EQ(journal.End(), 0);
    }
  }
}

TEST(GroupJournal, AFullOrFailingDiskRefusesTheGroupAndLeavesNoRecord) {
  ForgetfulStorage storage;
  GroupJournal journal("/b", true, storage);
  int done = 0;
  TwoGroups(journal, done);
  ASSERT_EQ(done, 4);
  const std::string large(20000, 'x');
  const ApplyPiece piece{0, large.size(), 0};
  storage.SetFull(true);
  EXPECT_EQ(journal.Begin(FileId{10}, {&piece, 1}, Bytes(large)), ENOSPC);
  storage.SetFull(false);
  storage.FailAt(storage.operations() + 1);  // the sync
  EXPECT_EQ(journal.Begin(FileId{10}, {&piece, 1}, Bytes(large)), EIO);
  recovery::RandomChoice choice(1);
  const auto survivor = storage.AfterPowerCut(choice);
  EXPECT_FALSE(GroupJournal("/b", true, *survivor).Load()->has_value());
}

TEST(GroupJournal, P3_ARecordThatCannotBeTakenAwayAgainIsSaid) {
  ForgetfulStorage storage;
  GroupJournal journal("/b", true, storage);
  int done = 0;
  TwoGroups(journal, done);
  ASSERT_EQ(done, 4);
  const ApplyPiece piece{0, 5, 0};
  storage.CutBefore(storage.operations() + 1);  // the sync of the record, and all that is tried after it
  EXPECT_EQ(journal.Begin(FileId{10}, {&piece, 1}, Bytes("group")), EIO);
  EXPECT_TRUE(journal.stuck());
}

class GroupOnReplica : public DataPlaneTest {
 protected:
  GroupOnReplica() { bed_.options().domain = Domain::kFile; }

  static Sequence Group(ReplicaClient& client, uint64_t order, uint64_t offset, const std::string& text) {
    return client.Data(kFile, order, offset, text, kFlagGroup | kFlagBarrier);
  }
  void Stop() {
    daemon_.reset();
    bed_.Stop();
  }
  // As a crash leaves it: the record is whole, and of the file any part has changed.
  void CrashInGroup(const std::string& text, const std::string& part) {
    Stop();
    GroupJournal journal(bed_.backing.path(), true, recovery::LogStorage::Real());
    const ApplyPiece piece{4, text.size(), 0};
    ASSERT_EQ(journal.Begin(FileId{kFile}, {&piece, 1}, Bytes(text)), 0);
    const UniqueFd file(::open((bed_.backing / "file").c_str(), O_WRONLY | O_CLOEXEC));
    ASSERT_EQ(::pwrite(file.get(), part.data(), part.size(), 4), static_cast<ssize_t>(part.size()));
  }
  bool HasRecord() {
    return GroupJournal(bed_.backing.path(), true, recovery::LogStorage::Real()).Load()->has_value();
  }
};

TEST_F(GroupOnReplica, AGroupIsAppliedByItsOrderAndItsRecordIsGoneWhenItIsAcknowledged) {
  ReplicaClient process = Process();
  process.Data(kFile, 9, 2, "NEW");
  ASSERT_TRUE(process.AwaitDurable(Group(process, 7, 0, "01234567")));
  EXPECT_EQ(Content(), "01NEW567");
  EXPECT_TRUE(process.refusals().empty());
  EXPECT_FALSE(HasRecord());
  EXPECT_TRUE(std::filesystem::exists(bed_.backing / ".pmirror/group"));
}

TEST_F(GroupOnReplica, P9_AGroupOfSeveralFramesOrThatIsNoDataCuts) {
  ReplicaClient process = Process();
  process.Data(kFile, 7, 0, "0123", kFlagGroup | kFlagContinues);
  EXPECT_TRUE(process.AwaitCut());
  ReplicaClient other = Process();
  other.SendBytes(EncodeFrame(other.Header(FrameKind::kBarrier, kFlagGroup), {}, {}));
  EXPECT_TRUE(other.AwaitCut());
  EXPECT_EQ(Content(), "");
}

TEST_F(GroupOnReplica, P2_AGroupThatACrashInterruptedIsCompletedAtTheStart) {
  ReplicaClient process = Process();
  ASSERT_TRUE(process.AwaitDurable(process.Data(kFile, 7, 0, std::string(20, 'o'), kFlagBarrier)));
  process.Close();
  CrashInGroup("0123456789", "0123");
  Start();
  EXPECT_EQ(Content(), "oooo0123456789oooooo");
  EXPECT_FALSE(HasRecord());
}

TEST_F(GroupOnReplica, P8_SettleCompletesItWithoutADaemon) {
  ReplicaClient process = Process();
  ASSERT_TRUE(process.AwaitDurable(process.Data(kFile, 7, 0, std::string(20, 'o'), kFlagBarrier)));
  process.Close();
  CrashInGroup("0123456789", "");
  const auto settled = Settle(bed_.backing.path(), "");
  ASSERT_TRUE(settled.ok()) << settled.status();
  EXPECT_THAT(*settled, HasSubstr("completed the flush group"));
  EXPECT_EQ(Content(), "oooo0123456789oooooo");
  EXPECT_FALSE(HasRecord());
  EXPECT_THAT(*Settle(bed_.backing.path(), ""), HasSubstr("nothing to settle"));
}

TEST_F(GroupOnReplica, ADamagedRecordChangesNothing) {
  ReplicaClient process = Process();
  ASSERT_TRUE(process.AwaitDurable(process.Data(kFile, 7, 0, std::string(20, 'o'), kFlagBarrier)));
  process.Close();
  CrashInGroup("0123456789", "");
  const UniqueFd record(::open((bed_.backing / ".pmirror/group").c_str(), O_WRONLY | O_CLOEXEC));
  ASSERT_EQ(::pwrite(record.get(), "?", 1, 50), 1);
  Start();
  EXPECT_EQ(Content(), std::string(20, 'o'));
}

TEST_F(GroupOnReplica, P2_WhileAResyncHasNotEndedAnInterruptedGroupIsNobodys) {
  ReplicaClient process = Process();
  ASSERT_TRUE(process.AwaitDurable(process.Data(kFile, 7, 0, std::string(20, 'o'), kFlagBarrier)));
  process.Close();
  daemon_.reset();
  ASSERT_TRUE(bed_.volume()
                  .BeginResync({.node = "n1", .epoch = bed_.epoch, .generation = 77, .mount_number = 2})
                  .ok());
  CrashInGroup("0123456789", "");
  bed_.Start();
  EXPECT_EQ(Content(), std::string(20, 'o'));
  EXPECT_FALSE(HasRecord());
}

}  // namespace
}  // namespace pmirror::server
