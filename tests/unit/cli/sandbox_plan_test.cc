// SPDX-License-Identifier: BSD-3-Clause
// Sandboxes on paper: names, addresses, the configuration files that the daemon must accept, the JSON that
// scripts rely on, refusals.
#include "cli/sandbox_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "cli/network.h"
#include "server/config.h"

namespace pmirror::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr char kUuid0[] = "01234567-89ab-4def-8123-456789abcdef";
constexpr char kUuid1[] = "11234567-89ab-4def-8123-456789abcdef";

Sandbox Plan(int nodes, bool netns, const std::string& directory = "/d") {
  SandboxOptions options;
  options.directory = directory;
  options.nodes = nodes;
  options.volumes = 2;
  options.netns = netns;
  std::vector<uint16_t> ports(2 * static_cast<size_t>(nodes));
  for (size_t i = 0; i < ports.size(); ++i) {
    ports[i] = static_cast<uint16_t>(40000 + i);
  }
  return PlanSandbox(options, ports, {kUuid0, kUuid1});
}

TEST(SandboxPlanTest, PrimariesCross) {
  const Sandbox sandbox = Plan(2, false);
  EXPECT_EQ(sandbox.volumes[0].primary, "n1");
  EXPECT_EQ(sandbox.volumes[1].primary, "n2");
  EXPECT_EQ(Plan(1, false).volumes[1].primary, "n1");
}

TEST(SandboxPlanTest, WithoutNamespacesEveryNodeHasPortsOfItsOwn) {
  std::set<std::string> addresses;
  for (const SandboxNode& node : Plan(3, false).nodes) {
    EXPECT_EQ(node.netns, "");
    addresses.insert(node.control.begin(), node.control.end());
    addresses.insert(node.data.begin(), node.data.end());
  }
  EXPECT_EQ(addresses.size(), 6u);
}

TEST(SandboxPlanTest, WithNamespacesEveryNodeHasTwoPathsAndBothFamilies) {
  const Sandbox sandbox = Plan(2, true);
  EXPECT_THAT(sandbox.nodes[1].control, ElementsAre("10.77.1.2:7400", "10.77.2.2:7400", "[fd77:1::2]:7400"));
  EXPECT_THAT(sandbox.nodes[1].data, ElementsAre("10.77.1.2:7401", "10.77.2.2:7401", "[fd77:1::2]:7401"));
  EXPECT_THAT(sandbox.nodes[1].netns, StartsWith("pmir-"));
  EXPECT_NE(sandbox.nodes[0].netns, sandbox.nodes[1].netns);
}

TEST(SandboxPlanTest, ACutCoversEveryAddressOfTheOtherNode) {
  const SandboxNode node = Plan(2, true).nodes[1];
  EXPECT_EQ(DeafRules(node),
            "table inet pmirror_cut_n2 {\n chain arriving {\n  type filter hook input priority 0\n"
            "  ip saddr 10.77.1.2 drop\n  ip saddr 10.77.2.2 drop\n"
            "  ip6 saddr fd77:1::2 drop\n  ip6 saddr fd77:2::2 drop\n }\n}\n");
}

TEST(SandboxPlanTest, DirectoriesHaveNamespacesOfTheirOwn) {
  EXPECT_NE(Plan(2, true, "/a").nodes[0].netns, Plan(2, true, "/b").nodes[0].netns);
  EXPECT_EQ(Plan(2, true, "/a").nodes[0].netns, Plan(2, true, "/a").nodes[0].netns);
}

class SandboxConfigTest : public ::testing::TestWithParam<std::tuple<int, bool, const char*>> {};

TEST_P(SandboxConfigTest, TheDaemonTakesEveryFileThatIsWritten) {
  const auto [nodes, netns, directory] = GetParam();
  const Sandbox sandbox = Plan(nodes, netns, directory);
  for (const SandboxNode& node : sandbox.nodes) {
    const absl::StatusOr<server::Config> config = server::ParseConfig(ConfigOf(sandbox, node), "f");
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->name, node.name);
    EXPECT_EQ(config->ControlSocket(), node.Control());
    EXPECT_EQ(config->socket, node.Socket());
    EXPECT_EQ(config->peers.size(), sandbox.nodes.size() - 1);
    ASSERT_EQ(config->volumes.size(), 2u);
    EXPECT_EQ(config->volumes[1].primary, sandbox.volumes[1].primary);
    EXPECT_EQ(config->volumes[1].backing, sandbox.Backing(node, sandbox.volumes[1]));
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, SandboxConfigTest,
                         ::testing::Combine(::testing::Values(1, 2, 9), ::testing::Bool(),
                                            ::testing::Values("/d", "/with \"quotes\" and \\ and \t")));

TEST(SandboxPlanTest, TheDescriptionIsThatOfV0FirstAndHoldsEveryVolume) {
  Sandbox sandbox = Plan(2, true);
  sandbox.nodes[0].pid = 17;
  const nlohmann::ordered_json json = Describe(sandbox);
  EXPECT_EQ(json["volume"], "v0");
  EXPECT_EQ(json["primary"], "n1");
  EXPECT_EQ(json["nodes"][0]["name"], "n1");
  EXPECT_EQ(json["nodes"][0]["pid"], 17);
  EXPECT_EQ(json["nodes"][0]["control"], "unix:/d/n1/state/control.sock");
  EXPECT_EQ(json["nodes"][0]["backing"], "/d/n1/v0/backing");
  EXPECT_EQ(json["nodes"][0]["mount"], "/d/n1/v0/mnt");
  EXPECT_EQ(json["nodes"][0]["netns"], sandbox.nodes[0].netns);
  EXPECT_EQ(json["volumes"][1]["volume"], "v1");
  EXPECT_EQ(json["volumes"][1]["primary"], "n2");
  EXPECT_EQ(json["volumes"][1]["nodes"][1]["mount"], "/d/n2/v1/mnt");
}

TEST(SandboxPlanTest, BackingDirectoriesMayLieElsewhere) {
  SandboxOptions options;
  options.directory = "/d";
  options.backing_root = "/dev/shm";
  const Sandbox sandbox = PlanSandbox(options, {1, 2, 3, 4}, {kUuid0});
  EXPECT_EQ(sandbox.Backing(sandbox.nodes[0], sandbox.volumes[0]),
            "/dev/shm/pmirror-" + sandbox.id + "/n1/v0/backing");
  EXPECT_EQ(sandbox.Mount(sandbox.nodes[0], sandbox.volumes[0]), "/d/n1/v0/mnt");
}

TEST(SandboxPlanTest, WhatIsSavedIsRestored) {
  Sandbox sandbox = Plan(3, true);
  sandbox.nodes[2].pid = 4;
  const absl::StatusOr<Sandbox> restored = Restore(Save(sandbox));
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ(Save(*restored), Save(sandbox));
  EXPECT_EQ(Describe(*restored), Describe(sandbox));
  EXPECT_EQ(restored->nodes[2].addresses, sandbox.nodes[2].addresses);
}

TEST(SandboxPlanTest, P9_AStateFileThatIsNoneIsRefused) {
  for (const char* text : {"", "{", "{}", "[]", R"({"directory": 7})"}) {
    EXPECT_EQ(Restore(text).status().code(), absl::StatusCode::kDataLoss) << text;
  }
}

struct Refusal {
  const char* name;
  void (*make)(SandboxOptions&);
  const char* sentence;
};

class SandboxRefusalTest : public ::testing::TestWithParam<Refusal> {};

TEST_P(SandboxRefusalTest, P9_WhatThisVersionLacksIsRefusedWithTheRemedy) {
  SandboxOptions options;
  GetParam().make(options);
  const absl::Status status = CheckOptions(options);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().sentence));
}

INSTANTIATE_TEST_SUITE_P(
    Options, SandboxRefusalTest,
    ::testing::Values(
        Refusal{"Rpo", [](SandboxOptions& o) { o.rpo = "soon"; }, "--rpo soon: allowed: 0, a time"},
        Refusal{"OnLag", [](SandboxOptions& o) { o.on_lag = "wait"; }, "--on-lag wait: allowed"},
        Refusal{"Etcd", [](SandboxOptions& o) { o.arbiter = "etcd"; }, "use manual"},
        Refusal{"Arbiter", [](SandboxOptions& o) { o.arbiter = "dice"; }, "allowed: manual"},
        Refusal{"Nodes", [](SandboxOptions& o) { o.nodes = 10; }, "1 to 9"},
        Refusal{"Volumes", [](SandboxOptions& o) { o.volumes = 0; }, "1 to 32"}),
    [](const ::testing::TestParamInfo<Refusal>& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace pmirror::cli
