// SPDX-License-Identifier: BSD-3-Clause
// Events as lines of spdlog, for people and for the journal.
#include "server/event_log.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <mutex>

#include "server/event_conditions.h"
#include "server/event_journal.h"

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

LogLevel FromSpdlog(spdlog::level::level_enum level) {
  return level >= spdlog::level::err    ? LogLevel::kError
         : level == spdlog::level::warn ? LogLevel::kWarn
         : level == spdlog::level::info ? LogLevel::kInfo
                                        : LogLevel::kDebug;
}

// Takes characters from the front of a line.
class LineReader {
 public:
  explicit LineReader(std::string_view line) : rest_(line) {}

  bool AtEnd() const { return rest_.empty(); }
  std::string_view rest() const { return rest_; }
  bool Skip(char c) {
    if (rest_.empty() || rest_.front() != c) {
      return false;
    }
    rest_.remove_prefix(1);
    return true;
  }
  // Everything before the next '='; false when there is none or nothing before it.
  bool Key(std::string& key) {
    const size_t end = rest_.find('=');
    if (end == std::string_view::npos || end == 0) {
      return false;
    }
    key = rest_.substr(0, end);
    rest_.remove_prefix(end + 1);
    return true;
  }
  bool Value(std::string& value) {
    if (!Skip('"')) {
      const size_t end = std::min(rest_.find(' '), rest_.size());
      value = rest_.substr(0, end);
      rest_.remove_prefix(end);
      return std::all_of(value.begin(), value.end(), IsPlain);
    }
    while (!rest_.empty() && rest_.front() != '"') {
      if (!Character(value)) {
        return false;
      }
    }
    return Skip('"');
  }

 private:
  // One character of a quoted value, with its escape.
  bool Character(std::string& value) {
    if (!Skip('\\')) {
      value += rest_.front();
      rest_.remove_prefix(1);
      return true;
    }
    if (Skip('x')) {
      unsigned int code = 0;
      if (rest_.size() < 2 ||
          std::from_chars(rest_.data(), rest_.data() + 2, code, 16).ptr != rest_.data() + 2) {
        return false;
      }
      value += static_cast<char>(code);
      rest_.remove_prefix(2);
      return true;
    }
    if (rest_.empty() || (rest_.front() != '"' && rest_.front() != '\\')) {
      return false;
    }
    value += rest_.front();
    rest_.remove_prefix(1);
    return true;
  }

  std::string_view rest_;
};

// Asks the conditions about each line from kInfo, and passes on what is to be told. What is not told, and
// what is below kInfo, goes to the lines alone, as a line of level debug.
class EventSink : public spdlog::sinks::sink {
 public:
  EventSink(spdlog::sink_ptr lines, std::shared_ptr<EventJournal> journal)
      : lines_(std::move(lines)), journal_(std::move(journal)) {}

  void log(const spdlog::details::log_msg& message) override {
    const std::string_view line(message.payload.data(), message.payload.size());
    std::optional<ParsedEvent> parsed = ParseEvent(line);
    if (message.level < spdlog::level::info || !parsed.has_value()) {
      return Print(message.time, message.level, line);
    }
    const std::lock_guard lock(mutex_);
    const std::vector<MetEvent> told =
        conditions_.Take(std::chrono::steady_clock::now(),
                         {FromSpdlog(message.level), std::move(parsed->name), std::move(parsed->fields)});
    if (told.empty()) {
      Print(message.time, spdlog::level::debug, line);
    }
    Tell(message.time, told);
  }
  // Called by SettleEvents(). The lines need none: standard error has no buffer.
  void flush() override {
    const std::lock_guard lock(mutex_);
    Tell(std::chrono::system_clock::now(), conditions_.Settle(std::chrono::steady_clock::now()));
  }
  void set_pattern(const std::string& pattern) override { lines_->set_pattern(pattern); }
  void set_formatter(std::unique_ptr<spdlog::formatter> formatter) override {
    lines_->set_formatter(std::move(formatter));
  }

 private:
  void Print(spdlog::log_clock::time_point time, spdlog::level::level_enum level, std::string_view line) {
    if (lines_->should_log(level)) {
      spdlog::details::log_msg message(spdlog::source_loc{}, "", level, {line.data(), line.size()});
      message.time = time;
      lines_->log(message);
    }
  }
  // Requires: mutex_, so that lines and journal have one order.
  void Tell(spdlog::log_clock::time_point time, const std::vector<MetEvent>& events) {
    for (const MetEvent& event : events) {
      std::vector<EventField> fields;
      for (const auto& [key, value] : event.fields) {
        fields.emplace_back(key, value);
      }
      Print(time, ToSpdlog(event.severity), FormatEvent(event.name, fields));
      journal_->Append(time, event.severity, event.name, event.fields);
    }
  }

  const spdlog::sink_ptr lines_;
  const std::shared_ptr<EventJournal> journal_;
  std::mutex mutex_;
  EventConditions conditions_;
};

}  // namespace

void SetUpEventLog(LogLevel level, std::shared_ptr<EventJournal> journal) {
  auto lines = std::make_shared<spdlog::sinks::stderr_sink_mt>();
  lines->set_level(ToSpdlog(level));
  auto logger =
      std::make_shared<spdlog::logger>("pmirrord", std::make_shared<EventSink>(lines, std::move(journal)));
  logger->set_formatter(std::make_unique<spdlog::pattern_formatter>("%Y-%m-%dT%H:%M:%S.%fZ %l %v",
                                                                    spdlog::pattern_time_type::utc));
  logger->set_level(std::min(ToSpdlog(level), spdlog::level::info));
  spdlog::set_default_logger(std::move(logger));
}

void SettleEvents() { spdlog::default_logger_raw()->flush(); }

std::string FormatEvent(std::string_view event, std::span<const EventField> fields) {
  std::string line = fmt::format("event={}", event);
  for (const EventField& field : fields) {
    line += fmt::format(" {}=", field.key);
    AppendValue(line, field.value);
  }
  return line;
}

std::vector<EventField> ToFields(const std::vector<std::pair<std::string, std::string>>& pairs) {
  std::vector<EventField> fields;
  for (const auto& [key, value] : pairs) {
    fields.emplace_back(key, value);
  }
  return fields;
}

void LogEvent(LogLevel level, std::string_view event, std::span<const EventField> fields) {
  spdlog::default_logger_raw()->log(ToSpdlog(level), "{}", FormatEvent(event, fields));
}

std::optional<ParsedEvent> ParseEvent(std::string_view line) {
  LineReader reader(line);
  ParsedEvent event;
  std::string key;
  if (!reader.Key(key) || key != "event" || !reader.Value(event.name)) {
    return std::nullopt;
  }
  while (!reader.AtEnd()) {
    const std::string_view rest = reader.rest();
    std::string name;
    std::string value;
    if (!reader.Skip(' ') || !reader.Key(name) || !reader.Value(value)) {
      event.fields.emplace_back("text", rest);  // of a line that was not made by FormatEvent
      break;
    }
    event.fields.emplace_back(std::move(name), std::move(value));
  }
  return event;
}

}  // namespace pmirror::server
