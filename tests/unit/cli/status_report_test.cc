// SPDX-License-Identifier: BSD-3-Clause
// What `pmirror status` makes of the daemons' answers: the primary's word counts, and what could not be asked
// is said.
#include "cli/status_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace pmirror::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

control::StatusReply Answer(const std::string& node, const std::string& role, const std::string& replica,
                            const std::string& state) {
  control::StatusReply reply;
  reply.set_node(node);
  control::VolumeStatus& volume = *reply.add_volumes();
  volume.set_name("v0");
  volume.set_primary("n1");
  volume.set_role(role);
  volume.set_rpo("0");
  volume.set_epoch(role == "primary" ? 7 : 6);
  control::ReplicaStatus& entry = *volume.add_replicas();
  entry.set_node(replica);
  entry.set_state(state);
  entry.set_durable_seq(5);
  entry.set_placement("message");
  return reply;
}

TEST(StatusReportTest, ThePrimarysWordCountsInAnyOrderOfTheAnswers) {
  const control::StatusReply primary = Answer("n1", "primary", "n2", "disconnected");
  const control::StatusReply replica = Answer("n2", "replica", "n2", "in-sync");
  for (const std::vector<control::StatusReply>& replies :
       {std::vector{primary, replica}, std::vector{replica, primary}}) {
    const std::vector<control::VolumeStatus> volumes = Merge(replies);
    ASSERT_EQ(volumes.size(), 1u);
    EXPECT_EQ(volumes[0].role(), "primary");
    ASSERT_EQ(volumes[0].replicas_size(), 1);
    EXPECT_EQ(volumes[0].replicas(0).state(), "disconnected");
  }
}

TEST(StatusReportTest, WithoutThePrimaryEveryReplicaSpeaksForItself) {
  const std::vector<control::VolumeStatus> volumes =
      Merge({Answer("n2", "replica", "n2", "disconnected"), Answer("n3", "replica", "n3", "disconnected")});
  ASSERT_EQ(volumes.size(), 1u);
  EXPECT_EQ(volumes[0].replicas_size(), 2);
  EXPECT_THAT(StatusTable({Answer("n2", "replica", "n2", "disconnected")}),
              HasSubstr("the primary did not answer"));
  EXPECT_THAT(StatusTable({Answer("n1", "primary", "n2", "in-sync")}), Not(HasSubstr("did not answer")));
}

TEST(StatusReportTest, TheJsonHasTheFieldsThatScriptsRelyOn) {
  control::StatusReply reply = Answer("n1", "primary", "n2", "in-sync");
  reply.add_warnings("page size differs");
  const nlohmann::ordered_json json = StatusJson({reply}, {{"n2", "cut"}});
  const nlohmann::ordered_json& volume = json["volumes"][0];
  EXPECT_EQ(volume["name"], "v0");
  EXPECT_EQ(volume["epoch"], 7);
  EXPECT_EQ(volume["primary"], "n1");
  EXPECT_EQ(volume["rpo"], "0");
  const nlohmann::ordered_json& replica = volume["replicas"][0];
  EXPECT_EQ(replica["node"], "n2");
  EXPECT_EQ(replica["state"], "in-sync");
  EXPECT_EQ(replica["dirty_bytes"], 0);
  EXPECT_EQ(replica["durable_seq"], 5);
  EXPECT_EQ(replica["placement"], "message");
  EXPECT_EQ(json["warnings"][0], "page size differs");
  EXPECT_EQ(json["unreachable"][0]["node"], "n2");
}

}  // namespace
}  // namespace pmirror::cli
