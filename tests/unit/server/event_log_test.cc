// SPDX-License-Identifier: BSD-3-Clause
// The form of the log's lines: one a event, whatever is in the values.
#include "server/event_log.h"

#include <gtest/gtest.h>

#include "server/journal_line.h"

namespace pmirror::server {
namespace {

TEST(EventLogTest, PlainValuesStandAsTheyAre) {
  EXPECT_EQ(FormatEvent("ready", {{"node", "n1"}, {"volumes", 2}, {"path", "/a/b-c:7"}}),
            "event=ready node=n1 volumes=2 path=/a/b-c:7");
}

TEST(EventLogTest, ValuesThatWouldBreakTheLineAreQuoted) {
  EXPECT_EQ(FormatEvent("e", {{"a", "two words"}, {"b", ""}, {"c", "x=y"}}),
            "event=e a=\"two words\" b=\"\" c=\"x=y\"");
  EXPECT_EQ(FormatEvent("e", {{"a", "say \"no\" \\ now"}}), "event=e a=\"say \\\"no\\\" \\\\ now\"");
  EXPECT_EQ(FormatEvent("e", {{"a", "line\nbreak\t"}}), "event=e a=\"line\\x0abreak\\x09\"");
}

TEST(EventLogTest, ALineReadsBackWhateverIsInTheValues) {
  const std::vector<EventField> fields{{"a", "plain"},      {"b", ""},
                                       {"c", "two words"},  {"d", "x=y"},
                                       {"e", "\"\\\n\x7f"}, {"f", "\xc3\xa4\xff"},
                                       {"g", "x=\" h=1"},   {"h", 7}};
  const std::optional<ParsedEvent> event = ParseEvent(FormatEvent("name", fields));
  ASSERT_TRUE(event.has_value());
  EXPECT_EQ(event->name, "name");
  ASSERT_EQ(event->fields.size(), fields.size());
  for (size_t i = 0; i < fields.size(); ++i) {
    EXPECT_EQ(event->fields[i], std::pair(std::string(fields[i].key), fields[i].value));
  }
}

TEST(EventLogTest, OfALineThatOthersMadeEverythingIsKept) {
  const std::optional<ParsedEvent> event = ParseEvent("event=e node=n1 peer= name=\"a\"b\" code=5");
  ASSERT_TRUE(event.has_value());
  EXPECT_EQ(event->fields,
            (Event::Fields{{"node", "n1"}, {"peer", ""}, {"name", "a"}, {"text", "b\" code=5"}}));
  EXPECT_FALSE(ParseEvent("no event").has_value());
  EXPECT_FALSE(ParseEvent("").has_value());
}

}  // namespace
}  // namespace pmirror::server
