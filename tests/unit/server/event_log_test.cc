// SPDX-License-Identifier: BSD-3-Clause
// The form of the log's lines: one a event, whatever is in the values.
#include "server/event_log.h"

#include <gtest/gtest.h>

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

}  // namespace
}  // namespace pmirror::server
