// SPDX-License-Identifier: BSD-3-Clause
// Reading of memory that may give SIGBUS (truncated, poisoned, no space for a hole): like a kernel's
// exception table. The SIGBUS handler (sigbus.h) looks whether the faulting instruction lies in one of the
// routines here and lets it return early. Async-signal-safe. Without the handler a fault is what it always
// was.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {
// Copies `length` bytes; returns how many were copied: fewer when a fault ended it (then everything before
// the fault's page was copied or will be found by asking again from there). Loads aligned 8-byte words whole.
size_t pmirror_guarded_copy(void* to, const void* from, size_t length);

// Adds zero to the aligned 32-bit word at `address`, atomically: a store that loses nobody's update. False
// when that gave SIGBUS.
bool pmirror_guarded_touch(void* address);

// NOLINTBEGIN(readability-identifier-naming): labels, named as the functions they lie in
// First and past-the-end instruction that may fault, and where to go on.
extern const char pmirror_guarded_copy_begin[], pmirror_guarded_copy_end[], pmirror_guarded_copy_fixup[];
extern const char pmirror_guarded_touch_begin[], pmirror_guarded_touch_end[], pmirror_guarded_touch_fixup[];
// NOLINTEND(readability-identifier-naming)
}

namespace pmirror::interpose {

// Where to continue when the instruction at `at` faulted; 0 when it is none of ours.
inline uintptr_t FixupFor(uintptr_t at) {
  const auto address = [](const char* label) { return reinterpret_cast<uintptr_t>(label); };
  if (at >= address(pmirror_guarded_copy_begin) && at < address(pmirror_guarded_copy_end)) {
    return address(pmirror_guarded_copy_fixup);
  }
  if (at >= address(pmirror_guarded_touch_begin) && at < address(pmirror_guarded_touch_end)) {
    return address(pmirror_guarded_touch_fixup);
  }
  return 0;
}

}  // namespace pmirror::interpose
