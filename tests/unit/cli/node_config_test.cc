// SPDX-License-Identifier: BSD-3-Clause
// The two keys that the command line tool reads of a node's configuration mean what they mean to the daemon.
#include "cli/node_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/config.h"

namespace pmirror::cli {
namespace {

using ::testing::HasSubstr;

constexpr char kHead[] = "name = \"n1\"\ncontrol = [\"h:1\"]\ndata = [\"h:2\"]\n";

class NodeConfigTest : public ::testing::TestWithParam<const char*> {};

TEST_P(NodeConfigTest, AgreesWithTheDaemonOnItsSockets) {
  const std::string text = std::string(kHead) + GetParam();
  const absl::StatusOr<NodeConfig> ours = ParseNodeConfig(text, "f");
  const absl::StatusOr<server::Config> daemons = server::ParseConfig(text, "f");
  ASSERT_TRUE(ours.ok() && daemons.ok()) << daemons.status();
  EXPECT_EQ(ours->control, daemons->ControlSocket());
  EXPECT_EQ(ours->socket, daemons->socket.string());
}

INSTANTIATE_TEST_SUITE_P(Files, NodeConfigTest,
                         ::testing::Values("", "state_dir = \"/s\"\n",
                                           "state_dir = \"/s\"\nsocket = \"/run/x\"\n"));

TEST(NodeConfigFileTest, P9_ABrokenOrMissingFileIsNamedWithTheRemedy) {
  EXPECT_THAT(std::string(ParseNodeConfig("=", "f.toml").status().message()),
              HasSubstr("pmirrord --config f.toml --check"));
  EXPECT_THAT(std::string(ReadNodeConfig("/nonexistent.toml").status().message()), HasSubstr("--sandbox"));
}

}  // namespace
}  // namespace pmirror::cli
