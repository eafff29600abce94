// SPDX-License-Identifier: BSD-3-Clause
// The volume's namespace operations in their one order, encoded, from the oldest that some replica does not have durably to the newest.
// Links read it at their own pace and replay from it after a reconnect. Thread-safe.
//
// Bounded: Append waits for nobody, but FullThrough() tells its caller when to ask for a barrier and wait (kMaxOperations).
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "replication/namespace_op.h"

namespace pmirror::fs {

class OperationLog {
 public:
  static constexpr size_t kMaxOperations = 4096;

  using Bytes = std::shared_ptr<const std::vector<std::byte>>;

  // Gives `op` the next number. For size operations also sets op.generation (2 x number) first.
  // Requires: the caller holds the namespace lock, under which the local change was made.
  uint64_t Append(NamespaceOp& op);

  uint64_t last() const;
  // Oldest number still held; last() + 1 when none is.
  uint64_t first() const;
  // Null when it was trimmed meanwhile. Requires: number <= last().
  Bytes Get(uint64_t number) const;
  // Every configured replica has operations up to `number` durably.
  void Trim(uint64_t number);
  bool full() const;

 private:
  mutable std::mutex mutex_;
  std::deque<Bytes> operations_;  // guarded by mutex_
  uint64_t first_ = 1;            // guarded by mutex_; number of operations_.front()
};

}  // namespace pmirror::fs
