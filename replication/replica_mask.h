// SPDX-License-Identifier: BSD-3-Clause
// Replicas of a volume as bits of a byte: bit i is the i-th configured one. Pure functions.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace pmirror {

using ReplicaMask = uint8_t;
constexpr ReplicaMask kAllReplicas = UINT8_MAX;
constexpr ReplicaMask Bit(size_t replica) { return static_cast<ReplicaMask>(1U << replica); }

template <typename Function>
void ForEach(ReplicaMask mask, Function function) {
  for (unsigned left = mask; left != 0; left &= left - 1) {
    function(static_cast<size_t>(std::countr_zero(left)));
  }
}

}  // namespace pmirror
