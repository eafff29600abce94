// SPDX-License-Identifier: BSD-3-Clause
// Events as lines of spdlog.
#include "server/event_log.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>

namespace pmirror::server {
namespace {

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarn:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

bool IsPlain(unsigned char c) { return c > ' ' && c != '"' && c != '=' && c != '\\' && c != 0x7f; }

void AppendValue(std::string& line, const std::string& value) {
  if (!value.empty() && std::all_of(value.begin(), value.end(), IsPlain)) {
    line += value;
    return;
  }
  line += '"';
  for (const char c : value) {
    if (c == '"' || c == '\\') {
      line += '\\';
      line += c;
    } else if (static_cast<unsigned char>(c) < ' ' || c == 0x7f) {
      line += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    } else {
      line += c;
    }
  }
  line += '"';
}

}  // namespace

void SetUpEventLog(LogLevel level) {
  auto logger = spdlog::stderr_logger_mt("pmirrord");
  logger->set_formatter(std::make_unique<spdlog::pattern_formatter>("%Y-%m-%dT%H:%M:%S.%fZ %l %v",
                                                                    spdlog::pattern_time_type::utc));
  logger->set_level(ToSpdlog(level));
  logger->flush_on(spdlog::level::debug);
  spdlog::set_default_logger(std::move(logger));
}

std::string FormatEvent(std::string_view event, std::span<const EventField> fields) {
  std::string line = fmt::format("event={}", event);
  for (const EventField& field : fields) {
    line += fmt::format(" {}=", field.key);
    AppendValue(line, field.value);
  }
  return line;
}

void LogEvent(LogLevel level, std::string_view event, std::span<const EventField> fields) {
  spdlog::default_logger_raw()->log(ToSpdlog(level), "{}", FormatEvent(event, fields));
}

}  // namespace pmirror::server
