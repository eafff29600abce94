// SPDX-License-Identifier: BSD-3-Clause
// Events to lines of JSON and back.
#include "server/journal_line.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <span>

#include "replication/crc32c.h"

namespace pmirror::server {
namespace {

using Json = nlohmann::ordered_json;
using std::chrono::microseconds;
using std::chrono::seconds;

constexpr std::string_view kCrcMark = ",\"crc\":\"";
constexpr size_t kCrcDigits = 8;
constexpr std::string_view kLineEnd = "\"}";

std::string CrcText(std::string_view text) {
  return fmt::format("{:08x}", Crc32c(0, std::as_bytes(std::span(text.data(), text.size()))));
}

bool ParseSeverity(const std::string& text, LogLevel& level) {
  for (const LogLevel candidate : {LogLevel::kInfo, LogLevel::kWarn, LogLevel::kError}) {
    if (text == SeverityName(candidate)) {
      level = candidate;
      return true;
    }
  }
  return false;
}

// A text of an object; empty when it has none of that name.
std::string TextOf(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

}  // namespace

const char* SeverityName(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "debug";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarn:
      return "warning";
    case LogLevel::kError:
      return "error";
  }
  return "error";
}

std::string TimeText(EventTime time) {
  const auto whole = std::chrono::floor<seconds>(time);
  const auto rest = std::chrono::duration_cast<microseconds>(time - whole);
  return fmt::format("{:%Y-%m-%dT%H:%M:%S}.{:06}Z", fmt::gmtime(std::chrono::system_clock::to_time_t(whole)),
                     rest.count());
}

bool ParseTime(const std::string& text, EventTime& time) {
  std::tm fields{};
  const char* rest = ::strptime(text.c_str(), "%Y-%m-%dT%H:%M:%S.", &fields);
  if (rest == nullptr || text.size() < 7 || rest != text.c_str() + text.size() - 7 || text.back() != 'Z') {
    return false;
  }
  int64_t count = 0;
  for (int i = 0; i < 6; ++i) {
    if (rest[i] < '0' || rest[i] > '9') {
      return false;
    }
    count = 10 * count + (rest[i] - '0');
  }
  time = std::chrono::system_clock::from_time_t(::timegm(&fields)) + microseconds{count};
  return TimeText(time) == text;
}

std::string KeptText(const std::string& text) {
  const std::string quoted =
      Json(text.substr(0, kMaxValue)).dump(-1, ' ', false, Json::error_handler_t::replace);
  return Json::parse(quoted).get<std::string>();
}

std::string JournalLine(const Event& event) {
  Json fields = Json::object();
  for (const auto& [key, value] : event.fields) {
    fields[key] = value;
  }
  const Json json = {
      {"seq", event.seq},    {"time", TimeText(event.time)}, {"severity", SeverityName(event.severity)},
      {"event", event.name}, {"node", event.node},           {"fields", std::move(fields)}};
  std::string line = json.dump(-1, ' ', false, Json::error_handler_t::replace);
  const std::string crc = CrcText(line);
  line.pop_back();
  line.append(kCrcMark).append(crc).append(kLineEnd).push_back('\n');
  return line;
}

bool ParseJournalLine(std::string_view line, Event& event) {
  if (line.ends_with('\n')) {
    line.remove_suffix(1);
  }
  const size_t tail = kCrcMark.size() + kCrcDigits + kLineEnd.size();
  if (line.size() < tail || !line.ends_with(kLineEnd)) {
    return false;
  }
  const std::string text = std::string(line.substr(0, line.size() - tail)) + "}";
  if (line.substr(line.size() - tail) != std::string(kCrcMark) + CrcText(text) + std::string(kLineEnd)) {
    return false;
  }
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("seq") || !json["seq"].is_number_unsigned() ||
      !json.contains("fields") || !json["fields"].is_object()) {
    return false;
  }
  event.seq = json["seq"].get<uint64_t>();
  event.name = TextOf(json, "event");
  event.node = TextOf(json, "node");
  event.fields.clear();
  for (const auto& [key, value] : json["fields"].items()) {
    event.fields.emplace_back(key, value.is_string() ? value.get<std::string>() : value.dump());
  }
  return event.seq != 0 && !event.name.empty() && ParseTime(TextOf(json, "time"), event.time) &&
         ParseSeverity(TextOf(json, "severity"), event.severity);
}

}  // namespace pmirror::server
