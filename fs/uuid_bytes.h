// SPDX-License-Identifier: BSD-3-Clause
// A volume's uuid as the control protocol carries it: its 16 bytes.
#pragma once

#include <string>

#include "replication/types.h"

namespace pmirror::fs {

inline std::string UuidBytes(const Uuid& uuid) {
  return {reinterpret_cast<const char*>(uuid.data()), uuid.size()};
}

}  // namespace pmirror::fs
