// SPDX-License-Identifier: BSD-3-Clause
// An event, and its line in the journal's file:
//   {"seq":7,"time":"2026-01-31T12:00:00.000001Z","severity":"info","event":"ready","node":"n1",
//    "fields":{"volumes":"2"},"crc":"0123abcd"}
// in one line. `crc` is the CRC32C of the line as it would be without it. Pure.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "server/config.h"

namespace pmirror::server {

using EventTime = std::chrono::system_clock::time_point;

struct Event {
  using Fields = std::vector<std::pair<std::string, std::string>>;
  uint64_t seq = 0;
  EventTime time{};
  LogLevel severity = LogLevel::kInfo;
  std::string name;
  std::string node;
  Fields fields;
};

// "info", "warning", "error"; "debug" is never kept.
const char* SeverityName(LogLevel level);

// "2026-01-31T12:00:00.000001Z" and back; false for another text.
std::string TimeText(EventTime time);
bool ParseTime(const std::string& text, EventTime& time);

constexpr size_t kMaxValue = 4096;  // bytes

// The text as it can be kept: the beginning of one that is longer than kMaxValue, with U+FFFD in place of what
// is not UTF-8.
std::string KeptText(const std::string& text);

// A line of the file with its end, and back; false for one that is damaged.
std::string JournalLine(const Event& event);
bool ParseJournalLine(std::string_view line, Event& event);

}  // namespace pmirror::server
