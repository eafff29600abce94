// SPDX-License-Identifier: BSD-3-Clause
// The ticket table at its limits.
#include "interpose/ticket_log.h"

#include <gtest/gtest.h>

#include <array>
#include <memory>

namespace pmirror::interpose {
namespace {

constexpr FileId kFile{7};

class TicketLogTest : public ::testing::Test {
 protected:
  TicketLogTest() { log_->Attach(table_.get()); }
  std::unique_ptr<TicketTable> table_ = std::make_unique<TicketTable>();
  std::unique_ptr<TicketLog> log_ = std::make_unique<TicketLog>();
};

TEST_F(TicketLogTest, OpenTicketIsVisibleToTheDaemon) {
  const auto held = log_->Open(3, kFile, {100, 50});
  ASSERT_TRUE(held.ok());
  const Ticket& ticket = table_->tickets[held.value().slot];
  EXPECT_EQ(ticket.state.load(), static_cast<uint32_t>(TicketState::kOpen));
  EXPECT_EQ(ticket.volume, 3u);
  EXPECT_EQ(ticket.file, Raw(kFile));
  EXPECT_EQ(ticket.offset, 100u);
  EXPECT_EQ(ticket.length, 50u);
  EXPECT_EQ(ticket.serial.load(), held.value().serial);
}

TEST_F(TicketLogTest, SerialsGrow) {
  const auto first = log_->Open(0, kFile, {0, 1});
  log_->Close(first.value(), {});
  const auto second = log_->Open(0, kFile, {0, 1});
  EXPECT_EQ(second.value().slot, first.value().slot);
  EXPECT_GT(second.value().serial, first.value().serial);
}

TEST_F(TicketLogTest, FullTableRefusesToOpen) {
  for (size_t i = 0; i < kMaxTickets; ++i) {
    ASSERT_TRUE(log_->Open(0, kFile, {i, 1}).ok());
  }
  EXPECT_EQ(log_->Open(0, kFile, {0, 1}).error().code, EAGAIN);
  EXPECT_EQ(table_->abandoned.load(), 0u);
}

TEST_F(TicketLogTest, RedoThatDoesNotFitAbandonsTheProcess) {
  for (size_t i = 0; i < kMaxTickets; ++i) {
    ASSERT_TRUE(log_->MarkRedo(0, kFile, {10 * i, 1}));
  }
  EXPECT_FALSE(log_->MarkRedo(0, kFile, {5, 1}));
  EXPECT_EQ(table_->abandoned.load(), 1u);
}

TEST_F(TicketLogTest, CollectedRedoIsClearedOnlyWhileItIsTheSame) {
  std::array<Extent, 8> room;
  ExtentList extents(room);
  TicketLog::Others others;
  ASSERT_TRUE(log_->MarkRedo(0, kFile, {10, 10}));
  ASSERT_TRUE(log_->MarkRedo(0, kFile, {50, 10}));
  log_->CollectRedo(0, kFile, {0, 100}, extents, others);
  EXPECT_EQ(extents.extents().size(), 2u);
  ASSERT_TRUE(log_->MarkRedo(0, kFile, {52, 1}));
  log_->ClearRedo(others);
  EXPECT_EQ(table_->tickets[0].state.load(), static_cast<uint32_t>(TicketState::kFree));
  EXPECT_EQ(table_->tickets[1].state.load(), static_cast<uint32_t>(TicketState::kRedo));
}

TEST_F(TicketLogTest, TicketsOfOtherFilesAndVolumesAreNobodysBusiness) {
  std::array<Extent, 8> room;
  ExtentList extents(room);
  TicketLog::Others others;
  ASSERT_TRUE(log_->Open(0, FileId{8}, {0, 100}).ok());
  ASSERT_TRUE(log_->Open(1, kFile, {0, 100}).ok());
  ASSERT_TRUE(log_->MarkRedo(1, kFile, {0, 100}));
  const auto own = log_->Open(0, kFile, {0, 100});
  log_->Look(own.value(), {0, 100}, false, extents, others);
  EXPECT_TRUE(extents.empty());
  EXPECT_EQ(others.open_count + others.redo_count, 0u);
}

}  // namespace
}  // namespace pmirror::interpose
