// SPDX-License-Identifier: BSD-3-Clause
// CPU cache flush of a range of persistent memory, with the best instruction the processor has, and the fence
// that completes it. Async-signal-safe.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pmirror::interpose {

// Writes back the cache lines of [address, address + length); DrainCaches() makes it complete.
void FlushCaches(uintptr_t address, size_t length);
void DrainCaches();

}  // namespace pmirror::interpose
