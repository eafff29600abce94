// SPDX-License-Identifier: BSD-3-Clause
// The daemon's log: one line an event on standard error, "TIME LEVEL event=NAME key=value key=value". The
// time is UTC with microseconds. NAME is a fixed word (snake_case) that scripts may look for (docs/events.md
// lists them); values with spaces, quotes or control characters are quoted. Everything from kInfo goes to the
// journal too, whatever level the lines have. A fault that is met again and again is told once when it begins
// and once when it is over (event_conditions.h); at level debug each time is told. Thread-safe.
// ---
// For maintainers: all that is logged, also by spdlog directly, goes through one sink, which asks the
// conditions and passes on to the lines and to the journal. A sink gets a line and no structure, so it reads
// the line again with ParseEvent, the opposite of FormatEvent.
#pragma once

#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

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

class EventJournal;

// Sets the level and the form of the lines, and where events are kept. Before it everything from kInfo is
// logged. Once a process.
void SetUpEventLog(LogLevel level, std::shared_ptr<EventJournal> journal);

// Tells the conditions that have ended by themselves. To be called about once a second.
void SettleEvents();

std::vector<EventField> ToFields(const std::vector<std::pair<std::string, std::string>>& pairs);

void LogEvent(LogLevel level, std::string_view event, std::span<const EventField> fields);
inline void LogEvent(LogLevel level, std::string_view event, std::initializer_list<EventField> fields = {}) {
  LogEvent(level, event, std::span(fields.begin(), fields.size()));
}

// A line without its time and level: "event=ready node=n1". For tests of the form.
std::string FormatEvent(std::string_view event, std::span<const EventField> fields);
inline std::string FormatEvent(std::string_view event, std::initializer_list<EventField> fields) {
  return FormatEvent(event, std::span(fields.begin(), fields.size()));
}

struct ParsedEvent {
  std::string name;
  std::vector<std::pair<std::string, std::string>> fields;
};

// What FormatEvent made into this line. What cannot be read behind the name is one field, `text`; empty for a
// line that does not begin with a name.
std::optional<ParsedEvent> ParseEvent(std::string_view line);

}  // namespace pmirror::server
