// SPDX-License-Identifier: BSD-3-Clause
#include "fs/operation_log.h"

#include <algorithm>
#include <cassert>

namespace pmirror::fs {

uint64_t OperationLog::Append(NamespaceOp& op) {
  std::lock_guard lock(mutex_);
  const uint64_t number = first_ + operations_.size();
  if (op.kind == OpKind::kTruncate || op.kind == OpKind::kAllocate) {
    op.generation = 2 * number;
  }
  auto bytes = std::make_shared<std::vector<std::byte>>();
  Encode(op, *bytes);
  operations_.push_back(std::move(bytes));
  return number;
}

uint64_t OperationLog::last() const {
  std::lock_guard lock(mutex_);
  return first_ + operations_.size() - 1;
}

uint64_t OperationLog::first() const {
  std::lock_guard lock(mutex_);
  return first_;
}

OperationLog::Bytes OperationLog::Get(uint64_t number) const {
  std::lock_guard lock(mutex_);
  assert(number < first_ + operations_.size());
  return number >= first_ ? operations_[number - first_] : nullptr;
}

void OperationLog::Trim(uint64_t number) {
  std::lock_guard lock(mutex_);
  for (const auto& [keeper, last] : kept_) {
    number = std::min(number, last);
  }
  while (!operations_.empty() && first_ <= number) {
    operations_.pop_front();
    ++first_;
  }
}

bool OperationLog::full() const {
  std::lock_guard lock(mutex_);
  return operations_.size() >= (kept_.empty() ? kMaxOperations : kMostKept);
}

void OperationLog::Keep(size_t keeper, uint64_t number) {
  std::lock_guard lock(mutex_);
  kept_[keeper] = number;
}

void OperationLog::Release(size_t keeper) {
  std::lock_guard lock(mutex_);
  kept_.erase(keeper);
}

void OperationLog::ReleaseAll() {
  std::lock_guard lock(mutex_);
  kept_.clear();
}

}  // namespace pmirror::fs
