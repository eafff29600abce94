// SPDX-License-Identifier: BSD-3-Clause
// The volume's namespace operations in their one order, encoded, from the oldest that some replica does not have durably to the newest.
// Links read it at their own pace and replay from it after a reconnect. Thread-safe.
//
// Bounded: Append waits for nobody, but full() tells its caller when to ask for a barrier and wait.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "replication/namespace_op.h"

namespace pmirror::fs {

class OperationLog {
 public:
  static constexpr size_t kMaxOperations = 4096;
  static constexpr size_t kMostKept = 65536;  // while somebody keeps some

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

  // What comes behind `number` stays until Release() by the same `keeper`: the tree that a resync brings to its replica is as of then.
  void Keep(size_t keeper, uint64_t number);
  void Release(size_t keeper);
  // Nothing is kept any more: there is too much of it.
  void ReleaseAll();

 private:
  mutable std::mutex mutex_;
  std::deque<Bytes> operations_;     // guarded by mutex_
  uint64_t first_ = 1;               // guarded by mutex_; number of operations_.front()
  std::map<size_t, uint64_t> kept_;  // guarded by mutex_; keeper -> last operation that may go
};

}  // namespace pmirror::fs
