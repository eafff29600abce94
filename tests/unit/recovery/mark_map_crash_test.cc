// SPDX-License-Identifier: BSD-3-Clause
// Power cuts at every operation, failing disks and damaged bytes against the map of marks: nothing that was promised is missing afterwards (P3), and
// nothing damaged is believed (P5).
#include <gtest/gtest.h>

#include <functional>
#include <iostream>

#include "tests/unit/recovery/forgetful_storage.h"
#include "tests/unit/recovery/mark_history.h"

namespace pmirror::recovery {
namespace {

constexpr uint8_t kBoth = 3;

// A life with every kind of change in it.
void ShortHistory(MarkHistory& history) {
  history.Use(11);
  history.Begin();
  history.Resynced(0);
  history.Use(12);
  history.Close(11);
  history.Begin();
  history.End(1);   // 11 is clean on replica 0, lazily
  history.Use(13);  // brings that to the file
  history.Use(11);  // marked again behind its clearing
  history.MarkAll(0);
  history.Close(12);
  history.Forget(12);
  history.Begin();
  history.End(kBoth);
  history.Flush();
}

// Every cut of the power in `life`, and everything that each may leave. Returns how many that were.
uint64_t EveryPowerCut(const std::function<void(MarkHistory&)>& life) {
  uint64_t survivors = 0;
  for (uint64_t cut = 0;; ++cut) {
    ForgetfulStorage storage;
    MarkHistory history;
    EXPECT_TRUE(history.Mount(storage));
    const uint64_t first = storage.operations();
    storage.CutBefore(first + cut);
    life(history);
    history.Unmount();
    const bool reached = storage.operations() == first + cut;
    EveryChoice every;
    do {
      const auto left = storage.AfterPowerCut(every);
      MarkHistory next = history.Copied();
      EXPECT_TRUE(next.Mount(*left));
      ++survivors;
      if (testing::Test::HasFailure()) {
        ADD_FAILURE() << "the power was cut before operation " << cut << ", survivor " << survivors;
        return survivors;
      }
    } while (every.Next());
    if (!reached) {
      return survivors;
    }
  }
}

TEST(P3MarkMap, Trap18NothingPromisedIsMissingAfterAPowerCutAtAnyOperation) {
  const uint64_t survivors = EveryPowerCut(ShortHistory);
  std::cout << survivors << " survivors of a short history\n";
}

TEST(P3MarkMap, Trap18TheNextMountTakesTheMapOverWholeWhereverItsPowerIsCut) {
  // The cut is in Open: a whole new file, a rename, a sync of the directory.
  uint64_t survivors = 0;
  for (uint64_t cut = 0; cut < 8; ++cut) {
    ForgetfulStorage storage;
    MarkHistory history;
    ASSERT_TRUE(history.Mount(storage));
    ShortHistory(history);
    history.Unmount();
    storage.CutBefore(storage.operations() + cut);
    history.Mount(storage);
    history.Unmount();
    EveryChoice every;
    do {
      const auto left = storage.AfterPowerCut(every);
      MarkHistory next = history.Copied();
      ASSERT_TRUE(next.Mount(*left));
      ++survivors;
    } while (every.Next() && !HasFailure());
  }
  std::cout << survivors << " survivors of a mount\n";
}

// One random step. Files are few, so that they meet.
void RandomStep(MarkHistory& history, RandomChoice& random) {
  const uint64_t file = 1 + random.Choose(6);
  switch (random.Choose(12)) {
    case 0:
    case 1:
    case 2:
    case 3:
      return history.Use(file);
    case 4:
    case 5:
      return history.Close(file);
    case 6:
      return history.Begin();
    case 7:
    case 8:
      return history.End(static_cast<uint8_t>(random.Choose(4)));
    case 9:
      return random.Choose(4) == 0 ? history.MarkAll(random.Choose(kReplicas)) : history.Flush();
    case 10:
      return history.Resynced(random.Choose(kReplicas));
    default:
      return history.Forget(file);
  }
}

// Lives that end in a power cut, a kill (what was written stays visible) or cleanly, with disks that fail now and then.
void RandomLives(uint64_t seed) {
  RandomChoice random(seed);
  auto storage = std::make_unique<ForgetfulStorage>();
  MarkHistory history;
  for (int life = 0; life < 6 && !testing::Test::HasFailure(); ++life) {
    const bool cut = random.Choose(3) != 0;
    storage->CutBefore(cut ? storage->operations() + random.Choose(60) : ForgetfulStorage::kNever);
    storage->FailAt(random.Choose(2) == 0 ? storage->operations() + random.Choose(40)
                                          : ForgetfulStorage::kNever);
    if (history.Mount(*storage)) {
      for (size_t left = random.Choose(30); left > 0; --left) {
        storage->SetFull(random.Choose(8) == 0);
        RandomStep(history, random);
        history.Check();
      }
    }
    if (cut) {
      history.Unmount();
      storage = storage->AfterPowerCut(random);
    }
    storage->SetFull(false);
  }
  storage->CutBefore(ForgetfulStorage::kNever);
  storage->FailAt(ForgetfulStorage::kNever);
  EXPECT_TRUE(history.Mount(*storage));
  history.Unmount();
}

TEST(P3MarkMap, Trap18NothingPromisedIsMissingAfterRandomLives) {
  for (uint64_t seed = 0; seed < 4000; ++seed) {
    RandomLives(seed);
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
}

TEST(P3MarkMap, Trap18ALongLogIsReplacedByAShorterOneWithoutALoss) {
  // What a long log costs, and where its replacement happens.
  uint64_t replaced_at = 0;
  {
    ForgetfulStorage storage;
    MarkHistory history;
    ASSERT_TRUE(history.Mount(storage));
    size_t largest = 0;
    for (uint64_t i = 1; i <= 600; ++i) {
      const size_t before = storage.Content(kMapPath).size();
      history.Use(i);
      const size_t size = storage.Content(kMapPath).size();
      replaced_at = size < before && replaced_at == 0 ? i : replaced_at;
      largest = std::max(largest, size);
    }
    EXPECT_LT(largest, size_t{2} << 20);
    ASSERT_GT(replaced_at, 100U);
  }
  // Too much may survive of a file of this size to enumerate it.
  for (uint64_t cut = 0; cut < 8; ++cut) {
    ForgetfulStorage storage;
    MarkHistory history;
    ASSERT_TRUE(history.Mount(storage));
    for (uint64_t i = 1; i < replaced_at; ++i) {
      history.Use(i);
    }
    storage.CutBefore(storage.operations() + cut);
    history.Use(replaced_at);
    history.Unmount();
    RandomChoice random(cut);
    for (int sample = 0; sample < 100 && !HasFailure(); ++sample) {
      const auto left = storage.AfterPowerCut(random);
      MarkHistory next = history.Copied();
      ASSERT_TRUE(next.Mount(*left));
    }
  }
}

// A map that was closed cleanly: replica 0 has mark 1, replica 1 has 1, 2 and 3.
std::string ClosedMap() {
  ForgetfulStorage storage;
  auto opened = MarkMap::Open(kMapPath, TestIdentity(), 1, storage);
  EXPECT_TRUE(opened.ok());
  MarkMap& map = *opened->map;
  const auto unused = [](FileId) { return false; };
  EXPECT_TRUE(map.Resynced(0, map.BeginSettle(unused)).ok());
  EXPECT_TRUE(map.Resynced(1, map.BeginSettle(unused)).ok());
  EXPECT_TRUE(map.Mark(FileId{2}).ok());
  EXPECT_TRUE(map.Mark(FileId{3}).ok());
  map.EndSettle(map.BeginSettle(unused), 1);
  EXPECT_TRUE(map.Mark(FileId{1}).ok());
  opened->map.reset();
  return storage.Content(kMapPath);
}

enum class Verdict { kDoubted, kWhole, kLost };

Verdict Judge(const std::string& content) {
  ForgetfulStorage storage;
  storage.SetContent(kMapPath, content);
  const auto opened = MarkMap::Open(kMapPath, TestIdentity(), 2, storage);
  if (!opened.ok()) {
    return Verdict::kLost;
  }
  const MarkMap& map = *opened->map;
  if (!opened->doubt.empty()) {
    return map.AllMarked(0) && map.AllMarked(1) && opened->doubt.find(kMapPath) != std::string::npos
               ? Verdict::kDoubted
               : Verdict::kLost;
  }
  const auto has = [&](size_t replica, uint64_t file) {
    return std::ranges::count(map.Marked(replica), FileId{file}) == 1;
  };
  return has(0, 1) && has(1, 1) && has(1, 2) && has(1, 3) ? Verdict::kWhole : Verdict::kLost;
}

TEST(P5MarkMap, EveryDamagedByteIsDoubtedOrHarmless) {
  const std::string good = ClosedMap();
  ASSERT_EQ(Judge(good), Verdict::kWhole);
  size_t harmless = 0;
  for (size_t at = 0; at < good.size(); ++at) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ (1 << at % 8));
    const Verdict verdict = Judge(bad);
    ASSERT_NE(verdict, Verdict::kLost) << "byte " << at;
    harmless += verdict == Verdict::kWhole ? 1 : 0;
    // Only one of the two acknowledgements: the other and the batches say enough.
    ASSERT_TRUE(verdict == Verdict::kDoubted || at < 2 * MarkLog::kBlock) << "byte " << at;
  }
  EXPECT_EQ(harmless, 2 * MarkLog::kBlock);
}

TEST(P5MarkMap, EveryLostPageIsDoubtedOrHarmless) {
  const std::string good = ClosedMap();
  for (size_t at = 0; at < good.size(); at += MarkLog::kBlock) {
    for (const char fill : {'\0', '\xff'}) {
      std::string bad = good;
      bad.replace(at, MarkLog::kBlock, MarkLog::kBlock, fill);
      EXPECT_EQ(Judge(bad), at < 2 * MarkLog::kBlock ? Verdict::kWhole : Verdict::kDoubted) << "byte " << at;
    }
  }
  std::string both = good;
  both.replace(0, 2 * MarkLog::kBlock, 2 * MarkLog::kBlock, '\0');
  EXPECT_EQ(Judge(both), Verdict::kDoubted);
}

TEST(P5MarkMap, AnAcknowledgedBatchThatIsCutOffIsDoubted) {
  const std::string good = ClosedMap();
  for (size_t length = 0; length < good.size(); ++length) {
    ASSERT_EQ(Judge(good.substr(0, length)), Verdict::kDoubted) << "cut at " << length;
  }
}

TEST(P5MarkMap, WhatFollowsTheLastBatchIsATornEndOnlyWhenItCouldBeOne) {
  const std::string good = ClosedMap();
  EXPECT_EQ(Judge(good + std::string(100, 'x')), Verdict::kWhole);
  EXPECT_EQ(Judge(good + std::string(2 * MarkLog::kBlock, '\0')), Verdict::kWhole);
  EXPECT_EQ(Judge(good + std::string(1 << 20, '\0')), Verdict::kDoubted);
  // The last batch, taken for one that comes behind a batch that is missing.
  const std::string last = good.substr(good.size() - MarkLog::kBlock);
  EXPECT_EQ(Judge(good + last), Verdict::kWhole);
  std::string gap = good;
  gap.replace(gap.size() - 2 * MarkLog::kBlock, MarkLog::kBlock, MarkLog::kBlock, '\0');
  EXPECT_EQ(Judge(gap), Verdict::kDoubted);
}

TEST(P5MarkMap, ABatchBehindADamagedOneIsDamageWithoutAnAcknowledgementToo) {
  // The acknowledgements of an earlier moment, as if the later ones had not reached the disk.
  ForgetfulStorage storage;
  auto opened = MarkMap::Open(kMapPath, TestIdentity(), 1, storage);
  ASSERT_TRUE(opened.ok());
  const std::string early = storage.Content(kMapPath).substr(0, 2 * MarkLog::kBlock);
  for (const uint64_t file : {1, 2, 3}) {
    ASSERT_TRUE(opened->map->Mark(FileId{file}).ok());
  }
  std::string late = early + storage.Content(kMapPath).substr(early.size());
  EXPECT_EQ(Judge(late), Verdict::kWhole);
  late[late.size() - 2 * MarkLog::kBlock + 40] ^= 1;
  ForgetfulStorage damaged;
  damaged.SetContent(kMapPath, late);
  const auto again = MarkMap::Open(kMapPath, TestIdentity(), 2, damaged);
  ASSERT_TRUE(again.ok());
  EXPECT_NE(again->doubt.find("follows"), std::string::npos) << again->doubt;
}

TEST(P5MarkMap, NoiseIsDoubted) {
  std::mt19937_64 random(5);
  for (int i = 0; i < 2000; ++i) {
    std::string noise(random() % 20000, '\0');
    std::ranges::generate(noise, [&] { return static_cast<char>(random()); });
    ASSERT_EQ(Judge(noise), Verdict::kDoubted);
  }
}

}  // namespace
}  // namespace pmirror::recovery
