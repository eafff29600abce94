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

TEST(StatusReportTest, ComparisonsAreToldAndNothingIsToldOfThoseThatNeverWere) {
  control::StatusReply reply = Answer("n1", "primary", "n2", "in-sync");
  nlohmann::ordered_json replica = StatusJson({reply}, {})["volumes"][0]["replicas"][0];
  EXPECT_TRUE(replica["check"].is_null());
  EXPECT_TRUE(replica["verify"].is_null());
  EXPECT_THAT(StatusTable({reply}), Not(HasSubstr("verified")));

  control::ReplicaStatus& status = *reply.mutable_volumes(0)->mutable_replicas(0);
  status.mutable_check()->set_round_bytes(10);
  replica = StatusJson({reply}, {})["volumes"][0]["replicas"][0];
  EXPECT_TRUE(replica["check"]["time"].is_null()) << "nothing is compared yet";
  EXPECT_FALSE(replica["check"].contains("first"));
  EXPECT_THAT(StatusTable({reply}), Not(HasSubstr("checked")));

  status.mutable_check()->set_time_us(1'500'000);
  status.mutable_check()->set_differences(2);
  status.mutable_check()->mutable_first()->set_path("a/f");
  status.mutable_check()->mutable_first()->set_what("data");
  status.mutable_verify()->set_time_us(2'000'000);
  status.mutable_verify()->set_differences(1);
  replica = StatusJson({reply}, {})["volumes"][0]["replicas"][0];
  EXPECT_EQ(replica["check"]["time"], 1.5);
  EXPECT_EQ(replica["check"]["first"]["path"], "a/f");
  EXPECT_EQ(replica["verify"]["equal"], false);
  const std::string table = StatusTable({reply});
  EXPECT_THAT(table, HasSubstr("until 1970-01-01 00:00:01Z: 0 bytes, 2 places differ"));
  EXPECT_THAT(table, HasSubstr("/a/f: data"));
  EXPECT_THAT(table, HasSubstr("verified at 1970-01-01 00:00:02Z: 1 differences"));
  status.mutable_verify()->set_differences(0);
  EXPECT_THAT(StatusTable({reply}), HasSubstr("Z: equal"));
}

}  // namespace
}  // namespace pmirror::cli
