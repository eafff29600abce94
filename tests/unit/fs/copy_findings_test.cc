// SPDX-License-Identifier: BSD-3-Clause
// What is told of copies that differ: one condition for each replica, whoever found it.
#include "fs/copy_findings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace pmirror::fs {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

struct Events : public EventSink {
  void Report(Severity, std::string_view event, const Fields& fields) override {
    std::string text(event);
    for (const auto& [key, value] : fields) {
      text += key == "node" || key == "found_by" || key == "path" || key == "offset" ? " " + value : "";
    }
    told.push_back(text);
  }
  std::vector<std::string> Take() { return std::exchange(told, {}); }
  std::vector<std::string> told;
};

recovery::VerifyResult Different() {
  recovery::VerifyResult result;
  result.differences.push_back({"f", recovery::What::kMode, {}});
  return result;
}

class CopyFindingsTest : public ::testing::Test {
 protected:
  control::ReplicaStatus Status(size_t replica = 0) {
    control::ReplicaStatus status;
    findings_.Fill(replica, status);
    return status;
  }
  Events events_;
  CopyFindings findings_{"v0", {"n2", "n3"}, events_};
  const CopyFindings::Place one_{FileId{2}, "f", {4096, 4096}};
  const CopyFindings::Place other_{FileId{3}, "g", {}};
};

TEST_F(CopyFindingsTest, EachReplicaHasItsOwnPlacesAndTheConditionEndsWithTheLast) {
  findings_.Differs(1, one_);
  findings_.Differs(1, one_);
  findings_.Differs(1, other_);
  EXPECT_EQ(Status(0).check().differences(), 0u);
  EXPECT_EQ(Status(1).check().differences(), 2u) << "the same place is one";
  EXPECT_EQ(Status(1).check().first().path(), "f");
  EXPECT_EQ(Status(1).check().first().offset(), 4096u);
  EXPECT_THAT(events_.Take(), ElementsAre("copies_differ n3 check f 4096", "copies_differ n3 check f 4096",
                                          "copies_differ n3 check g 0"));
  findings_.Mended(1, one_);
  EXPECT_THAT(events_.Take(), IsEmpty());
  EXPECT_EQ(Status(1).check().first().what(), "missing");
  findings_.Mended(1, other_);
  EXPECT_THAT(events_.Take(), ElementsAre("copies_equal n3"));
  EXPECT_EQ(Status(1).check().differences(), 0u);
}

TEST_F(CopyFindingsTest, WhatVerifyFoundEndsWithAVerifyThatFindsNothing) {
  findings_.Verified("n2", Different());
  findings_.Differs(0, one_);
  findings_.Mended(0, one_);
  EXPECT_THAT(events_.Take(), ElementsAre("copies_differ n2 verify f 0", "copies_differ n2 check f 4096"));
  findings_.Verified("n3", {});
  EXPECT_THAT(events_.Take(), IsEmpty()) << "nothing was told of that one";
  findings_.Verified("n2", {});
  EXPECT_THAT(events_.Take(), ElementsAre("copies_equal n2"));
  EXPECT_EQ(Status().verify().differences(), 0u);
  EXPECT_GT(Status().verify().time_us(), 0);
}

TEST_F(CopyFindingsTest, AVerifyThatCouldNotCompareEverythingEndsNothing) {
  findings_.Differs(0, one_);
  events_.Take();
  recovery::VerifyResult busy;
  busy.busy.push_back({"f", recovery::What::kData, one_.extent});
  findings_.Verified("n2", busy);
  EXPECT_THAT(events_.Take(), IsEmpty());
  EXPECT_EQ(findings_.Known(0).size(), 1u);
}

TEST_F(CopyFindingsTest, P5_PlacesThatAreNotKeptKeepTheConditionUntilARoundFindsNoneOfThem) {
  findings_.RoundBegan(100);
  for (uint64_t i = 0; i < CopyFindings::kMostPlaces + 10; ++i) {
    findings_.Differs(0, {FileId{2}, "f", {i * 8192, 4096}});
  }
  findings_.RoundEnded();
  EXPECT_EQ(findings_.Known(0).size(), CopyFindings::kMostPlaces);
  events_.Take();
  for (const CopyFindings::Place& place : findings_.Known(0)) {
    findings_.Mended(0, place);
  }
  EXPECT_THAT(events_.Take(), IsEmpty()) << "the other ten are still there";
  findings_.RoundBegan(100);
  findings_.RoundEnded();
  EXPECT_THAT(events_.Take(), ElementsAre("copies_equal n2"));
}

TEST_F(CopyFindingsTest, P5_ARoundOrAVerifyThatMissedSomethingDoesNotEndWhatWasNotKept) {
  findings_.RoundBegan(100);
  for (uint64_t i = 0; i < CopyFindings::kMostPlaces + 1; ++i) {
    findings_.Differs(0, {FileId{2}, "f", {i * 8192, 4096}});
  }
  findings_.RoundEnded();
  for (const CopyFindings::Place& place : findings_.Known(0)) {
    findings_.Mended(0, place);
  }
  events_.Take();
  recovery::VerifyResult busy;
  busy.busy.push_back({"f", recovery::What::kData, one_.extent});
  findings_.Verified("n2", busy);
  findings_.Differs(0, one_);
  events_.Take();
  findings_.Mended(0, one_);
  findings_.RoundBegan(100);
  findings_.NotCompared(0);
  findings_.RoundEnded();
  EXPECT_THAT(events_.Take(), IsEmpty());
  findings_.RoundBegan(100);
  findings_.NotCompared(1);
  findings_.RoundEnded();
  EXPECT_THAT(events_.Take(), ElementsAre("copies_equal n2"));
}

TEST_F(CopyFindingsTest, OverlappingPlacesOfAFileAreOne) {
  findings_.Differs(0, {FileId{2}, "f", {4096, 8192}});
  findings_.Differs(0, {FileId{2}, "f", {8192, 8192}});
  findings_.Differs(0, {FileId{3}, "g", {4096, 8192}});
  const std::vector<CopyFindings::Place> known = findings_.Known(0);
  ASSERT_EQ(known.size(), 2u);
  EXPECT_EQ(known[0].extent, (Extent{8192, 8192})) << "as it was seen last";
}

TEST_F(CopyFindingsTest, OfAReplicaThatHasLeftNothingIsKnown) {
  findings_.Verified("n2", Different());
  findings_.Differs(0, one_);
  events_.Take();
  findings_.Remove(0);
  EXPECT_THAT(events_.Take(), ElementsAre("copies_equal n2"));
  EXPECT_THAT(findings_.Known(0), IsEmpty());
  EXPECT_FALSE(Status().has_verify());
  EXPECT_EQ(Status().check().differences(), 0u);
}

TEST_F(CopyFindingsTest, StatusCountsRoundsAndBytes) {
  findings_.RoundBegan(100);
  findings_.Looked(60);
  findings_.Compared(0, 60, 4);
  EXPECT_EQ(Status().check().round_done(), 60u);
  EXPECT_EQ(Status().check().round_bytes(), 100u);
  findings_.RoundEnded();
  findings_.RoundBegan(50);
  const control::CheckStatus check = Status().check();
  EXPECT_EQ(check.rounds(), 1u);
  EXPECT_EQ(check.round_done(), 0u);
  EXPECT_EQ(check.bytes_compared(), 60u);
  EXPECT_EQ(check.busy_bytes(), 4u);
  EXPECT_GT(check.time_us(), 0);
  EXPECT_EQ(Status(1).check().time_us(), 0);
  EXPECT_FALSE(Status().has_verify());
}

}  // namespace
}  // namespace pmirror::fs
