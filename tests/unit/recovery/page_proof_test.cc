// SPDX-License-Identifier: BSD-3-Clause
// A range is settled while everything goes on: files come and go between the questions.
#include "recovery/page_proof.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <optional>
#include <span>
#include <string>

namespace pmirror::recovery {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr FileId kFile{2};
constexpr int kAttempts = 5;
constexpr Extent kRange{0, 3 * kVerifyPage};

class Side : public ChecksumSource {
 public:
  explicit Side(std::function<void()>& world) : world_(world) {}
  absl::StatusOr<BlockChecksums> Checksums(FileId, Extent extent, uint32_t block) override {
    if (!bytes.has_value()) {
      world_();
      return absl::NotFoundError("no such file");
    }
    BlockChecksums sums;
    sums.size = bytes->size();
    const std::span<const std::byte> all = std::as_bytes(std::span(*bytes));
    for (uint64_t at = extent.offset; at < std::min<uint64_t>(extent.end(), all.size()); at += block) {
      sums.sums.push_back(SumOf(all.subspan(at, std::min<uint64_t>(block, all.size() - at))));
    }
    world_();
    return sums;
  }
  std::optional<std::string> bytes = std::string(kRange.length, 'a');

 private:
  std::function<void()>& world_;
};

struct Stores : public PendingStores {
  absl::Status Flush(FileId, Extent) override { return flushed; }
  absl::StatusOr<std::vector<bool>> Dirty(FileId, std::span<const Extent> ranges) override {
    ++asked;
    deliver();
    return std::vector<bool>(ranges.size(), dirty);
  }
  std::function<void()> deliver = [] {};  // what was on its way before
  absl::Status flushed;
  bool dirty = false;
  int asked = 0;
};

class PageProofTest : public ::testing::Test {
 protected:
  SettledRange Settle() {
    absl::StatusOr<SettledRange> settled = SettleRange(original_, copy_, stores_, kFile, kRange, kAttempts);
    EXPECT_TRUE(settled.ok()) << settled.status();
    return settled.ok() ? *std::move(settled) : SettledRange{};
  }
  void ExpectNothing(const SettledRange& settled) {
    EXPECT_THAT(settled.different, IsEmpty());
    EXPECT_THAT(settled.busy, IsEmpty());
    EXPECT_FALSE(settled.missing);
  }

  std::function<void()> world_ = [] {};  // what happens after each question to a side
  Side original_{world_};
  Side copy_{world_};
  Stores stores_;
};

TEST_F(PageProofTest, P5_PagesThatAreProvenDifferentAreNamedOneByOne) {
  (*copy_.bytes)[kVerifyPage] = 'x';
  (*copy_.bytes)[2 * kVerifyPage] = 'x';
  const SettledRange settled = Settle();
  EXPECT_THAT(settled.different,
              ElementsAre(Extent{kVerifyPage, kVerifyPage}, Extent{2 * kVerifyPage, kVerifyPage}));
  EXPECT_EQ(stores_.asked, kVerifyProofs) << "once for all of them";
}

TEST_F(PageProofTest, WhatIsDirtyAllTheTimeIsBusyAndNotDifferent) {
  (*copy_.bytes)[0] = 'x';
  stores_.dirty = true;
  const SettledRange settled = Settle();
  EXPECT_THAT(settled.different, IsEmpty());
  EXPECT_THAT(settled.busy, ElementsAre(Extent{0, kVerifyPage}));
}

TEST_F(PageProofTest, P5_AFileThatTheCopyDoesNotHaveIsMissingWhenNothingIsOnItsWay) {
  copy_.bytes.reset();
  EXPECT_TRUE(Settle().missing);
  EXPECT_EQ(stores_.asked, 1);
}

TEST_F(PageProofTest, AFileWhoseCreationIsOnItsWayIsNotMissing) {
  copy_.bytes.reset();
  stores_.deliver = [this] { copy_.bytes = original_.bytes; };
  ExpectNothing(Settle());
}

TEST_F(PageProofTest, P5_AFileThatIsStoredToAllTheTimeIsFoundMissing) {
  copy_.bytes.reset();
  stores_.dirty = true;
  EXPECT_TRUE(Settle().missing);
}

TEST_F(PageProofTest, AFileThatIsRemovedFromBothBetweenTwoQuestionsIsNotMissing) {
  int questions = 0;
  for (int removed_after = 1; removed_after <= 5; ++removed_after) {
    original_.bytes = copy_.bytes = std::string(kRange.length, 'a');
    (*copy_.bytes)[0] = 'x';  // so that there are many questions
    questions = 0;
    world_ = [&] {
      if (++questions == removed_after) {
        original_.bytes.reset();
        copy_.bytes.reset();
      }
    };
    ExpectNothing(Settle());
    EXPECT_GE(questions, removed_after);
  }
}

TEST_F(PageProofTest, WhatCannotBeFlushedIsAnErrorAndNoVerdict) {
  (*copy_.bytes)[0] = 'x';
  stores_.flushed = absl::UnavailableError("silent");
  EXPECT_EQ(SettleRange(original_, copy_, stores_, kFile, kRange, kAttempts).status().code(),
            absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace pmirror::recovery
