// SPDX-License-Identifier: BSD-3-Clause
// How large files were when they were closed: for the count of bytes that a replica may lack. Thread-safe.
#pragma once

#include <cstdint>
#include <mutex>
#include <unordered_map>

#include "replication/types.h"

namespace pmirror::fs {

class KnownSizes {
 public:
  void Closed(FileId file, uint64_t size) {
    const std::lock_guard lock(mutex_);
    sizes_[file] = size;
  }
  void Forget(FileId file) {
    const std::lock_guard lock(mutex_);
    sizes_.erase(file);
  }
  // 0: not known.
  uint64_t Of(FileId file) const {
    const std::lock_guard lock(mutex_);
    const auto found = sizes_.find(file);
    return found == sizes_.end() ? 0 : found->second;
  }

 private:
  mutable std::mutex mutex_;
  std::unordered_map<FileId, uint64_t> sizes_;  // guarded by mutex_
};

}  // namespace pmirror::fs
