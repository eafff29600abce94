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

TEST(ReplicaView, P5_ANewMountLearnsHowTheLastOneEndedNotWhatItsOwnRequestMadeOfIt) {
  ReplicaBed bed;
  bed.Start();
  ReplicaVolumeView view("n2", bed.volume(), bed.listener());

  const auto first = view.OpenSession(DaemonRequest(1));
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(first->replica().generation(), 0U) << "it had never taken part";
  control::LeaveRequest leave;
  leave.set_epoch(1);
  leave.set_generation(77);
  leave.set_mount_number(1);
  const absl::Status left = view.Leave(leave);
  ASSERT_TRUE(left.ok()) << left;

  const auto second = view.OpenSession(DaemonRequest(2));
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(second->replica().mount_number(), 1U);
  EXPECT_TRUE(second->replica().clean());

  const auto third = view.OpenSession(DaemonRequest(3));
  ASSERT_TRUE(third.ok()) << third.status();
  EXPECT_EQ(third->replica().mount_number(), 2U);
  EXPECT_FALSE(third->replica().clean()) << "the second mount never left";
}

}  // namespace
}  // namespace pmirror::server
