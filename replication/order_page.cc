// SPDX-License-Identifier: BSD-3-Clause
// See order_page.h; docs/internals/capture-order.md has the argument.
#include "replication/order_page.h"

namespace pmirror {

std::optional<Order> TakeOrder(OrderPage& page, const std::atomic<uint64_t>& size_generation) {
  const uint64_t before = size_generation.load(std::memory_order_seq_cst);
  if (before % 2 != 0) {
    return std::nullopt;  // a number taken now would not count: leave no gap
  }
  const uint64_t number = page.next.fetch_add(1, std::memory_order_seq_cst);
  const uint64_t after = size_generation.load(std::memory_order_seq_cst);
  if (after != before) {
    return std::nullopt;  // the number becomes a gap
  }
  return Order{.number = number, .size_generation = before};
}

}  // namespace pmirror
