// SPDX-License-Identifier: BSD-3-Clause
// Where the primary's engine says what happened: one call an event, for the daemon's log. Implementations are thread-safe and quick.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace pmirror::fs {

enum class Severity { kDebug, kInfo, kWarning, kError };  // kDebug: for the log alone

class EventSink {
 public:
  using Fields = std::vector<std::pair<std::string, std::string>>;
  virtual ~EventSink() = default;
  virtual void Report(Severity severity, std::string_view event, const Fields& fields) = 0;
};

}  // namespace pmirror::fs
