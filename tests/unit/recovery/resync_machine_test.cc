// SPDX-License-Identifier: BSD-3-Clause
// The course of a resync, and which blocks count as different.
#include "recovery/resync_machine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace pmirror::recovery {
namespace {

using Step = ResyncMachine::Step;
using testing::ElementsAre;

constexpr FileId kFile{7};
constexpr FileId kOther{8};
constexpr uint64_t kMiB = 1 << 20;

void ToList(ResyncMachine& machine) {
  for (const Step step : {Step::kBegin, Step::kChangeTree, Step::kJoin}) {
    ASSERT_EQ(machine.action().step, step);
    machine.Done();
  }
  ASSERT_EQ(machine.action().step, Step::kListFiles);
}

TEST(ResyncMachine, P5_TheReplicaJoinsBeforeTheFirstFileIsListedAndCountsOnlyBehindItsEnd) {
  ResyncMachine machine;
  ToList(machine);
  machine.Listed({});
  for (const Step step : {Step::kEnd, Step::kAdmit}) {
    ASSERT_EQ(machine.action().step, step);
    machine.Done();
  }
  EXPECT_EQ(machine.action().step, Step::kDone);
}

TEST(ResyncMachine, EveryByteOfAFileIsComparedOnce) {
  ResyncMachine machine;
  ToList(machine);
  const uint64_t size = 2 * ResyncMachine::kChunk + 5;
  machine.Listed({{kFile, size}});
  for (uint64_t offset = 0; offset < size; offset += ResyncMachine::kChunk) {
    ASSERT_EQ(machine.action().step, Step::kCompare);
    EXPECT_EQ(machine.action().extent.offset, offset);
    EXPECT_EQ(machine.action().block, ResyncMachine::kCoarseBlock);
    machine.Compared({}, size);
  }
  EXPECT_EQ(machine.action().step, Step::kEnd);
  EXPECT_EQ(machine.counts().bytes_compared, size);
  EXPECT_EQ(machine.counts().files_done, 1U);
  EXPECT_EQ(machine.counts().bytes_sent, 0U);
}

TEST(ResyncMachine, WhatDiffersIsLookedAtCloselyAndThenSent) {
  ResyncMachine machine;
  ToList(machine);
  machine.Listed({{kFile, kMiB}});
  machine.Compared({{65536, 65536}}, kMiB);
  ASSERT_EQ(machine.action().step, Step::kCompare);
  EXPECT_EQ(machine.action().extent, (Extent{65536, 65536}));
  EXPECT_EQ(machine.action().block, ResyncMachine::kFineBlock);
  machine.Compared({{65536, 4096}, {90112, 8192}}, kMiB);
  for (const Extent extent : {Extent{65536, 4096}, Extent{90112, 8192}}) {
    ASSERT_EQ(machine.action().step, Step::kSend);
    EXPECT_EQ(machine.action().extent, extent);
    EXPECT_EQ(machine.action().file, kFile);
    machine.Sent();
  }
  EXPECT_EQ(machine.action().step, Step::kEnd);
  EXPECT_EQ(machine.counts().bytes_sent, 12288U);
  EXPECT_EQ(machine.counts().bytes_compared, kMiB) << "the second look at a block is no progress";
}

TEST(ResyncMachine, AFileThatGrowsMeanwhileIsComparedToItsNewEnd) {
  ResyncMachine machine;
  ToList(machine);
  machine.Listed({{kFile, 10}});
  machine.Compared({}, ResyncMachine::kChunk + 1);
  EXPECT_EQ(machine.action().step, Step::kCompare);
  EXPECT_EQ(machine.action().extent.offset, ResyncMachine::kChunk);
}

TEST(ResyncMachine, LongRunsAreSentInPartsSoThatOthersGetTheirTurn) {
  ResyncMachine machine;
  ToList(machine);
  machine.Listed({{kFile, 10 * kMiB}});
  machine.Compared({{0, 10 * kMiB}}, 10 * kMiB);
  machine.Compared({{0, 10 * kMiB}}, 10 * kMiB);
  uint64_t sent = 0;
  while (machine.action().step == Step::kSend) {
    EXPECT_EQ(machine.action().extent.offset, sent);
    EXPECT_LE(machine.action().extent.length, ResyncMachine::kLongestSend);
    sent = machine.action().extent.end();
    machine.Sent();
  }
  EXPECT_EQ(sent, 10 * kMiB);
}

TEST(ResyncMachine, AFileThatIsGoneIsLeftWithAllThatWasToBeDoneToIt) {
  ResyncMachine machine;
  ToList(machine);
  machine.Listed({{kFile, kMiB}, {kOther, kMiB}});
  machine.Compared({{0, 65536}, {131072, 65536}}, kMiB);
  machine.Compared({{0, 4096}}, kMiB);
  ASSERT_EQ(machine.action().step, Step::kSend);
  machine.Gone();
  EXPECT_EQ(machine.action().step, Step::kCompare);
  EXPECT_EQ(machine.action().file, kOther);
  EXPECT_EQ(machine.action().extent.offset, 0U);
}

BlockChecksums Sums(const std::string& letters, uint64_t size) {
  BlockChecksums sums;
  for (const char letter : letters) {
    sums.sums.push_back({.high = 0, .low = static_cast<uint64_t>(letter)});
  }
  sums.size = size;
  return sums;
}

TEST(DifferingBlocks, AdjacentOnesAreOneRange) {
  EXPECT_THAT(DifferingBlocks(Sums("abcd", 400), Sums("aXXd", 400), {0, 400}, 100),
              ElementsAre(Extent{100, 200}));
  EXPECT_THAT(DifferingBlocks(Sums("abcd", 400), Sums("XbXd", 400), {0, 400}, 100),
              ElementsAre(Extent{0, 100}, Extent{200, 100}));
  EXPECT_THAT(DifferingBlocks(Sums("abcd", 400), Sums("abcd", 400), {0, 400}, 100), ElementsAre());
}

TEST(DifferingBlocks, WhatTheCopyLacksDiffersAndWhatItHasBeyondOurEndDoesNot) {
  EXPECT_THAT(DifferingBlocks(Sums("abc", 250), Sums("a", 100), {0, 400}, 100),
              ElementsAre(Extent{100, 150}));
  EXPECT_THAT(DifferingBlocks(Sums("a", 100), Sums("abc", 250), {0, 400}, 100), ElementsAre());
}

TEST(DifferingBlocks, P5_ABlockInWhichOneFileEndsIsNeverTakenForEqual) {
  // The same sum, over 50 bytes there and over 100 here.
  EXPECT_THAT(DifferingBlocks(Sums("ab", 200), Sums("ab", 150), {0, 400}, 100),
              ElementsAre(Extent{100, 100}));
}

TEST(DifferingBlocks, AnExtentInTheMiddleOfTheFile) {
  EXPECT_THAT(DifferingBlocks(Sums("ab", 1000), Sums("aX", 1000), {300, 150}, 100),
              ElementsAre(Extent{400, 50}));
}

}  // namespace
}  // namespace pmirror::recovery
