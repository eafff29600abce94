// SPDX-License-Identifier: BSD-3-Clause
// What became of one frame on the replica, and the one place where an errno of the backing file system
// becomes a word of the protocol.
#pragma once

#include <cerrno>
#include <optional>

#include "replication/frame.h"

namespace pmirror::server {

struct Refusal {
  RefusalCode code;
  int error_number = 0;  // errno, 0 where the code says all
};

// Empty: done.
using Outcome = std::optional<Refusal>;
constexpr std::nullopt_t kDone = std::nullopt;

inline Outcome OutcomeOf(int error) {
  switch (error) {
    case 0:
      return kDone;
    case ENOSPC:
    case EDQUOT:
      return Refusal{RefusalCode::kNoSpace, error};
    case ENOENT:
      return Refusal{RefusalCode::kNoSuchFile, error};
    case EFBIG:
      return Refusal{RefusalCode::kOutOfRange, error};
    default:
      return Refusal{RefusalCode::kIoError, error};
  }
}

}  // namespace pmirror::server
