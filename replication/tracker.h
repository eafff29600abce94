// SPDX-License-Identifier: BSD-3-Clause
// What is known about write tracking on a file system (FACTS: a tracker that misses a store loses data, and some hang the program).
#pragma once

#include <cstdint>

namespace pmirror {

enum class Tracking : uint32_t {
  kNone = 0,            // not proven: a sync sends the whole synced range
  kWritten = 1,         // proven with PAGE_IS_WRITTEN alone (page cache, tmpfs)
  kWrittenPresent = 2,  // proven with PAGE_IS_WRITTEN and PAGE_IS_PRESENT, MADV_NOHUGEPAGE (fsdax)
};

}  // namespace pmirror
