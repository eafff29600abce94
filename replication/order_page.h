// SPDX-License-Identifier: BSD-3-Clause
// The order counter of one file, in memory shared by every process that may write the file, and the taking of
// an order number.
//
// Rule (docs/internals/capture-order.md): scan and protect, then TakeOrder(), then copy. The number counts
// only if the file's size generation was the same even value before and after it was taken. Lock-free and
// async-signal-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>

#include "replication/types.h"

namespace pmirror {

// One page of a sealed-size memfd.
struct OrderPage {
  std::atomic<uint64_t> next;  // next number to hand out, from 1
};
static_assert(std::atomic<uint64_t>::is_always_lock_free);

// Takes one order number. Empty while a size operation is under way (odd generation) or when one came
// between: try again, waiting with FUTEX_WAIT on the generation's low word when it is odd.
std::optional<Order> TakeOrder(OrderPage& page, const std::atomic<uint64_t>& size_generation);

}  // namespace pmirror
