// SPDX-License-Identifier: BSD-3-Clause
// The real functions behind the ones that we take over, found when first needed.
#pragma once

namespace pmirror::interpose {

enum class Library { kLibc, kLibpmem, kLibpmem2 };

#define INTERCEPTED(name, library) k_##name,
#define LEFT_ALONE(name, reason)
enum class Call : int {
#include "interpose/calls.def"
  kCount
};
#undef INTERCEPTED
#undef LEFT_ALONE

// Null when no loaded library has it. The first time for a call it asks the dynamic linker (not
// async-signal-safe); WarmUp() does that for libc's beforehand.
void* NextAddress(Call call);

// Next(Call::k_fsync, &::fsync)(fd)
template <typename Function>
Function* Next(Call call, Function*) {
  return reinterpret_cast<Function*>(NextAddress(call));
}

void WarmUp();

// A function of a library that is called but not taken over; null when the library is not loaded.
void* AddressIn(Library library, const char* name);

}  // namespace pmirror::interpose
