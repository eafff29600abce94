// SPDX-License-Identifier: BSD-3-Clause
// A volume's uuid as the control protocol carries it: its 16 bytes. Pure.
#pragma once

#include <algorithm>
#include <optional>
#include <string>

#include "replication/types.h"

namespace pmirror::fs {

inline std::string UuidBytes(const Uuid& uuid) {
  return {reinterpret_cast<const char*>(uuid.data()), uuid.size()};
}

// Nothing, when those are no 16 bytes.
inline std::optional<Uuid> UuidOf(const std::string& bytes) {
  Uuid uuid{};
  if (bytes.size() != uuid.size()) {
    return std::nullopt;
  }
  std::copy(bytes.begin(), bytes.end(), reinterpret_cast<char*>(uuid.data()));
  return uuid;
}

}  // namespace pmirror::fs
