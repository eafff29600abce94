// SPDX-License-Identifier: BSD-3-Clause
// The result type of everything that is loaded into applications: a value, or an errno. No exceptions, no allocation, no abseil.
// Threads and signals: plain values, safe everywhere.
#pragma once

#include <cassert>
#include <cerrno>
#include <optional>
#include <utility>

namespace pmirror {

// An errno with a fixed text that says what was being done ("connect to the local daemon"). The text is a literal: it is not owned.
struct [[nodiscard]] Error {
  int code = 0;            // errno value, never 0 in a failed result
  const char* doing = "";  // string literal

  constexpr bool ok() const { return code == 0; }
  static constexpr Error Ok() { return {}; }
  // Captures errno. Requires: errno was set by the call that just failed.
  static Error FromErrno(const char* doing) { return {errno != 0 ? errno : EIO, doing}; }
};

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}                 // NOLINT(google-explicit-constructor)
  Result(Error error) : error_(error) { assert(!error.ok()); }  // NOLINT(google-explicit-constructor)

  bool ok() const { return value_.has_value(); }
  const Error& error() const { return error_; }
  // Requires: ok().
  T& value() & { return *value_; }
  const T& value() const& { return *value_; }
  T&& value() && { return *std::move(value_); }

 private:
  std::optional<T> value_;
  Error error_;
};

}  // namespace pmirror

// Returns from the calling function when `expression` (an Error) is not ok.
#define PMIRROR_RETURN_IF_ERROR(expression)                                   \
  do {                                                                        \
    if (::pmirror::Error pmirror_error = (expression); !pmirror_error.ok()) { \
      return pmirror_error;                                                   \
    }                                                                         \
  } while (false)
