// SPDX-License-Identifier: BSD-3-Clause
// The small languages inside a configuration file's strings: durations, sizes, addresses, uuids, names. Pure
// functions; an error's message says what is allowed and is meant to follow the key's name.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "replication/rpo.h"
#include "replication/types.h"

namespace pmirror::server {

// "250us", "50ms", "5s", "2m", "1h": a whole number and a unit.
absl::StatusOr<std::chrono::nanoseconds> ParseDuration(std::string_view text);

// "4096", "64KiB", "1MiB", "2GiB": bytes.
absl::StatusOr<uint64_t> ParseSize(std::string_view text);

// "0", a time, a size, or "100syncs".
absl::StatusOr<Rpo> ParseRpo(std::string_view text);

// "01234567-89ab-cdef-0123-456789abcdef", not all zero.
absl::StatusOr<Uuid> ParseUuid(std::string_view text);

struct HostPort {
  std::string host;  // name or address, without brackets
  uint16_t port = 0;
};
// "host:port", "192.0.2.1:7400", "[2001:db8::1]:7400".
absl::StatusOr<HostPort> ParseHostPort(std::string_view text);

// Letters, digits, '-', '_' and '.', beginning with a letter or digit, at most 63 of them: names of nodes and
// volumes.
bool IsName(std::string_view text);

}  // namespace pmirror::server
