// SPDX-License-Identifier: BSD-3-Clause
// The daemon's log: one line an event on standard error, "TIME LEVEL event=NAME key=value key=value". The
// time is UTC with microseconds. NAME is a fixed word (snake_case) that scripts may look for; values with
// spaces, quotes or control characters are quoted. Thread-safe.
#pragma once

#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "server/config.h"

namespace pmirror::server {

struct EventField {
  EventField(std::string_view name, std::string text) : key(name), value(std::move(text)) {}
  EventField(std::string_view name, const char* text) : key(name), value(text) {}
  template <typename Number>
  requires std::is_arithmetic_v<Number> EventField(std::string_view name, Number number)
      : key(name), value(std::to_string(number)) {}

  std::string_view key;
  std::string value;
};

// Sets the level and the form of the lines. Before it everything from kInfo is logged.
void SetUpEventLog(LogLevel level);

void LogEvent(LogLevel level, std::string_view event, std::span<const EventField> fields);
inline void LogEvent(LogLevel level, std::string_view event, std::initializer_list<EventField> fields = {}) {
  LogEvent(level, event, std::span(fields.begin(), fields.size()));
}

// A line without its time and level: "event=ready node=n1". For tests of the form.
std::string FormatEvent(std::string_view event, std::span<const EventField> fields);
inline std::string FormatEvent(std::string_view event, std::initializer_list<EventField> fields) {
  return FormatEvent(event, std::span(fields.begin(), fields.size()));
}

}  // namespace pmirror::server
