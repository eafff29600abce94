// SPDX-License-Identifier: BSD-3-Clause
// Numbers that nobody can guess and that do not come twice: identities, generations, tokens, tickets.
#pragma once

#include <sys/random.h>

#include <cstdint>

namespace pmirror::recovery {

// The kernel's generator does not fail once it has been seeded, at boot. Requires: T is bytes, few of them.
template <typename T>
T RandomValue() {
  T value{};
  while (::getrandom(&value, sizeof value, 0) != sizeof value) {
  }
  return value;
}

// Never 0, which says "none" everywhere.
inline uint64_t RandomNumber() {
  uint64_t number = 0;
  while (number == 0) {
    number = RandomValue<uint64_t>();
  }
  return number;
}

}  // namespace pmirror::recovery
