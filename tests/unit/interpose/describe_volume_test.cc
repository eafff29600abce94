// SPDX-License-Identifier: BSD-3-Clause
// What a volume page says in the words of pmirror.h.
#include "interpose/describe_volume.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>

#include "replication/persistence.h"

namespace pmirror::interpose {
namespace {

constexpr auto kServing = static_cast<uint32_t>(VolumeState::kServing);

TEST(DescribeVolume, TheStateFollowsFromTheVolumesAndFromWhoHasWhat) {
  const struct {
    uint32_t state;
    ReplicaMasks masks;
    pmirror_state expected;
  } cases[] = {
      {kServing, {.members = 3}, PMIRROR_IN_SYNC},
      {kServing, {.members = 1}, PMIRROR_DEGRADED},
      {kServing, {.members = 0}, PMIRROR_ALONE},
      {kServing, {.members = 3, .unproven = 2}, PMIRROR_UNPROVEN},
      {kServing, {.members = 1, .trailing = 2}, PMIRROR_TRAILING},
      {kServing, {.members = 0, .trailing = 3}, PMIRROR_TRAILING},
      {kServing, {.members = 0, .trailing = 1}, PMIRROR_DEGRADED},
      {kServing, {.members = 7}, PMIRROR_IN_SYNC},  // bits beyond the configured ones say nothing
      {static_cast<uint32_t>(VolumeState::kFenced), {.members = 3}, PMIRROR_FENCED},
      {static_cast<uint32_t>(VolumeState::kClosing), {.members = 3}, PMIRROR_CLOSING},
  };
  for (const auto& entry : cases) {
    EXPECT_EQ(StateOf(entry.state, entry.masks, 0b11), entry.expected)
        << entry.state << " " << entry.masks.members << " " << entry.masks.trailing;
  }
}

TEST(DescribeVolume, GranularityAndAtomicityAreThoseOfTheDomainAndTheCarrier) {
  const auto page = std::make_unique<VolumePage>();
  page->domain = static_cast<uint32_t>(Domain::kPmem);
  ConfigureReplicas(*page, 1);
  page->state = kServing;
  page->set = SetWord::Make(1, 0, SetVersion{5}).raw;
  std::memcpy(page->replica_names[0], "beta", 4);
  pmirror_attributes out{};
  DescribeVolume(*page, Carrier::kPreload, out);
  EXPECT_EQ(out.store_atomicity_local, 8U);
  EXPECT_EQ(out.store_atomicity_remote, 8U);
  EXPECT_EQ(out.flush_granularity, 64U);
  EXPECT_EQ(out.remote_granularity, 8U);
  EXPECT_EQ(out.set_version, 5U);
  EXPECT_STREQ(out.nodes[0], "beta");
  EXPECT_NE(out.capabilities & PMIRROR_CAN_VERIFY, 0U);
  EXPECT_EQ(out.capabilities & PMIRROR_CAN_ERROR_EVENT, 0U);
  EXPECT_EQ(out.group_atomicity, 16384U);
  DescribeVolume(*page, Carrier::kMount, out);
  EXPECT_EQ(out.store_atomicity_local, 0U);
  EXPECT_EQ(out.store_atomicity_remote, 0U);
  EXPECT_EQ(out.flush_granularity, kPageSize);
  EXPECT_EQ(out.capabilities & (PMIRROR_CAN_VERIFY | PMIRROR_CAN_FLUSH | PMIRROR_CAN_FLUSH_ATOMIC), 0U);
  EXPECT_EQ(out.group_atomicity, 0U);
  page->domain = static_cast<uint32_t>(Domain::kFile);
  DescribeVolume(*page, Carrier::kPreload, out);
  EXPECT_EQ(out.store_atomicity_local, 0U);
  EXPECT_EQ(out.flush_granularity, kPageSize);
}

TEST(CopyText, CutsAndEndsWhatDoesNotFit) {
  char room[4] = {'x', 'x', 'x', 'x'};
  CopyText(room, sizeof room, "abcdef");
  EXPECT_STREQ(room, "abc");
  CopyText(room, sizeof room, "");
  EXPECT_STREQ(room, "");
}

}  // namespace
}  // namespace pmirror::interpose
