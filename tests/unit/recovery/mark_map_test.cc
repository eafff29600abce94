// SPDX-License-Identifier: BSD-3-Clause
// The map of marks in normal life: what is marked, what a settle clears, whose marks a file holds, disks that fail, threads that share a sync.
#include "recovery/mark_map.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "tests/unit/recovery/forgetful_storage.h"
#include "tests/unit/recovery/mark_history.h"
#include "tests/unit/server/temp_directory.h"

namespace pmirror::recovery {
namespace {

using server::TempDirectory;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

constexpr FileId kA{11};
constexpr FileId kB{12};

bool Unused(FileId) { return false; }

class MarkMapTest : public testing::Test {
 protected:
  // The map in mount `mount`, closing what was open.
  MarkMap& Open(uint64_t mount, const MarkIdentity& identity = TestIdentity()) {
    opened_.map.reset();
    auto opened = MarkMap::Open(kMapPath, identity, mount, storage_);
    EXPECT_TRUE(opened.ok()) << opened.status();
    opened_ = *std::move(opened);
    return *opened_.map;
  }
  // In mount 1, both replicas in sync.
  MarkMap& InSync() {
    MarkMap& map = Open(1);
    EXPECT_TRUE(map.Resynced(0, map.BeginSettle(Unused)).ok());
    EXPECT_TRUE(map.Resynced(1, map.BeginSettle(Unused)).ok());
    return map;
  }

  // As the second mount finds it, with n4, when the power is cut now.
  MarkMap::Opened OpenAfterPowerCut() {
    RandomChoice chooser(7);
    left_ = storage_.AfterPowerCut(chooser);
    MarkIdentity identity = TestIdentity();
    identity.replicas.push_back("n4");
    auto opened = MarkMap::Open(kMapPath, identity, 2, *left_);
    EXPECT_TRUE(opened.ok()) << opened.status();
    return *std::move(opened);
  }

  ForgetfulStorage storage_;
  std::unique_ptr<ForgetfulStorage> left_;
  MarkMap::Opened opened_;
};

TEST_F(MarkMapTest, AFirstMountHasEverythingMarkedWithoutADoubt) {
  MarkMap& map = Open(1);
  EXPECT_EQ(opened_.doubt, "");
  EXPECT_TRUE(map.AllMarked(0));
  EXPECT_TRUE(map.AllMarked(1));
  EXPECT_TRUE(map.NamesEverything(0, 0));
}

TEST_F(MarkMapTest, AMarkedFileCostsNoOperationAndANewOneAWriteAndASync) {
  MarkMap& map = InSync();
  const uint64_t before = storage_.operations();
  ASSERT_TRUE(map.Mark(kA).ok());
  EXPECT_EQ(storage_.operations(),
            before + 3);  // the third says that it was acknowledged, and is not waited for
  ASSERT_TRUE(map.Mark(kA).ok());
  EXPECT_EQ(storage_.operations(), before + 3);
  EXPECT_THAT(map.Marked(0), UnorderedElementsAre(kA));
  EXPECT_THAT(map.Marked(1), UnorderedElementsAre(kA));
}

TEST_F(MarkMapTest, ASettleClearsOnlyWhatNobodyUsesAndNobodyMarkedSince) {
  MarkMap& map = InSync();
  for (const FileId file : {kA, kB, FileId{13}}) {
    ASSERT_TRUE(map.Mark(file).ok());
  }
  const auto settle = map.BeginSettle([](FileId file) { return file == kA; });
  ASSERT_TRUE(map.Mark(kB).ok());
  map.EndSettle(settle, 1);
  EXPECT_THAT(map.Marked(0), UnorderedElementsAre(kA, kB));
  EXPECT_THAT(map.Marked(1), UnorderedElementsAre(kA, kB, FileId{13}));
  Open(2);
  EXPECT_THAT(opened_.map->Marked(0), UnorderedElementsAre(kA, kB));
}

TEST_F(MarkMapTest, P3AFileThatIsClosedWhileTheOthersAreMadeDurableKeepsItsMark) {
  MarkMap& map = InSync();
  bool used = true;
  ASSERT_TRUE(map.Mark(kA).ok());
  const auto settle = map.BeginSettle([&](FileId) { return used; });
  used = false;
  map.EndSettle(settle, 3);
  EXPECT_THAT(map.Marked(0), UnorderedElementsAre(kA));
}

TEST_F(MarkMapTest, AFileThatLeftTheVolumeLosesItsMarksWithTheNextSettle) {
  MarkMap& map = InSync();
  ASSERT_TRUE(map.Mark(kA).ok());
  ASSERT_TRUE(map.Mark(kB).ok());
  const auto early = map.BeginSettle(Unused);
  map.Forget(kA);
  map.EndSettle(early, 0);
  EXPECT_THAT(map.Marked(1), UnorderedElementsAre(kA, kB));
  map.EndSettle(map.BeginSettle(Unused), 0);
  EXPECT_THAT(map.Marked(1), UnorderedElementsAre(kB));
}

TEST_F(MarkMapTest, AResyncEndsThatEverythingIsMarkedUnlessItWasSaidAgain) {
  MarkMap& map = Open(1);
  const auto settle = map.BeginSettle(Unused);
  ASSERT_TRUE(map.MarkAll(1).ok());
  ASSERT_TRUE(map.Resynced(0, settle).ok());
  ASSERT_TRUE(map.Resynced(1, settle).ok());
  EXPECT_FALSE(map.AllMarked(0));
  EXPECT_TRUE(map.AllMarked(1));
  Open(2);
  EXPECT_FALSE(opened_.map->AllMarked(0));
  EXPECT_TRUE(opened_.map->AllMarked(1));
}

TEST_F(MarkMapTest, P5ARecordOfAnOlderOrALaterMountDoesNotBelongToTheMarks) {
  InSync();
  for (uint64_t mount = 2; mount <= 5; ++mount) {
    Open(mount);
  }
  ASSERT_TRUE(opened_.map->Mark(kA).ok());
  EXPECT_TRUE(opened_.map->NamesEverything(0, 1));  // nothing was cleared since
  opened_.map->EndSettle(opened_.map->BeginSettle(Unused), 1);
  MarkMap& map = Open(6);
  EXPECT_EQ(map.base_mount(0), 5U);
  EXPECT_FALSE(map.NamesEverything(0, 4));
  EXPECT_TRUE(map.NamesEverything(0, 5));
  EXPECT_TRUE(map.NamesEverything(0, 6));
  EXPECT_FALSE(map.NamesEverything(0, 7));
  EXPECT_TRUE(map.NamesEverything(1, 1));
}

TEST_F(MarkMapTest, ReplicasGoByNameANewOneIsWhollyMarkedAndOneThatLeftIsForgotten) {
  ASSERT_TRUE(InSync().Mark(kA).ok());
  opened_.map->EndSettle(opened_.map->BeginSettle(Unused), 1);  // on n2 it is clean
  MarkIdentity identity = TestIdentity();
  identity.replicas = {"n4", "n3"};
  MarkMap& map = Open(2, identity);
  EXPECT_EQ(opened_.doubt, "");
  EXPECT_TRUE(map.AllMarked(0));
  EXPECT_FALSE(map.AllMarked(1));
  EXPECT_THAT(map.Marked(0), IsEmpty());
  EXPECT_THAT(map.Marked(1), UnorderedElementsAre(kA));
  Open(3);
  EXPECT_TRUE(opened_.map->AllMarked(0));
}

TEST_F(MarkMapTest, P5AReplicaThatIsAddedIsWhollyMarkedAndSoIsWhatIsInUse) {
  MarkMap& map = InSync();
  ASSERT_TRUE(map.Mark(kA).ok());  // and is open from now on
  ASSERT_EQ(map.AddReplica("n4").value(), 2u);
  EXPECT_TRUE(map.AllMarked(2));
  EXPECT_THAT(map.Marked(2), UnorderedElementsAre(kA));
  ASSERT_TRUE(map.Resynced(2, map.BeginSettle([](FileId file) { return file == kA; })).ok());
  EXPECT_FALSE(map.AllMarked(2));
  EXPECT_THAT(map.Marked(2), UnorderedElementsAre(kA)) << "who uses it does not mark it again";
  const auto again = OpenAfterPowerCut();
  EXPECT_EQ(again.doubt, "");
  EXPECT_FALSE(again.map->AllMarked(2));
  EXPECT_THAT(again.map->Marked(2), UnorderedElementsAre(kA));
}

TEST_F(MarkMapTest, P3MarksBesideAnAdditionAreThereForEverybody) {
  MarkMap& map = InSync();
  std::thread marker([&] {
    for (uint64_t file = 100; file < 400; ++file) {
      EXPECT_TRUE(map.Mark(FileId{file}).ok());
    }
  });
  ASSERT_EQ(map.AddReplica("n4").value(), 2u);
  marker.join();
  ASSERT_TRUE(map.Resynced(2, map.BeginSettle([](FileId) { return true; })).ok());
  EXPECT_EQ(map.Marked(2).size(), 300u);
  const auto again = OpenAfterPowerCut();
  for (size_t replica = 0; replica < 3; ++replica) {
    EXPECT_EQ(again.map->Marked(replica).size(), 300u);
  }
}

TEST_F(MarkMapTest, P9AReplicaThatCannotBeRecordedIsNotThere) {
  MarkMap& map = InSync();
  ASSERT_TRUE(map.Mark(kA).ok());
  EXPECT_EQ(map.AddReplica("n2").status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(map.AddReplica("").status().code(), absl::StatusCode::kInvalidArgument);
  storage_.SetFull(true);
  EXPECT_EQ(map.AddReplica("n4").status().code(), absl::StatusCode::kResourceExhausted);
  storage_.SetFull(false);
  ASSERT_TRUE(map.Mark(kB).ok());
  EXPECT_EQ(map.AddReplica("n4").value(), 2u);
  EXPECT_THAT(map.Marked(0), UnorderedElementsAre(kA, kB));
}

TEST_F(MarkMapTest, AReplicaThatLeftMayComeBackAndAFileThatWasOpenedMeanwhileIsMarkedForIt) {
  MarkMap& map = InSync();
  map.DropReplica(0);
  map.DropReplica(1);
  ASSERT_TRUE(map.Mark(kA).ok());
  EXPECT_THAT(map.Marked(1), IsEmpty());
  ASSERT_EQ(map.AddReplica("n2").value(), 2u);
  ASSERT_TRUE(map.Resynced(2, map.BeginSettle([](FileId) { return true; })).ok());
  EXPECT_THAT(map.Marked(2), UnorderedElementsAre(kA));
}

TEST_F(MarkMapTest, P5AFileOfAnotherHistoryIsDoubtedByNameAndReason) {
  const auto doubted = [&](const MarkIdentity& identity, uint64_t mount, const std::string& reason) {
    InSync();
    MarkMap& map = Open(mount, identity);
    EXPECT_THAT(opened_.doubt, testing::AllOf(HasSubstr(kMapPath), HasSubstr(reason)));
    EXPECT_TRUE(map.AllMarked(0) && map.AllMarked(1));
    storage_.SetContent(kMapPath, "");
  };
  MarkIdentity other = TestIdentity();
  other.volume[15] = std::byte{9};
  storage_.SetContent(kMapPath, "");
  EXPECT_TRUE(storage_.Remove(kMapPath).ok());
  doubted(other, 2, "belongs to volume");
  EXPECT_TRUE(storage_.Remove(kMapPath).ok());
  other = TestIdentity();
  other.generation = 8;
  doubted(other, 2, "data generation 7, the volume has 8");
  EXPECT_TRUE(storage_.Remove(kMapPath).ok());
  doubted(TestIdentity(), 3, "saw mount 1 last, and this is mount 3");
  EXPECT_TRUE(storage_.Remove(kMapPath).ok());
  Open(4);
  EXPECT_THAT(opened_.doubt, HasSubstr("missing"));
  storage_.SetUnreadable(true);
  Open(5);
  EXPECT_THAT(opened_.doubt, HasSubstr("medium"));
}

TEST_F(MarkMapTest, P9AnImpossibleIdentityIsRefusedAndChangesNothing) {
  MarkIdentity identity = TestIdentity();
  for (const std::vector<std::string>& names : {std::vector<std::string>{"n2", "n2"},
                                                {""},
                                                {std::string(256, 'n')},
                                                std::vector<std::string>(9, "n")}) {
    identity.replicas = names;
    EXPECT_EQ(MarkMap::Open(kMapPath, identity, 1, storage_).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(storage_.operations(), 0U);
}

TEST_F(MarkMapTest, P9AFullDiskIsNamedWithItsRemedyAndTheMapGoesOnWhenThereIsRoom) {
  MarkMap& map = InSync();
  ASSERT_TRUE(map.Mark(kA).ok());
  storage_.SetFull(true);
  for (int i = 0; i < 3; ++i) {
    const absl::Status status = map.Mark(kB);
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(status.message()), testing::AllOf(HasSubstr(kMapPath), HasSubstr("make room")));
    EXPECT_TRUE(map.Mark(kA).ok());
  }
  storage_.SetFull(false);
  EXPECT_TRUE(map.Mark(kB).ok());
  Open(2);
  EXPECT_EQ(opened_.doubt, "");
  EXPECT_THAT(opened_.map->Marked(0), UnorderedElementsAre(kA, kB));
}

TEST_F(MarkMapTest, P5WhatAFullDiskKeptOutIsNotMissingBehindTheNextBatch) {
  // More is cleared than a batch can hold, so that it needs a new file, for which there is no room.
  MarkMap& map = InSync();
  for (uint64_t file = 100; file <= 100 + MarkLog::kMaxAppended; ++file) {
    ASSERT_TRUE(map.Mark(FileId{file}).ok());
  }
  MarkMap& later = Open(2);
  later.EndSettle(later.BeginSettle(Unused), 1);
  storage_.SetFull(true);
  EXPECT_FALSE(later.Flush().ok());
  storage_.SetFull(false);
  ASSERT_TRUE(later.Mark(kA).ok());
  later.EndSettle(later.BeginSettle(Unused), 1);
  MarkMap& last = Open(3);
  EXPECT_THAT(last.Marked(0), IsEmpty());
  EXPECT_EQ(last.base_mount(0), 2U);  // what was cleared says in which mount
}

TEST_F(MarkMapTest, Trap18AfterAFailedSyncAMarkIsWrittenAgainToAnotherFile) {
  MarkMap& map = InSync();
  storage_.FailAt(storage_.operations() + 1);
  EXPECT_FALSE(map.Mark(kA).ok());
  ASSERT_TRUE(map.Mark(kA).ok());
  RandomChoice random(1);
  for (int i = 0; i < 50; ++i) {
    const auto left = storage_.AfterPowerCut(random);
    const auto again = MarkMap::Open(kMapPath, TestIdentity(), 2, *left);
    ASSERT_TRUE(again.ok());
    ASSERT_THAT(again->map->Marked(0), UnorderedElementsAre(kA));
  }
}

TEST_F(MarkMapTest, P3ConcurrentMarksAreDurableAndShareSyncs) {
  MarkMap& map = InSync();
  const uint64_t before = storage_.operations();
  std::atomic<bool> stop = false;
  std::thread settler([&] {
    // Even numbers are never in use: they come and go.
    while (!stop) {
      map.EndSettle(map.BeginSettle([](FileId file) { return Raw(file) % 2 == 1; }), 3);
    }
  });
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&map, t] {
      for (uint64_t i = 0; i < 200; ++i) {
        EXPECT_TRUE(map.Mark(FileId{1 + i * 2}).ok());                  // everybody's
        EXPECT_TRUE(map.Mark(FileId{100001 + t * 1000 + i * 2}).ok());  // its own
        EXPECT_TRUE(map.Mark(FileId{2 + i % 7 * 2}).ok());
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  stop = true;
  settler.join();
  RecordProperty("operations", static_cast<int>(storage_.operations() - before));
  RandomChoice random(1);
  const auto left = storage_.AfterPowerCut(random);
  const auto again = MarkMap::Open(kMapPath, TestIdentity(), 2, *left);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->doubt, "");
  size_t odd = 0;
  for (const FileId file : again->map->Marked(1)) {
    odd += Raw(file) % 2;
  }
  EXPECT_EQ(odd, 200U + 4 * 200U);
}

TEST(MarkMapOnDisk, ComesBackAsItWas) {
  const TempDirectory directory;
  const std::string path = directory / "v0.marks";
  for (uint64_t mount = 1; mount < 4; ++mount) {
    const auto opened = MarkMap::Open(path, TestIdentity(), mount);
    ASSERT_TRUE(opened.ok()) << opened.status();
    EXPECT_EQ(opened->doubt, "");
    EXPECT_EQ(opened->map->Marked(0).size(), mount - 1);
    EXPECT_TRUE(opened->map->Mark(FileId{mount + 10}).ok());
  }
  EXPECT_FALSE(MarkMap::Open(directory / "missing/v0.marks", TestIdentity(), 1).ok());
}

TEST(MarkMapOnDisk, P9AFullDiskIsAnErrorThatPasses) {
  TempDirectory small;
  if (!small.MountSmall(32768)) {
    GTEST_SKIP() << "mounting is not allowed here";
  }
  const auto opened = MarkMap::Open(small / "v0.marks", TestIdentity(), 1);
  ASSERT_TRUE(opened.ok()) << opened.status();
  absl::Status status;
  for (uint64_t file = 10; file < 100 && status.ok(); ++file) {
    status = opened->map->Mark(FileId{file});
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
}

}  // namespace
}  // namespace pmirror::recovery
