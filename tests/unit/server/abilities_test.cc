// SPDX-License-Identifier: BSD-3-Clause
// Trap 12: differences between nodes are warnings before a failover, and equal nodes give none.
#include "server/abilities.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace pmirror::server {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

control::Abilities Usual() {
  control::Abilities abilities;
  abilities.set_version("1");
  abilities.set_page_size(4096);
  abilities.set_cache_line(64);
  abilities.set_machine("x86_64");
  abilities.add_persistence_domains("v0=file");
  return abilities;
}

TEST(AbilitiesTest, EqualNodesGiveNoWarning) {
  EXPECT_THAT(CompareAbilities("n1", Usual(), "n2", Usual()), IsEmpty());
}

struct Difference {
  const char* name;
  void (*make)(control::Abilities&);
  const char* warning;
};

class AbilitiesDifferenceTest : public ::testing::TestWithParam<Difference> {};

TEST_P(AbilitiesDifferenceTest, Trap12_OneDifferenceIsOneWarningWithBothValues) {
  control::Abilities other = Usual();
  GetParam().make(other);
  EXPECT_THAT(CompareAbilities("n1", Usual(), "n2", other), ElementsAre(HasSubstr(GetParam().warning)));
}

INSTANTIATE_TEST_SUITE_P(
    All, AbilitiesDifferenceTest,
    ::testing::Values(
        Difference{"PageSize", [](control::Abilities& a) { a.set_page_size(65536); },
                   "page size is 4096 on n1 and 65536 on n2"},
        Difference{"ByteOrder", [](control::Abilities& a) { a.set_big_endian(true); },
                   "byte order is little on n1 and big on n2"},
        Difference{"Machine", [](control::Abilities& a) { a.set_machine("aarch64"); },
                   "machine type is x86_64 on n1"},
        Difference{"CacheLine", [](control::Abilities& a) { a.set_cache_line(128); },
                   "cache line size is 64 on n1 and 128 on n2"},
        Difference{"Version", [](control::Abilities& a) { a.set_version("2"); }, "finish the upgrade"},
        Difference{"Domain", [](control::Abilities& a) { a.set_persistence_domains(0, "v0=volatile"); },
                   "persistence domain of volume v0 is file on n1 and volatile on n2"}),
    [](const ::testing::TestParamInfo<Difference>& test) { return std::string(test.param.name); });

TEST(AbilitiesTest, WhatANodeCannotKnowIsNoDifference) {
  control::Abilities other = Usual();
  other.set_cache_line(0);
  other.set_persistence_domains(0, "v9=pmem");
  EXPECT_THAT(CompareAbilities("n1", Usual(), "n2", other), IsEmpty());
}

TEST(AbilitiesTest, OwnAbilitiesNameTheMachineAndEveryVolume) {
  Config config;
  config.volumes.resize(1);
  config.volumes[0].name = "v0";
  config.volumes[0].domain = Domain::kPmem;
  const control::Abilities own = OwnAbilities(config);
  EXPECT_GE(own.page_size(), 4096u);
  EXPECT_FALSE(own.machine().empty());
  EXPECT_THAT(own.persistence_domains(), ElementsAre("v0=pmem"));
}

}  // namespace
}  // namespace pmirror::server
