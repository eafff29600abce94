// SPDX-License-Identifier: BSD-3-Clause
// One fault is one event: what is told of faults that are met again and again.
#include "server/event_conditions.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace pmirror::server {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using namespace std::chrono_literals;

class EventConditionsTest : public ::testing::Test {
 protected:
  // What is told when an event is met: its name and fields, one text an event.
  std::vector<std::string> Meet(const std::string& name, Event::Fields fields = {}) {
    return Texts(conditions_.Take(now_, {LogLevel::kWarn, name, std::move(fields)}));
  }
  std::vector<std::string> State(const std::string& node, const std::string& state,
                                 const std::string& reason = "") {
    return Meet("replica_state", {{"volume", "v0"}, {"node", node}, {"state", state}, {"reason", reason}});
  }
  std::vector<std::string> After(std::chrono::milliseconds time) {
    now_ += time;
    return Texts(conditions_.Settle(now_));
  }

  EventConditions conditions_;
  EventConditions::Time now_{1h};

 private:
  static std::vector<std::string> Texts(const std::vector<MetEvent>& events) {
    std::vector<std::string> texts;
    for (const MetEvent& event : events) {
      std::string text = event.name;
      for (const auto& [key, value] : event.fields) {
        text += " " + key + "=" + value;
      }
      texts.push_back(text);
    }
    return texts;
  }
};

TEST_F(EventConditionsTest, WhatHasNoRuleIsToldEachTime) {
  EXPECT_THAT(Meet("mounted"), ElementsAre("mounted"));
  EXPECT_THAT(Meet("mounted"), ElementsAre("mounted"));
  EXPECT_THAT(After(1h), IsEmpty());
}

TEST_F(EventConditionsTest, ARepeatedFaultIsToldWhenItBeginsAndWhenItIsOver) {
  const Event::Fields fields{{"volume", "v0"}, {"reason", "disk full"}, {"file", "7"}};
  EXPECT_THAT(Meet("sync_failed", fields), ElementsAre("sync_failed volume=v0 reason=disk full file=7"));
  for (int i = 0; i < 100; ++i) {
    EXPECT_THAT(After(50ms), IsEmpty());
    EXPECT_THAT(Meet("sync_failed", fields), IsEmpty());
  }
  EXPECT_THAT(After(9s), IsEmpty());
  EXPECT_THAT(
      After(1s),
      ElementsAre(
          "condition_over condition=sync_failed volume=v0 reason=disk full count=101 lasted_ms=5000"));
  EXPECT_THAT(Meet("sync_failed", fields), ElementsAre("sync_failed volume=v0 reason=disk full file=7"));
}

TEST_F(EventConditionsTest, WhatHappenedOnceHasNoEnd) {
  Meet("sync_failed", {{"volume", "v0"}, {"reason", "a"}});
  EXPECT_THAT(After(1h), IsEmpty());
}

TEST_F(EventConditionsTest, AnotherCauseOrVolumeIsAnotherFault) {
  Meet("sync_failed", {{"volume", "v0"}, {"reason", "a"}});
  EXPECT_THAT(Meet("sync_failed", {{"volume", "v0"}, {"reason", "b"}}),
              ElementsAre("sync_failed volume=v0 reason=b"));
  EXPECT_THAT(Meet("sync_failed", {{"volume", "v1"}, {"reason", "a"}}),
              ElementsAre("sync_failed volume=v1 reason=a"));
}

TEST_F(EventConditionsTest, OfALossEachStateIsToldOnceAndTheReturnWithItsTime) {
  EXPECT_THAT(State("n2", "in-sync"), ElementsAre("replica_state volume=v0 node=n2 state=in-sync reason="));
  for (int i = 0; i < 3; ++i) {  // flaps while it is away
    EXPECT_EQ(State("n2", "disconnected", "silent").size(), i == 0 ? 1u : 0u);
    EXPECT_EQ(State("n2", "stale", "old").size(), i == 0 ? 1u : 0u);
    now_ += 1s;
  }
  EXPECT_THAT(
      State("n2", "in-sync"),
      ElementsAre("replica_state volume=v0 node=n2 state=in-sync reason= lasted_ms=3000 untold_changes=4"));
  EXPECT_EQ(State("n2", "disconnected", "silent").size(), 1u) << "another loss";
}

TEST_F(EventConditionsTest, SyncsThatWaitAreOneEventHoweverManyAndHoweverOften) {
  EXPECT_EQ(Meet("sync_suspended", {{"volume", "v0"}, {"file", "1"}}).size(), 1u)
      << "may come before the loss is known";
  State("n2", "disconnected", "silent");
  for (int i = 0; i < 99; ++i) {
    EXPECT_THAT(Meet("sync_suspended", {{"volume", "v0"}, {"file", "2"}}), IsEmpty());
  }
  for (int i = 0; i < 100; ++i) {  // their time has run out
    EXPECT_THAT(Meet("sync_resumed", {{"volume", "v0"}}), IsEmpty());
    EXPECT_EQ(Meet("sync_failed", {{"volume", "v0"}, {"reason", "EIO"}}).size(), i == 0 ? 1u : 0u);
  }
  EXPECT_THAT(After(1h), IsEmpty()) << "the cause goes on";
  EXPECT_THAT(Meet("sync_suspended", {{"volume", "v0"}}), IsEmpty()) << "a program tried again";
  EXPECT_THAT(Meet("sync_resumed", {{"volume", "v0"}}), IsEmpty());
  EXPECT_THAT(State("n2", "in-sync"),
              ElementsAre("replica_state volume=v0 node=n2 state=in-sync reason= lasted_ms=3600000",
                          "condition_over condition=sync_failed volume=v0 reason=EIO count=100 lasted_ms=0"));
  EXPECT_THAT(After(1s), ElementsAre("sync_resumed volume=v0 syncs=101 lasted_ms=3600000"));
  EXPECT_THAT(After(1h), IsEmpty());
}

TEST_F(EventConditionsTest, AConditionOfOneVolumeEndsNotWithAnotherOrWhileASecondReplicaIsLost) {
  State("n2", "disconnected");
  State("n3", "disconnected");
  for (int i = 0; i < 2; ++i) {
    Meet("sync_failed", {{"volume", "v0"}, {"reason", "EIO"}});
  }
  EXPECT_EQ(State("n2", "in-sync").size(), 1u);
  EXPECT_EQ(State("n3", "in-sync").size(), 2u);
}

TEST_F(EventConditionsTest, AReturnIsToldWithHowLongItTook) {
  EXPECT_EQ(Meet("peer_unreachable", {{"node", "n2"}, {"reason", "a"}}).size(), 1u);
  EXPECT_THAT(Meet("peer_unreachable", {{"node", "n2"}, {"reason", "b"}}), IsEmpty());
  now_ += 2s;
  EXPECT_THAT(Meet("peer_reachable", {{"node", "n2"}}), ElementsAre("peer_reachable node=n2 lasted_ms=2000"));
  EXPECT_THAT(Meet("peer_reachable", {{"node", "n2"}}), ElementsAre("peer_reachable node=n2"));
}

TEST_F(EventConditionsTest, CopiesThatDifferAreOneFaultForEachReplicaHoweverOftenTheyAreLookedAt) {
  const auto differs = [this](const std::string& node, const std::string& path) {
    return Meet("copies_differ", {{"volume", "v0"}, {"node", node}, {"path", path}}).size();
  };
  EXPECT_EQ(differs("n2", "a"), 1u);
  now_ += 24h;
  EXPECT_EQ(differs("n2", "b"), 0u);
  EXPECT_EQ(differs("n3", "a"), 1u);
  EXPECT_THAT(After(1h), IsEmpty());
  EXPECT_THAT(Meet("copies_equal", {{"volume", "v0"}, {"node", "n2"}}),
              ElementsAre("copies_equal volume=v0 node=n2 lasted_ms=90000000"));
  EXPECT_EQ(differs("n2", "a"), 1u) << "another fault";
}

TEST_F(EventConditionsTest, WhatFindsNoRoomIsToldEachTime) {
  for (size_t i = 0; i < EventConditions::kMaxConditions; ++i) {
    Meet("sync_failed", {{"volume", std::to_string(i)}});
  }
  EXPECT_EQ(Meet("sync_failed", {{"volume", "v0"}}).size(), 1u);
  EXPECT_EQ(Meet("sync_failed", {{"volume", "v0"}}).size(), 1u);
  EXPECT_EQ(State("n2", "stale").size(), 1u);
  After(1h);
  EXPECT_EQ(Meet("sync_failed", {{"volume", "v0"}}).size(), 1u);
  EXPECT_EQ(Meet("sync_failed", {{"volume", "v0"}}).size(), 0u);
}

}  // namespace
}  // namespace pmirror::server
