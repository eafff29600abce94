// SPDX-License-Identifier: BSD-3-Clause
// What was decided about volumes while daemons ran comes back as it was, and a damaged file is named.
#include "server/volume_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "tests/unit/server/temp_directory.h"

namespace pmirror::server {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr char kNode[] = R"(
name = "n1"
control = ["192.0.2.1:7400"]
data = ["192.0.2.1:7401"]
state_dir = "STATE"
[[node]]
name = "n2"
control = ["192.0.2.2:7400"]
[[node]]
name = "n3"
control = ["192.0.2.3:7400"]
)";
constexpr char kVolume[] = R"(
[[volume]]
name = "v0"
uuid = "01234567-89ab-cdef-0123-456789abcdef"
backing = "/srv/v0"
mount = "/mnt/v0"
nodes = ["n1", "n2"]
primary = "n1"
rpo = "50ms"
replica_rpo = ["n2=0"]
on_lag = "proceed"
on_loss = "fail"
deadline = "250ms"
domain = "volatile"
check = "90s"
)";

class VolumeStoreTest : public testing::Test {
 protected:
  Config Read(bool with_volume) {
    std::string text = kNode;
    text.replace(text.find("STATE"), 5, scratch_.path());
    absl::StatusOr<Config> config = ParseConfig(text + (with_volume ? kVolume : ""), "n1.toml");
    EXPECT_TRUE(config.ok()) << config.status();
    return *config;
  }

  TempDirectory scratch_;
};

TEST_F(VolumeStoreTest, AVolumeComesBackAsItWasMade) {
  const Config made = Read(true);
  ASSERT_TRUE(StoreVolume(made, made.volumes[0]).ok());
  Config config = Read(false);
  ASSERT_TRUE(LoadStored(config).ok());
  ASSERT_EQ(config.volumes.size(), 1u);
  const VolumeConfig& was = made.volumes[0];
  const VolumeConfig& is = config.volumes[0];
  EXPECT_EQ(is.name, was.name);
  EXPECT_EQ(is.uuid, was.uuid);
  EXPECT_EQ(is.backing, was.backing);
  EXPECT_EQ(is.mount, was.mount);
  EXPECT_EQ(is.nodes, was.nodes);
  EXPECT_EQ(is.rpo, was.rpo);
  EXPECT_EQ(is.rpo_of, was.rpo_of);
  EXPECT_EQ(is.on_loss, was.on_loss);
  EXPECT_EQ(is.deadline, was.deadline);
  EXPECT_EQ(is.suspend, was.suspend);
  EXPECT_EQ(is.domain, was.domain);
  EXPECT_EQ(is.check, was.check);
  EXPECT_EQ(is.credit, was.credit);
  ASSERT_TRUE(ForgetVolume(config, is).ok());
  Config without = Read(false);
  ASSERT_TRUE(LoadStored(without).ok());
  EXPECT_TRUE(without.volumes.empty());
}

TEST_F(VolumeStoreTest, WhoHoldsACopyIsWhatWasDecidedLast) {
  Config config = Read(true);
  VolumeConfig& volume = config.volumes[0];
  volume.nodes = {"n1", "n3", "n2"};
  volume.filling = {"n3"};
  volume.replacing = {{"n2", "n3"}};
  volume.spares = {"n2"};
  ASSERT_TRUE(StoreMembers(config, volume).ok());
  Config again = Read(true);
  ASSERT_TRUE(LoadStored(again).ok());
  EXPECT_THAT(again.volumes[0].nodes, ElementsAre("n1", "n3", "n2"));
  EXPECT_THAT(again.volumes[0].filling, ElementsAre("n3"));
  EXPECT_THAT(again.volumes[0].replacing, ElementsAre(testing::Pair("n2", "n3")));
  EXPECT_TRUE(HoldsCopy(again, again.volumes[0]));
  volume.nodes = {"n3", "n2"};
  EXPECT_FALSE(HoldsCopy(config, volume));
}

TEST_F(VolumeStoreTest, VolumesKeepTheOrderInWhichTheyWereMade) {
  Config config = Read(true);
  VolumeConfig volume = config.volumes[0];
  for (const char* name : {"v3", "v1", "v2"}) {
    volume.name = name;
    volume.uuid[0] = std::byte{static_cast<uint8_t>(name[1])};
    volume.backing = std::string("/srv/") + name;
    volume.mount = std::string("/mnt/") + name;
    ASSERT_TRUE(StoreVolume(config, volume).ok());
  }
  Config again = Read(true);
  ASSERT_TRUE(LoadStored(again).ok());
  std::vector<std::string> names;
  for (const VolumeConfig& known : again.volumes) {
    names.push_back(known.name);
  }
  EXPECT_THAT(names, ElementsAre("v0", "v3", "v1", "v2"));
  EXPECT_TRUE(*IsStored(again, again.volumes[1]));
  EXPECT_FALSE(*IsStored(again, again.volumes[0])) << "it stands in the configuration file";
}

TEST_F(VolumeStoreTest, OnlyThePrimaryHasToKnowTheOtherNodes) {
  Config config = Read(true);
  VolumeConfig& volume = config.volumes[0];
  volume.nodes = {"n1", "n2", "n9"};
  ASSERT_TRUE(StoreMembers(config, volume).ok());
  Config primary = Read(true);
  EXPECT_THAT(std::string(LoadStored(primary).message()), HasSubstr("no [[node]]"));
  Config replica = Read(true);
  replica.volumes[0].primary = "n2";
  ASSERT_TRUE(LoadStored(replica).ok());
  EXPECT_THAT(replica.volumes[0].nodes, ElementsAre("n1", "n2", "n9"));
}

TEST_F(VolumeStoreTest, NothingIsSaidOfANodeThatHasLeft) {
  VolumeConfig volume = Read(true).volumes[0];
  EXPECT_THAT(ToToml(volume), HasSubstr("n2="));
  volume.nodes = {"n1", "n3"};
  EXPECT_THAT(ToToml(volume), testing::Not(HasSubstr("n2=")));
}

TEST_F(VolumeStoreTest, P9ADamagedFileIsNamedAndNothingIsServed) {
  Config config = Read(true);
  ASSERT_TRUE(StoreMembers(config, config.volumes[0]).ok());
  const std::string path = scratch_.path() + "/volumes/v0.members.toml";
  std::ofstream(path) << "uuid = 7";
  const absl::Status status = LoadStored(config);
  EXPECT_THAT(std::string(status.message()), HasSubstr(path));
  std::ofstream(scratch_.path() + "/volumes/v0.toml") << "[[volume]]";
  EXPECT_THAT(std::string(LoadStored(config).message()),
              HasSubstr("/volumes/v0.toml is no NUMBER-NAME.toml"));
  std::filesystem::remove(scratch_.path() + "/volumes/v0.toml");
  std::ofstream(path) << "uuid = \"11111111-89ab-cdef-0123-456789abcdef\"\nnodes = [\"n1\"]\n";
  EXPECT_THAT(std::string(LoadStored(config).message()), HasSubstr("is not that of volume v0"));
}

}  // namespace
}  // namespace pmirror::server
