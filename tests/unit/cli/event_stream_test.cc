// SPDX-License-Identifier: BSD-3-Clause
// The order and the form of what `pmirror events` prints.
#include "cli/event_stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace pmirror::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using namespace std::chrono_literals;

control::Event Make(const std::string& node, int64_t time_us, uint64_t seq = 1) {
  control::Event event;
  event.set_node(node);
  event.set_time_us(time_us);
  event.set_seq(seq);
  event.set_severity("info");
  event.set_event("ready");
  return event;
}

TEST(EventStreamTest, ALineHasTimeNodeSeverityNameAndFields) {
  control::Event event = Make("n1", 1'769'860'800'000'001, 7);
  for (const auto& [key, value] :
       {std::pair("volume", "v0"), std::pair("reason", "two \"words\""), std::pair("empty", "")}) {
    control::EventField& field = *event.add_fields();
    field.set_key(key);
    field.set_value(value);
  }
  EXPECT_EQ(EventLine(event),
            R"(2026-01-31T12:00:00.000001Z n1 info ready volume=v0 reason="two \"words\"" empty="")");
  EXPECT_EQ(EventJson(event).dump(),
            R"({"seq":7,"time":"2026-01-31T12:00:00.000001Z","severity":"info","event":"ready","node":"n1",)"
            R"("fields":{"volume":"v0","reason":"two \"words\"","empty":""}})");
}

std::vector<int64_t> Times(const std::vector<control::Event>& events) {
  std::vector<int64_t> times;
  for (const control::Event& event : events) {
    times.push_back(event.time_us());
  }
  return times;
}

TEST(EventOrderTest, EventsOfSeveralNodesComeInTheOrderOfTheirTimes) {
  EventOrder order;
  const EventOrder::Time now{1h};
  order.Add(now, Make("n1", 10));
  order.Add(now, Make("n1", 30));
  order.Add(now + 1ms, Make("n2", 20));
  order.Add(now + 1ms, Make("n2", 40));
  EXPECT_THAT(Times(order.TakeUntil(now)), IsEmpty());
  EXPECT_THAT(Times(order.TakeUntil(now + 1ms)), ElementsAre(10, 20, 30))
      << "20 is older than 30, which has waited";
  EXPECT_THAT(Times(order.TakeAll()), ElementsAre(40));
  EXPECT_THAT(Times(order.TakeAll()), IsEmpty());
}

TEST(EventOrderTest, EventsOfOneInstantAreAllThere) {
  EventOrder order;
  order.Add({}, Make("n1", 10, 1));
  order.Add({}, Make("n1", 10, 2));
  order.Add({}, Make("n2", 10, 1));
  EXPECT_EQ(order.TakeAll().size(), 3u);
}

}  // namespace
}  // namespace pmirror::cli
