// SPDX-License-Identifier: BSD-3-Clause
// The library's own log: silent unless PMIRROR_LOG_LEVEL (error, warning, info, debug) or PMIRROR_LOG_FILE is
// set; then one line an event to that file (appended) or to standard error, by one write(2).
// Async-signal-safe, no allocation; preserves errno.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace pmirror::interpose {

enum class LogLevel : int { kSilent = 0, kError = 1, kWarning = 2, kInfo = 3, kDebug = 4 };

// Reads the environment; called once, from the constructor.
void OpenLog();
bool LogEnabled(LogLevel level);

// Builds a line and writes it when it goes out of scope: LogLine(LogLevel::kError).Text("cannot
// map").Field("errno", 5);
class LogLine {
 public:
  explicit LogLine(LogLevel level);
  ~LogLine();
  LogLine(const LogLine&) = delete;
  LogLine& operator=(const LogLine&) = delete;

  LogLine& Text(const char* text);
  LogLine& Field(const char* name, uint64_t value);
  LogLine& Field(const char* name, const char* value);

 private:
  void Append(const char* text);
  void AppendNumber(uint64_t value);

  bool enabled_;
  int saved_errno_;
  std::array<char, 512> line_;
  size_t used_ = 0;
};

}  // namespace pmirror::interpose
