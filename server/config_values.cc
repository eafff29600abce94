// SPDX-License-Identifier: BSD-3-Clause
// Parsing of durations, sizes, addresses, uuids and names.
#include "server/config_values.h"

#include <array>
#include <charconv>
#include <limits>
#include <optional>
#include <span>

#include "absl/strings/ascii.h"

namespace pmirror::server {
namespace {

constexpr std::chrono::milliseconds kLeastRpo{1};

struct Unit {
  std::string_view name;
  uint64_t factor;
};

constexpr std::array<Unit, 5> kDurations{{{"us", 1'000},
                                          {"ms", 1'000'000},
                                          {"s", 1'000'000'000},
                                          {"m", 60'000'000'000},
                                          {"h", 3'600'000'000'000}}};
constexpr std::array<Unit, 4> kSizes{{{"", 1}, {"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}}};

// A number followed by one of `units`, in the smallest unit; nothing when it is not that, or larger than
// `max`.
std::optional<uint64_t> ParseQuantity(std::string_view text, std::span<const Unit> units, uint64_t max) {
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end == text.data()) {
    return std::nullopt;
  }
  const std::string_view name = text.substr(static_cast<size_t>(end - text.data()));
  for (const Unit& unit : units) {
    if (unit.name == name) {
      return number <= max / unit.factor ? std::optional(number * unit.factor) : std::nullopt;
    }
  }
  return std::nullopt;
}

constexpr uint64_t kMax = std::numeric_limits<int64_t>::max();

}  // namespace

absl::StatusOr<std::chrono::nanoseconds> ParseDuration(std::string_view text) {
  const std::optional<uint64_t> value = ParseQuantity(text, kDurations, kMax);
  if (!value) {
    return absl::InvalidArgumentError(
        "is no duration; allowed: a whole number and us, ms, s, m or h, as in \"50ms\"");
  }
  return std::chrono::nanoseconds(static_cast<int64_t>(*value));
}

absl::StatusOr<uint64_t> ParseSize(std::string_view text) {
  const std::optional<uint64_t> value = ParseQuantity(text, kSizes, kMax);
  if (!value) {
    return absl::InvalidArgumentError(
        "is no size; allowed: a whole number of bytes, or with KiB, MiB or GiB, as in \"1MiB\"");
  }
  return *value;
}

absl::StatusOr<Rpo> ParseRpo(std::string_view text) {
  Rpo rpo;
  rpo.text = std::string(text);
  constexpr std::string_view kSyncs = "syncs";
  if (text == "0") {
    return rpo;
  }
  if (text.ends_with(kSyncs)) {
    const absl::StatusOr<uint64_t> count = ParseSize(text.substr(0, text.size() - kSyncs.size()));
    rpo.syncs = count.ok() ? *count : 0;
  } else if (const absl::StatusOr<std::chrono::nanoseconds> time = ParseDuration(text); time.ok()) {
    rpo.time = *time;
  } else if (const absl::StatusOr<uint64_t> bytes = ParseSize(text); bytes.ok()) {
    rpo.bytes = *bytes;
  }
  if (rpo.time < kLeastRpo && rpo.bytes == 0 && rpo.syncs == 0) {
    return absl::InvalidArgumentError(
        "is no recovery point objective; allowed: 0, a time of 1ms or more as in \"50ms\", a size as in "
        "\"1MiB\", or a "
        "number of syncs as in \"100syncs\"");
  }
  return rpo;
}

absl::StatusOr<Uuid> ParseUuid(std::string_view text) {
  const absl::Status error = absl::InvalidArgumentError(
      "is no uuid; allowed: 32 hexadecimal digits in groups of 8-4-4-4-12, as `uuidgen` prints them");
  if (text.size() != 36) {
    return error;
  }
  Uuid uuid{};
  size_t digits = 0;
  bool zero = true;
  for (size_t i = 0; i < text.size(); ++i) {
    if (i == 8 || i == 13 || i == 18 || i == 23) {
      if (text[i] != '-') {
        return error;
      }
      continue;
    }
    if (!absl::ascii_isxdigit(static_cast<unsigned char>(text[i]))) {
      return error;
    }
    const char c = absl::ascii_tolower(static_cast<unsigned char>(text[i]));
    const auto digit = static_cast<std::byte>(c <= '9' ? c - '0' : c - 'a' + 10);
    uuid[digits / 2] = (uuid[digits / 2] << 4) | digit;
    zero = zero && digit == std::byte{0};
    ++digits;
  }
  return zero ? absl::StatusOr<Uuid>(absl::InvalidArgumentError("is the nil uuid; make one with `uuidgen`"))
              : uuid;
}

absl::StatusOr<HostPort> ParseHostPort(std::string_view text) {
  const absl::Status error = absl::InvalidArgumentError(
      "is no address; allowed: \"host:port\" or \"[ipv6]:port\", port 1 to 65535, as in \"192.0.2.1:7400\"");
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos || colon == 0) {
    return error;
  }
  std::string_view host = text.substr(0, colon);
  if (host.front() == '[' && host.back() == ']' && host.size() > 2) {
    host = host.substr(1, host.size() - 2);
  } else if (host.find_first_of(":[] \t") != std::string_view::npos) {
    return error;
  }
  uint16_t port = 0;
  const char* end = text.data() + text.size();
  const auto [stop, failure] = std::from_chars(text.data() + colon + 1, end, port);
  if (failure != std::errc() || stop != end || port == 0) {
    return error;
  }
  return HostPort{std::string(host), port};
}

bool IsName(std::string_view text) {
  if (text.empty() || text.size() > 63 || !absl::ascii_isalnum(static_cast<unsigned char>(text.front()))) {
    return false;
  }
  return text.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") ==
         std::string_view::npos;
}

}  // namespace pmirror::server
