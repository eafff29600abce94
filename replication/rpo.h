// SPDX-License-Identifier: BSD-3-Clause
// A recovery point objective: how much acknowledged work the loss of the primary may cost (docs/internals/rpo.md). One of time, bytes and
// syncs is set. A value.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "replication/volume_page.h"

namespace pmirror {

struct Rpo {
  std::chrono::nanoseconds time{};  // 0: not by time
  uint64_t bytes = 0;               // 0: not by bytes
  uint64_t syncs = 0;               // 0: not by syncs
  OnLag on_lag = OnLag::kThrottle;
  std::string text{};  // as it is configured

  bool operator==(const Rpo&) const = default;
};

}  // namespace pmirror
