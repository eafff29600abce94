// SPDX-License-Identifier: BSD-3-Clause
// Order and form of events.
#include "cli/event_stream.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace pmirror::cli {
namespace {

using Json = nlohmann::ordered_json;

std::string TimeText(int64_t time_us) {
  return fmt::format("{:%Y-%m-%dT%H:%M:%S}.{:06}Z", fmt::gmtime(static_cast<time_t>(time_us / 1'000'000)),
                     time_us % 1'000'000);
}

bool IsPlain(unsigned char c) { return c > ' ' && c != '"' && c != '=' && c != '\\' && c != 0x7f; }

std::string Dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

}  // namespace

Json EventJson(const control::Event& event) {
  Json fields = Json::object();
  for (const control::EventField& field : event.fields()) {
    fields[field.key()] = field.value();
  }
  return {{"seq", event.seq()},           {"time", TimeText(event.time_us())},
          {"severity", event.severity()}, {"event", event.event()},
          {"node", event.node()},         {"fields", std::move(fields)}};
}

std::string EventLine(const control::Event& event) {
  std::string line =
      fmt::format("{} {} {} {}", TimeText(event.time_us()), event.node(), event.severity(), event.event());
  for (const control::EventField& field : event.fields()) {
    const std::string& value = field.value();
    const bool plain = !value.empty() && std::all_of(value.begin(), value.end(), IsPlain);
    line += fmt::format(" {}={}", field.key(), plain ? value : Dump(value));
  }
  return line;
}

void EventOrder::Add(Time now, control::Event event) {
  const std::tuple key(event.time_us(), event.node(), event.seq());
  waiting_.emplace(key, Waiting{now, std::move(event)});
}

std::vector<control::Event> EventOrder::TakeUntil(Time until) {
  auto end = waiting_.begin();
  for (auto at = waiting_.begin(); at != waiting_.end(); ++at) {
    if (at->second.since < until) {
      end = std::next(at);
    }
  }
  std::vector<control::Event> taken;
  for (auto at = waiting_.begin(); at != end; ++at) {
    taken.push_back(std::move(at->second.event));
  }
  waiting_.erase(waiting_.begin(), end);
  return taken;
}

}  // namespace pmirror::cli
