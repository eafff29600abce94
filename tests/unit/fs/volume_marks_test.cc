// SPDX-License-Identifier: BSD-3-Clause
// Which files the engine marks, when a mark is durable, and how many bytes are in doubt.
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <vector>

#include "recovery/mark_map.h"
#include "tests/unit/fs/engine_fixture.h"
#include "tests/unit/server/temp_directory.h"

namespace pmirror::fs {
namespace {

class MarkedVolumeTest : public VolumeReplicatorTest {
 protected:
  void SetUp() override { Open(1); }
  void TearDown() override {
    file_.reset();
    engine_.reset();
    marks_.reset();
  }
  void Open(uint64_t mount_number) {
    marks_.reset();
    marks_ =
        std::move(recovery::MarkMap::Open(directory_.path() + "/marks",
                                          {.volume = {}, .generation = 5, .replicas = {"n2"}}, mount_number)
                      ->map);
    options_.marks = marks_.get();
    ASSERT_TRUE(marks_->Resynced(0, marks_->BeginSettle([](FileId) { return false; })).ok());
  }

  server::TempDirectory directory_;
  std::unique_ptr<recovery::MarkMap> marks_;
};

TEST_F(MarkedVolumeTest, P3_AFileIsMarkedBeforeItsFirstStoreAndStaysSoWhileItIsOpen) {
  Start(OnLoss::kFail, seconds(20));
  EXPECT_TRUE(marks_->Marked(0).empty()) << "it is open for reading only";
  ASSERT_EQ(engine_->BeforeWriting(*file_), 0);
  EXPECT_EQ(marks_->Marked(0), std::vector<FileId>{kFile});
  ASSERT_TRUE(engine_->Resynced(0, engine_->BeginSettle()).ok());
  EXPECT_EQ(marks_->Marked(0), std::vector<FileId>{kFile}) << "stores may come at any time";
  file_.reset();
  ASSERT_TRUE(engine_->Resynced(0, engine_->BeginSettle()).ok());
  EXPECT_TRUE(marks_->Marked(0).empty());
}

TEST_F(MarkedVolumeTest, P3_AMarkIsDurableWhenTheFileIsOlderThanTheMount) {
  Start(OnLoss::kFail, seconds(20));
  const FileId older{(uint64_t{1} << 40) - 1};  // of mount 0
  const auto file = engine_->Attach(older, backing_.get());
  ASSERT_EQ(engine_->BeforeWriting(*file), 0);
  ASSERT_EQ(engine_->BeforeWriting(*file_), 0);  // of this mount: noted
  options_.marks = nullptr;
  engine_.reset();
  recovery::MarkMap* const abandoned = marks_.release();  // as a crash leaves it: not flushed
  const auto opened = recovery::MarkMap::Open(directory_.path() + "/marks",
                                              {.volume = {}, .generation = 5, .replicas = {"n2"}}, 2);
  EXPECT_EQ(opened->map->Marked(0), std::vector<FileId>{older});
  EXPECT_EQ(opened->map->base_mount(0), 1U) << "files made since mount 1 are in doubt by their ids";
  delete abandoned;
}

TEST_F(MarkedVolumeTest, BytesInDoubtAreThoseOfMarkedFilesOpenOrClosed) {
  Start(OnLoss::kProceed, seconds(20));
  page_->SetMembers(0, 0);
  EXPECT_EQ(engine_->MarkedBytes(0), 0U);
  ASSERT_EQ(engine_->BeforeWriting(*file_), 0);
  ASSERT_EQ(Write(8192, std::string(100, 'x')), 0);
  EXPECT_EQ(engine_->MarkedBytes(0), 8292U);
  file_.reset();
  EXPECT_EQ(engine_->MarkedBytes(0), 8292U);
}

TEST_F(MarkedVolumeTest, AReplicaOfWhichEverythingIsInDoubtDoesNotLookClean) {
  Start(OnLoss::kProceed, seconds(20));
  page_->SetMembers(0, 0);
  ASSERT_TRUE(marks_->MarkAll(0).ok());
  EXPECT_GT(engine_->MarkedBytes(0), 0U);
}

}  // namespace
}  // namespace pmirror::fs
