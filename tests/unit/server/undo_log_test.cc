// SPDX-License-Identifier: BSD-3-Clause
// A copy under an undo log is changed at random and taken back: tree, attributes, times and bytes are what they were. Also when the power
// is cut anywhere. A seed that fails is in the message; PMIRROR_UNDO_SEED=N runs that one alone.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/falloc.h>

#include <cstdlib>
#include <set>

#include "server/undo_rollback.h"
#include "tests/unit/recovery/forgetful_storage.h"
#include "tests/unit/server/random_tree.h"

namespace pmirror::server {
namespace {

using recovery::ForgetfulStorage;
using recovery::LogStorage;
using recovery::RandomChoice;

constexpr uint64_t kId = 0x1234;

struct Seeds {
  uint64_t first;
  uint64_t last;
};
constexpr Seeds kTakenBack{1, 1000};
constexpr Seeds kInterrupted{2001, 2200};
constexpr Seeds kPowerCut{3001, 3600};

template <typename Test>
void ForEach(Seeds seeds, Test test) {
  if (const char* const chosen = std::getenv("PMIRROR_UNDO_SEED"); chosen != nullptr) {
    seeds.first = seeds.last = std::strtoull(chosen, nullptr, 10);
  }
  for (uint64_t seed = seeds.first; seed <= seeds.last && !testing::Test::HasFailure(); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    test(seed);
  }
}

UndoPoint Point() {
  UndoPoint point;
  point.record.generation = 77;
  point.record.mount_number = 3;
  point.record.operation = 12;
  point.record.boot = "a";
  return point;
}

// What a primary and a resync do to a copy, in any order; what the copy refuses is no matter.
class Changer {
 public:
  Changer(uint64_t seed, Copy& copy) : dice_(seed * 3 + 2), copy_(copy) {}

  void FillFiles() {
    for (const recovery::TreeItem& item : copy_.Take(InventoryDetail::kFull)) {
      if (S_ISREG(item.mode) && !dice_.OneIn(3)) {
        copy_.Write(Raw(item.id), dice_.Below(4) * 3000, Bytes(1 + dice_.Below(20'000)));
      }
    }
  }

  // The first operations of a plan towards another tree.
  void Resync(const Inventory& wanted) {
    const recovery::TreePlan plan = recovery::PlanTree(wanted, copy_.Take(InventoryDetail::kFull));
    const size_t count = dice_.Below(2 * plan.operations.size() + 1);
    for (size_t at = 0; at < std::min(count, plan.operations.size()); ++at) {
      copy_.Apply(plan.operations[at]);
      if (dice_.OneIn(4)) {
        Store();
      }
    }
  }

  void Live(uint64_t steps) {
    for (; steps > 0; --steps) {
      Look();
      dice_.OneIn(2) ? Store() : Operate();
    }
  }

 private:
  struct Entry {
    uint64_t id;
    uint64_t parent;
    std::string name;
    uint32_t mode;
  };

  void Look() {
    entries_.clear();
    used_.clear();
    directories_ = {1};
    std::map<std::string, uint64_t> ids{{"", 1}};
    for (const recovery::TreeItem& item : copy_.Take(InventoryDetail::kFull)) {
      const size_t slash = item.path.rfind('/');
      used_.insert(Raw(item.id));
      if (item.path.empty() || item.orphan || item.path.starts_with(".pmirror")) {
        continue;
      }
      ids[item.path] = Raw(item.id);
      entries_.push_back({Raw(item.id), ids[slash == std::string::npos ? "" : item.path.substr(0, slash)],
                          item.path.substr(slash == std::string::npos ? 0 : slash + 1), item.mode});
      if (S_ISDIR(item.mode)) {
        directories_.push_back(Raw(item.id));
      }
    }
  }

  std::string Bytes(uint64_t length) {
    std::string bytes(length, '\0');
    const char seed = static_cast<char>('a' + dice_.Below(26));
    for (size_t at = 0; at < length; ++at) {
      bytes[at] = static_cast<char>(seed + static_cast<char>(at / 512));
    }
    return bytes;
  }

  uint64_t AnyId() { return 10 + dice_.Below(18); }

  void Store() {
    const uint64_t offset = dice_.Below(dice_.OneIn(2) ? 5 : 20'000);
    copy_.Write(AnyId(), offset, Bytes(1 + dice_.Below(9000)));
  }

  void Operate() {
    NamespaceOp op = ObjectOp(OpKind::kSetMode, AnyId());
    const uint64_t parent = dice_.Of(directories_);
    const std::string name(1, static_cast<char>('a' + dice_.Below(5)));
    switch (dice_.Below(12)) {
      case 0:
        op.mode = 0700;
        break;
      case 1:
        op.kind = OpKind::kSetOwner;
        op.uid = op.gid = 7;
        op.mode = 0640;
        break;
      case 2:
        op.kind = OpKind::kSetTimes;
        op.mtime = op.atime = {5, 6};
        break;
      case 3:
        op.kind = dice_.OneIn(2) ? OpKind::kSetXattr : OpKind::kRemoveXattr;
        op.name = "trusted." + name;
        op.value = "new";
        break;
      case 4:
        op = TruncateOp(Raw(op.target), dice_.Below(3) * 4500);
        break;
      case 5: {
        const uint32_t modes[] = {0, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                  FALLOC_FL_ZERO_RANGE, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE};
        const uint32_t mode = modes[dice_.Below(5)];
        op = AllocateOp(Raw(op.target), mode, dice_.Below(9000), 1 + dice_.Below(9000));
        break;
      }
      case 6:
        op = CreateOp(FreeId(), parent, name, dice_.OneIn(3) ? S_IFDIR | 0755 : S_IFREG | 0644);
        break;
      case 7:
        op.kind = OpKind::kForgetOrphan;
        break;
      default:
        ChangeName(op, parent, name);
    }
    copy_.Apply(op);
  }

  // Ids are not used twice by a primary; a copy of unknown history may have them.
  uint64_t FreeId() {
    const uint64_t id = AnyId();
    while (used_.contains(next_id_)) {
      ++next_id_;
    }
    return used_.contains(id) ? next_id_ : id;
  }

  void ChangeName(NamespaceOp& op, uint64_t parent, const std::string& name) {
    if (entries_.empty()) {
      return;
    }
    const Entry from = dice_.Of(entries_);
    const Entry to = dice_.Of(entries_);
    const uint32_t orphaned = dice_.OneIn(2) ? kOpOrphaned : 0;
    switch (dice_.Below(5)) {
      case 0:
        op = EntryOp(S_ISDIR(from.mode) ? OpKind::kRemoveDirectory : OpKind::kUnlink, from.id, from.parent,
                     from.name, S_ISDIR(from.mode) ? 0 : orphaned);
        break;
      case 1:
        op = EntryOp(OpKind::kLink, from.id, parent, name);
        break;
      case 2:
        op = RenameOp(from.id, from.parent, from.name, parent, name);
        break;
      case 3:
        op = RenameOp(from.id, from.parent, from.name, to.parent, to.name, to.id,
                      S_ISDIR(to.mode) ? 0 : orphaned);
        break;
      case 4:
        op = RenameOp(from.id, from.parent, from.name, to.parent, to.name, to.id, kOpExchange);
        break;
    }
  }

  Dice dice_;
  Copy& copy_;
  uint64_t next_id_ = 100;
  std::vector<Entry> entries_;
  std::vector<uint64_t> directories_;
  std::set<uint64_t> used_;
};

// A copy as a consistency point leaves it, and what has to come back.
struct Before {
  Inventory tree;
  std::map<uint64_t, std::string> contents;
};

Before Prepare(uint64_t seed, Copy& copy) {
  Grower(seed, Grower::Role::kOriginal, copy).Grow();
  Changer(seed, copy).FillFiles();
  return {TakeOriginal(copy), copy.Contents()};
}

Inventory Other(uint64_t seed) {
  Copy other;
  Grower(seed, Grower::Role::kCopy, other).Grow();
  Inventory tree = TakeOriginal(other);
  std::erase_if(tree, [](const recovery::TreeItem& item) { return item.id == FileId::kNone; });
  return tree;
}

void ExpectBefore(const Before& before, Copy& copy) {
  copy.Restart();
  ExpectEqual(before.tree, copy);
  EXPECT_EQ(copy.Contents(), before.contents);
}

TEST(UndoLog, P2_WhateverAResyncDidIsTakenBack) {
  uint64_t operations = 0;
  uint64_t bytes = 0;
  uint64_t brought_back = 0;
  ForEach(kTakenBack, [&](uint64_t seed) {
    Copy copy;
    const Before before = Prepare(seed, copy);
    ASSERT_TRUE(copy.undo().Begin(Point(), kId).ok());
    Changer changer(seed, copy);
    changer.Resync(Other(seed));
    changer.Live(seed % 30);
    ASSERT_TRUE(copy.undo().active());
    const auto rolled = RollBack(copy.path());
    ASSERT_TRUE(rolled.ok()) << rolled.status();
    EXPECT_EQ(rolled->point, Point());
    ExpectBefore(before, copy);
    operations += rolled->operations;
    bytes += rolled->bytes;
    brought_back += rolled->brought_back;
  });
  if (std::getenv("PMIRROR_UNDO_SEED") == nullptr) {
    EXPECT_GT(operations, 10'000u) << "too little was changed to prove anything";
    EXPECT_GT(bytes, 1'000'000u);
    EXPECT_GT(brought_back, 500u);
  }
}

TEST(UndoLog, P2_TheWayBackIsTheSameFromAnyPointOfAWayBackThatWasCut) {
  ForEach(kInterrupted, [&](uint64_t seed) {
    Copy copy;
    const Before before = Prepare(seed, copy);
    ASSERT_TRUE(copy.undo().Begin(Point(), kId).ok());
    Changer changer(seed, copy);
    changer.Resync(Other(seed));
    changer.Live(10);
    Dice dice(seed);
    for (int crashes = 0; crashes < 6; ++crashes) {
      uint64_t steps = dice.Below(40);
      const auto rolled = RollBack(copy.path(), LogStorage::Real(), [&] {
        return steps-- == 0 ? absl::AbortedError("crash") : absl::OkStatus();
      });
      ASSERT_TRUE(rolled.ok() || absl::IsAborted(rolled.status())) << rolled.status();
      if (dice.OneIn(3)) {  // instead of the way back, the resync is tried again
        copy.Restart();
        ASSERT_TRUE(copy.undo().Continue(kId).ok());
        Changer again(seed + 1000, copy);
        again.Resync(Other(seed + 1));
        again.Live(5);
      }
    }
    const auto rolled = RollBack(copy.path());
    ASSERT_TRUE(rolled.ok()) << rolled.status();
    ExpectBefore(before, copy);
  });
}

TEST(UndoLog, P2_Trap11_Trap18_APowerCutAnywhereLeavesAWayBack) {
  ForEach(kPowerCut, [&](uint64_t seed) {
    ForgetfulStorage storage;
    Copy copy(storage);
    const Before before = Prepare(seed, copy);
    Dice dice(seed);
    storage.CutBefore(dice.Below(60));
    const bool begun = copy.undo().Begin(Point(), kId).ok();
    if (begun) {
      Changer changer(seed, copy);
      changer.Resync(Other(seed));
      changer.Live(20);
    }
    RandomChoice choice(seed);
    const std::unique_ptr<ForgetfulStorage> left = storage.AfterPowerCut(choice);
    copy.Restart(*left);
    if (!begun) {  // and so nothing was changed
      ExpectBefore(before, copy);
      return;
    }
    if (dice.OneIn(2)) {  // the resync goes on, and ends as badly
      ASSERT_TRUE(copy.undo().Continue(kId).ok());
      Changer changer(seed + 1000, copy);
      changer.Live(10);
    }
    const auto rolled = RollBack(copy.path(), *left);
    ASSERT_TRUE(rolled.ok()) << rolled.status();
    ExpectBefore(before, copy);
  });
}

class UndoLogOfOneFile : public testing::Test {
 protected:
  UndoLogOfOneFile() {
    copy_.Apply(CreateOp(10, 1, "f"));
    copy_.Write(10, 0, std::string(20'000, 'o'));
  }
  std::string Log() const { return UndoLogPath(copy_.path()); }
  std::string File() const { return ReadFile(copy_.path() + "/f"); }

  Copy copy_;
};

TEST_F(UndoLogOfOneFile, P2_ARangeIsSavedOnceAndOnlyWhatWasThere) {
  ASSERT_TRUE(copy_.undo().Begin(Point(), kId).ok());
  for (int times = 0; times < 3; ++times) {
    EXPECT_EQ(copy_.Write(10, 5000, std::string(50, 'n')), 0);
  }
  EXPECT_EQ(copy_.Write(10, 30'000, std::string(50, 'n')), 0);  // behind the end: nothing was there
  EXPECT_EQ(copy_.Apply(CreateOp(11, 1, "new")), 0);
  EXPECT_EQ(copy_.Write(11, 0, std::string(5000, 'n')), 0);
  const auto rolled = RollBack(copy_.path());
  ASSERT_TRUE(rolled.ok()) << rolled.status();
  EXPECT_EQ(rolled->bytes, 4096u);
  EXPECT_EQ(File(), std::string(20'000, 'o'));
}

TEST_F(UndoLogOfOneFile, P5_AnyDamagedByteIsFoundAndNothingIsChanged) {
  ASSERT_TRUE(copy_.undo().Begin(Point(), kId).ok());
  copy_.Write(10, 0, std::string(50, 'n'));
  copy_.Write(10, 9000, std::string(50, 'n'));
  const std::string good = ReadFile(Log());
  const std::string changed = File();
  for (size_t at = 2 * UndoLogFile::kBlock; at < good.size(); at += 97) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 0x10);
    std::ofstream(Log(), std::ios::binary) << bad;
    const auto rolled = RollBack(copy_.path());
    ASSERT_EQ(rolled.status().code(), absl::StatusCode::kDataLoss) << at << " " << rolled.status();
    ASSERT_NE(rolled.status().message().find(Log()), std::string::npos) << rolled.status();
    ASSERT_EQ(File(), changed);
  }
  std::ofstream(Log(), std::ios::binary) << good;
  EXPECT_TRUE(RollBack(copy_.path()).ok());
  EXPECT_EQ(File(), std::string(20'000, 'o'));
}

TEST_F(UndoLogOfOneFile, Trap11_ATornEndIsNoDamage) {
  ASSERT_TRUE(copy_.undo().Begin(Point(), kId).ok());
  copy_.Write(10, 0, std::string(50, 'n'));
  const std::string good = ReadFile(Log());
  copy_.Restart();
  for (const size_t more : {size_t{1}, size_t{40}, size_t{5000}}) {
    std::ofstream(Log(), std::ios::binary) << good << std::string(more, '\x55');
    ASSERT_TRUE(RollBack(copy_.path()).ok());
    ASSERT_TRUE(copy_.undo().Continue(kId).ok());
    EXPECT_EQ(ReadFile(Log()), good);
    copy_.Restart();
  }
}

TEST_F(UndoLogOfOneFile, ALogOfAnotherResyncIsNotGoneOnWith) {
  EXPECT_EQ(copy_.undo().Continue(kId).code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(copy_.undo().Begin(Point(), kId).ok());
  copy_.Restart();
  EXPECT_EQ(copy_.undo().Continue(kId + 1).code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(copy_.undo().active());
  ASSERT_TRUE(copy_.undo().Continue(kId).ok());
  ASSERT_TRUE(copy_.undo().End().ok());
  EXPECT_EQ(RollBack(copy_.path()).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(UndoLogOfOneFile, P2_AFailingLogIsGivenUpBeforeTheFirstByteChangesWithoutIt) {
  ForgetfulStorage storage;
  copy_.Restart(storage);
  ASSERT_TRUE(copy_.undo().Begin(Point(), kId).ok());
  storage.SetFull(true);
  EXPECT_EQ(copy_.Write(10, 0, "new"), 0);  // the resync goes on
  EXPECT_FALSE(copy_.undo().active());
  EXPECT_NE(copy_.undo().reason(), "");
  RandomChoice choice(1);
  const std::unique_ptr<ForgetfulStorage> left = storage.AfterPowerCut(choice);
  EXPECT_EQ(RollBack(copy_.path(), *left).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(File().substr(0, 4), "newo");
}

TEST_F(UndoLogOfOneFile, P2_ALogThatCannotEvenBeGivenUpStopsTheChange) {
  ForgetfulStorage storage;
  copy_.Restart(storage);
  ASSERT_TRUE(copy_.undo().Begin(Point(), kId).ok());
  storage.CutBefore(storage.operations());
  EXPECT_EQ(copy_.Write(10, 0, "new"), EIO);
  EXPECT_EQ(copy_.Apply(TruncateOp(10, 0)), EIO);
  EXPECT_EQ(File(), std::string(20'000, 'o'));
}

}  // namespace
}  // namespace pmirror::server
