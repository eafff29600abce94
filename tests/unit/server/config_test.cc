// SPDX-License-Identifier: BSD-3-Clause
// Configuration files: what a good one means, and that a bad one gives one error with place, key, complaint
// and what is allowed (P9).
#include "server/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_replace.h"

namespace pmirror::server {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using namespace std::chrono_literals;

constexpr char kGood[] = R"(name = "n1"
control = ["10.0.0.1:7400", "[fd00::1]:7400"]
data = ["10.0.0.1:7401"]
state_dir = "/state"

[[node]]
name = "n2"
control = ["10.0.0.2:7400"]

[[volume]]
name = "v0"
uuid = "01234567-89ab-cdef-0123-456789abcdef"
backing = "/data/v0"
mount = "/mnt/v0"
nodes = ["n2", "n1"]
primary = "n1"
)";

Config Good(const std::string& text) {
  absl::StatusOr<Config> config = ParseConfig(text, "f.toml");
  EXPECT_TRUE(config.ok()) << config.status();
  return config.ok() ? *std::move(config) : Config{};
}

TEST(ConfigTest, MinimalFileGetsTheDefaults) {
  const Config config = Good(kGood);
  EXPECT_EQ(config.name, "n1");
  EXPECT_THAT(config.control, ElementsAre("10.0.0.1:7400", "[fd00::1]:7400"));
  EXPECT_EQ(config.socket, "/state/local.sock");
  EXPECT_EQ(config.ControlSocket(), "unix:/state/control.sock");
  EXPECT_EQ(config.log_level, LogLevel::kInfo);
  ASSERT_NE(config.Peer("n2"), nullptr);
  EXPECT_EQ(config.Peer("n3"), nullptr);
  ASSERT_EQ(config.volumes.size(), 1u);
  const VolumeConfig& volume = config.volumes[0];
  EXPECT_EQ(volume.uuid[0], std::byte{0x01});
  EXPECT_EQ(volume.uuid[15], std::byte{0xef});
  EXPECT_THAT(volume.NodesBut("n1"), ElementsAre("n2"));
  EXPECT_EQ(volume.on_loss, OnLoss::kSuspend);
  EXPECT_EQ(volume.deadline, 5s);
  EXPECT_EQ(volume.suspend, 60s);
  EXPECT_EQ(volume.domain, Domain::kFile);
  EXPECT_EQ(volume.check, 24h);
  EXPECT_EQ(volume.credit, 8u << 20);
}

TEST(ConfigTest, EveryOptionalKeyIsTaken) {
  const Config config =
      Good(absl::StrReplaceAll(
               kGood, {{"state_dir", "log_level = \"debug\"\nsocket = \"/run/p.sock\"\nstate_dir"}}) +
           "rpo = \"50ms\"\non_lag = \"proceed\"\nreplica_rpo = [\"n1=0\"]\non_loss = \"fail\"\ndeadline = "
           "\"250ms\"\nsuspend = \"2m\"\ndomain = \"pmem\"\ncheck = \"90s\"\n"
           "credit = \"64KiB\"\n");
  EXPECT_EQ(config.log_level, LogLevel::kDebug);
  EXPECT_EQ(config.socket, "/run/p.sock");
  const VolumeConfig& volume = config.volumes.at(0);
  EXPECT_EQ(volume.on_loss, OnLoss::kFail);
  EXPECT_EQ(volume.RpoOf("n1"), std::nullopt);
  EXPECT_EQ(volume.RpoOf("n2")->time, 50ms);
  EXPECT_EQ(volume.RpoOf("n2")->on_lag, OnLag::kProceed);
  EXPECT_EQ(volume.RpoOf("n9")->time, 50ms) << "one that comes later";
  EXPECT_EQ(volume.deadline, 250ms);
  EXPECT_EQ(volume.suspend, 120s);
  EXPECT_EQ(volume.domain, Domain::kPmem);
  EXPECT_EQ(volume.check, 90s);
  EXPECT_EQ(volume.credit, 64u << 10);
}

TEST(ConfigTest, ACheckThatIsOffHasNoPeriod) {
  EXPECT_EQ(Good(std::string(kGood) + "check = \"off\"\n").volumes.at(0).check, 0s);
}

struct BadCase {
  const char* name;
  const char* replace;  // in kGood; empty: `with` is appended
  const char* with;
  const char* begins;    // of the error
  const char* contains;  // the remedy
};

class BadConfigTest : public ::testing::TestWithParam<BadCase> {};

TEST_P(BadConfigTest, OneErrorSaysWhereWhatAndWhatIsAllowed) {
  const BadCase& bad = GetParam();
  std::string text = kGood;
  if (*bad.replace == '\0') {
    text += bad.with;
  } else {
    ASSERT_THAT(text, HasSubstr(bad.replace));
    text = absl::StrReplaceAll(text, {{bad.replace, bad.with}});
  }
  const absl::StatusOr<Config> config = ParseConfig(text, "f.toml");
  ASSERT_FALSE(config.ok());
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
  const std::string message(config.status().message());
  EXPECT_THAT(message, StartsWith(bad.begins));
  EXPECT_THAT(message, HasSubstr(bad.contains));
  EXPECT_EQ(message.find('\n'), std::string::npos);
}

constexpr char kSecondVolume[] = R"([[volume]]
name = "v1"
uuid = "11234567-89ab-cdef-0123-456789abcdef"
backing = "/mnt/v0/below"
mount = "/mnt/v1"
nodes = ["n1"]
primary = "n1"
)";

// 108 bytes: one more than a socket's address holds.
constexpr char kLongSocket[] =
    "socket = \"/a123456789a123456789a123456789a123456789a123456789"
    "a123456789a123456789a123456789a123456789a123456789abcdefgh\"\nstate_dir";

const std::vector<BadCase> kBadCases{
    {"Syntax", "data = [", "data = ", "f.toml:3:", "is no TOML"},
    {"UnknownKey", "state_dir", "statedir", "f.toml:4:1: statedir: is no key", "state_dir"},
    {"UnknownKeyOfVolume", "", "on_los = \"fail\"\n", "f.toml:17:1: volume.on_los: is no key", "on_loss"},
    {"UnknownTable", "[[node]]", "[[nodes]]", "f.toml:6:3: nodes: is no key", "node, volume"},
    {"MissingKey", "name = \"n1\"\n", "", "f.toml: name: is missing", "a string"},
    {"MissingKeyOfVolume", "backing = \"/data/v0\"\n", "", "f.toml:10:1: volume.backing: is missing",
     "a string"},
    {"WrongType", "\"/state\"", "7", "f.toml:4:13: state_dir: 7 is no string", "quotes"},
    {"NodeIsNoListOfTables", "[[node]]", "[node]", "f.toml:6:1: node: is no list of tables", "[[node]]"},
    {"ListEntryOfWrongType", "[\"10.0.0.1:7401\"]", "[7401]", "f.toml:3:9: data: 7401 is no string",
     "quotes"},
    {"EmptyList", "[\"10.0.0.1:7401\"]", "[]", "f.toml:3:8: data: has 0 entries", "at least 1"},
    {"BadNodeName", "\"n1\"\ncontrol", "\"n 1\"\ncontrol", "f.toml:1:8: name: 'n 1' is no name",
     "allowed: letters"},
    {"AddressWithoutPort", "\"10.0.0.1:7401\"", "\"10.0.0.1\"", "f.toml:3:9: data: '10.0.0.1' is no address",
     "host:port"},
    {"AddressOfIpv6WithoutBrackets", "\"10.0.0.1:7401\"", "\"fd00::1:7401\"",
     "f.toml:3:9: data:", "[ipv6]:port"},
    {"PortZero", "\"10.0.0.1:7401\"", "\"10.0.0.1:0\"", "f.toml:3:9: data:", "1 to 65535"},
    {"PortTooLarge", "\"10.0.0.1:7401\"", "\"10.0.0.1:70000\"", "f.toml:3:9: data:", "1 to 65535"},
    {"RelativePath", "\"/data/v0\"", "\"data\"", "f.toml:13:11: volume.backing: 'data' is no absolute path",
     "begins with /"},
    {"PeerIsThisNode", "name = \"n2\"", "name = \"n1\"",
     "f.toml:7:8: node.name: 'n1' is this file's own node", "others"},
    {"LogLevel", "state_dir", "log_level = \"loud\"\nstate_dir",
     "f.toml:4:13: log_level: 'loud' is not known", "debug, info, warn, error"},
    {"BadUuid", "01234567-89ab", "0123456789ab", "f.toml:12:8: volume.uuid:", "uuidgen"},
    {"NilUuid", "01234567-89ab-cdef-0123-456789abcdef", "00000000-0000-0000-0000-000000000000",
     "f.toml:12:8: volume.uuid:", "nil uuid"},
    {"UnknownNode", "[\"n2\", \"n1\"]", "[\"n1\", \"n9\"]", "f.toml:15:16: volume.nodes: 'n9' is not known",
     "n1, n2"},
    {"NodeTwice", "[\"n2\", \"n1\"]", "[\"n1\", \"n1\"]",
     "f.toml:15:10: volume.nodes: 'n1' stands there twice", "one copy"},
    {"ThisNodeHoldsNoCopy", "[\"n2\", \"n1\"]", "[\"n2\"]",
     "f.toml:15:9: volume.nodes:", "does not name this node, \"n1\""},
    {"PrimaryHoldsNoCopy", "primary = \"n1\"", "primary = \"n3\"",
     "f.toml:16:11: volume.primary: 'n3' is none", "n2, n1"},
    {"RpoTooShort", "", "rpo = \"5us\"\n", "f.toml:17:7: volume.rpo: '5us' is no", "1ms or more"},
    {"RpoOfNobody", "", "replica_rpo = [\"n9=1s\"]\n", "f.toml:17:16: volume.replica_rpo: 'n9=1s' names none",
     "NODE=RPO"},
    {"RpoOfAReplicaUnreadable", "", "replica_rpo = [\"n2=soon\"]\n",
     "f.toml:17:16: volume.replica_rpo: 'n2=soon' is no", "50ms"},
    {"OnLagUnknown", "", "on_lag = \"wait\"\n", "f.toml:17:10: volume.on_lag: 'wait' is not known",
     "throttle, proceed"},
    {"RpoUnreadable", "", "rpo = \"soon\"\n", "f.toml:17:7: volume.rpo: 'soon' is no", "100syncs"},
    {"OnLossUnknown", "", "on_loss = \"wait\"\n", "f.toml:17:11: volume.on_loss: 'wait' is not known",
     "suspend, fail, proceed"},
    {"DeadlineUnreadable", "", "deadline = \"5\"\n", "f.toml:17:12: volume.deadline: '5' is no duration",
     "50ms"},
    {"DeadlineZero", "", "deadline = \"0s\"\n", "f.toml:17:12: volume.deadline: '0s' is out of range",
     "10ms to 24h"},
    {"DeadlineOverflows", "", "deadline = \"9999999999h\"\n",
     "f.toml:17:12: volume.deadline:", "is no duration"},
    {"DomainUnknown", "", "domain = \"disk\"\n", "f.toml:17:10: volume.domain: 'disk' is not known",
     "file, pmem, volatile"},
    {"CheckUnreadable", "", "check = \"daily\"\n", "f.toml:17:9: volume.check: 'daily' is no period",
     "\"off\", or a time from 1s to 8784h"},
    {"CheckTooOften", "", "check = \"10ms\"\n", "f.toml:17:9: volume.check: '10ms' is no period", "from 1s"},
    {"CreditTooSmall", "", "credit = \"1KiB\"\n", "f.toml:17:10: volume.credit: '1KiB' is out of range",
     "64KiB to 1GiB"},
    {"MountInBacking", "\"/mnt/v0\"", "\"/data/v0/mnt\"",
     "f.toml:14:9: volume.mount:", "overlaps backing of the same volume"},
    {"BackingInStateDir", "\"/data/v0\"", "\"/state/v0\"",
     "f.toml:13:11: volume.backing:", "overlaps state_dir"},
    {"BackingInMountOfAnother", "", kSecondVolume,
     "f.toml:20:11: volume.backing:", "overlaps mount of volume v0"},
    {"SocketTooLong", "state_dir",
     "socket = "
     "\"/"
     "a123456789a123456789a123456789a123456789a123456789a123456789a123456789a123456789a123456789a123456789a12"
     "34567\"\n"
     "state_dir",
     "f.toml:4:10: socket:", "at most 107 bytes"},
};

INSTANTIATE_TEST_SUITE_P(Bad, BadConfigTest, ::testing::ValuesIn(kBadCases),
                         [](const ::testing::TestParamInfo<BadCase>& test) {
                           return std::string(test.param.name);
                         });

TEST(ConfigTest, TheExampleForOperatorsIsGood) {
  const absl::StatusOr<Config> config = LoadConfig(PMIRROR_SOURCE_DIR "/deploy/pmirrord.toml");
  EXPECT_TRUE(config.ok()) << config.status();
}

TEST(ConfigTest, AMissingFileIsNamed) {
  const absl::StatusOr<Config> config = LoadConfig("/nonexistent/pmirrord.toml");
  EXPECT_EQ(config.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(config.status().message()), HasSubstr("/nonexistent/pmirrord.toml"));
}

}  // namespace
}  // namespace pmirror::server
