// SPDX-License-Identifier: BSD-3-Clause
// The journal of a copy that trails, under power cuts at every operation of its storage (trap 18; docs/internals/rpo.md).
#include "server/batch_journal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "recovery/batch.h"
#include "tests/unit/recovery/forgetful_storage.h"

namespace pmirror::server {
namespace {

using recovery::BatchBuilder;
using recovery::BatchView;
using recovery::ForgetfulStorage;

constexpr uint64_t kBatches = 4;

std::vector<std::byte> Batch(uint64_t number) {
  const std::string text(1200 + number * 700, static_cast<char>('a' + number));
  const auto bytes = std::as_bytes(std::span(text));
  const WireRange range{0, text.size()};
  BatchBuilder batch;
  batch.Lay(FileId{9}, {&range, 1},
            std::make_shared<const std::vector<std::byte>>(bytes.begin(), bytes.end()));
  return batch.Encode({.number = number, .mount_number = 1, .cut_at = 0});
}

// Batches from 1 on until the power goes. Returns the last one whose commit succeeded; `begun`: the last one that was committed at all.
uint64_t Store(BatchJournal& journal, uint64_t& begun) {
  for (uint64_t number = 1; number <= kBatches; ++number) {
    if (!journal.Prepare(Batch(number)).ok()) {
      return number - 1;
    }
    begun = number;
    if (!journal.Commit().ok()) {
      return number - 1;
    }
  }
  return kBatches;
}

// Number of the batch that is there; 0: none. Nothing when it is damaged.
std::optional<uint64_t> Found(ForgetfulStorage& storage) {
  const auto loaded = BatchJournal("/b", storage).Load();
  if (!loaded.ok()) {
    return std::nullopt;
  }
  return loaded->has_value() ? BatchView::Parse(**loaded)->identity().number : 0;
}

TEST(BatchJournal, P3_Trap18_ACutAnywhereLeavesTheLastCommittedBatchOrTheNextOne) {
  ForgetfulStorage complete;
  BatchJournal journal("/b", complete);
  uint64_t begun = 0;
  ASSERT_EQ(Store(journal, begun), kBatches);
  for (uint64_t cut = 0; cut <= complete.operations(); ++cut) {
    for (uint64_t seed = 0; seed < 100; ++seed) {
      ForgetfulStorage storage;
      storage.CutBefore(cut);
      BatchJournal cut_journal("/b", storage);
      begun = 0;
      const uint64_t committed = Store(cut_journal, begun);
      recovery::RandomChoice choice(seed);
      const auto survivor = storage.AfterPowerCut(choice);
      const std::optional<uint64_t> found = Found(*survivor);
      ASSERT_TRUE(found.has_value()) << "damaged; cut " << cut << ", seed " << seed;
      ASSERT_GE(*found, committed) << "cut " << cut << ", seed " << seed;
      ASSERT_LE(*found, begun) << "cut " << cut << ", seed " << seed;
    }
  }
}

TEST(BatchJournal, ABatchThatWasOnlyPreparedIsNone) {
  ForgetfulStorage storage;
  BatchJournal journal("/b", storage);
  ASSERT_TRUE(journal.Prepare(Batch(1)).ok());
  EXPECT_EQ(Found(storage), 0U);
  ASSERT_TRUE(journal.Prepare(Batch(1)).ok());
  ASSERT_TRUE(journal.Commit().ok());
  ASSERT_TRUE(journal.Prepare(Batch(2)).ok());
  EXPECT_EQ(Found(storage), 1U);
}

TEST(BatchJournal, WhatIsRemovedDoesNotComeBackAfterACut) {
  ForgetfulStorage storage;
  BatchJournal journal("/b", storage);
  uint64_t begun = 0;
  ASSERT_EQ(Store(journal, begun), kBatches);
  ASSERT_TRUE(journal.Remove().ok());
  for (uint64_t seed = 0; seed < 40; ++seed) {
    recovery::RandomChoice choice(seed);
    EXPECT_EQ(Found(*storage.AfterPowerCut(choice)), 0U);
  }
}

TEST(BatchJournal, P9_AFullDiskRefusesTheBatchAndKeepsTheLastOne) {
  ForgetfulStorage storage;
  BatchJournal journal("/b", storage);
  ASSERT_TRUE(journal.Prepare(Batch(1)).ok());
  ASSERT_TRUE(journal.Commit().ok());
  storage.SetFull(true);
  EXPECT_TRUE(absl::IsResourceExhausted(journal.Prepare(Batch(2))));
  EXPECT_EQ(Found(storage), 1U);
}

}  // namespace
}  // namespace pmirror::server
