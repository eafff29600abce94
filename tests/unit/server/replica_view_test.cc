// SPDX-License-Identifier: BSD-3-Clause
// What a primary learns of a replica's copy when it asks for its first session.
#include "server/replica_view.h"

#include <gtest/gtest.h>

#include "tests/unit/server/replica_bed.h"

namespace pmirror::server {
namespace {

control::OpenSessionRequest DaemonRequest(uint64_t mount_number) {
  control::OpenSessionRequest request;
  request.set_node("n1");
  request.set_epoch(1);
  request.set_daemon(true);
  request.set_generation(77);
  request.set_mount_number(mount_number);
  return request;
}

TEST(ReplicaView, P5_ANewMountCanLearnHowTheLastOneEnded) {
  ReplicaBed bed;
  bed.Start();
  ReplicaVolumeView view("n2", bed.volume(), bed.listener());

  EXPECT_EQ(view.CopyState().generation(), 0U) << "it had never taken part";
  const auto first = view.OpenSession(DaemonRequest(1));
  ASSERT_TRUE(first.ok()) << first.status();
  control::LeaveRequest leave;
  leave.set_epoch(1);
  leave.set_generation(77);
  leave.set_mount_number(1);
  const absl::Status left = view.Leave(leave);
  ASSERT_TRUE(left.ok()) << left;

  EXPECT_EQ(view.CopyState().mount_number(), 1U);
  EXPECT_TRUE(view.CopyState().clean());
  const auto second = view.OpenSession(DaemonRequest(2));
  ASSERT_TRUE(second.ok()) << second.status();

  EXPECT_EQ(view.CopyState().mount_number(), 2U);
  EXPECT_FALSE(view.CopyState().clean()) << "the second mount never left";
}

control::ReplicaStatus StatusOf(ReplicaVolumeView& view) {
  control::VolumeStatus status;
  view.FillStatus(status);
  return status.replicas(0);
}

TEST(ReplicaView, P6_AConnectedPrimaryIsThereUntilItIsSilentBeyondTheDeadline) {
  for (const bool hasty : {false, true}) {
    ReplicaBed bed;
    bed.options().deadline = hasty ? std::chrono::nanoseconds(1) : std::chrono::hours(1);
    bed.Start();
    ReplicaVolumeView view("n2", bed.volume(), bed.listener());
    EXPECT_EQ(StatusOf(view).state(), "disconnected");
    EXPECT_EQ(StatusOf(view).reason(), "the primary is not connected");
    const ReplicaClient client = bed.Open(SessionKind::kDaemon);
    EXPECT_EQ(StatusOf(view).state(), hasty ? "disconnected" : "in-sync");
    EXPECT_EQ(StatusOf(view).reason().find("no word from n1") != std::string::npos, hasty)
        << StatusOf(view).reason();
  }
}

TEST(ReplicaView, P5_AFileThatTheCopyLacksIsNotFoundWhetherOrNotAnybodyHasAskedForTheInventory) {
  ReplicaBed bed;
  bed.Start();
  ReplicaVolumeView view("n2", bed.volume(), bed.listener());
  EXPECT_TRUE(absl::IsNotFound(view.Checksums(FileId{99}, {0, 4096}, 4096).status()));
  ASSERT_TRUE(view.Inventory(recovery::InventoryDetail::kCompare).ok());
  EXPECT_TRUE(absl::IsNotFound(view.Checksums(FileId{99}, {0, 4096}, 4096).status()));
}

}  // namespace
}  // namespace pmirror::server
