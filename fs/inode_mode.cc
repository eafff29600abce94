// SPDX-License-Identifier: BSD-3-Clause
// Transitions of the inode modes. See inode_mode.h.
#include "fs/inode_mode.h"

#include <cassert>
#include <cerrno>

namespace pmirror::fs {

InodeMode::Opened InodeMode::OpenPlain(pid_t pid) {
  if (direct_ != 0) {
    return {.direct_io = true};
  }
  ++plain_[pid];
  const bool keep = !cache_is_stale_;
  cache_is_stale_ = false;  // this open empties it, or it was good
  return {.direct_io = false, .keep_cache = keep};
}

void InodeMode::ClosePlain(pid_t pid) {
  const auto found = plain_.find(pid);
  assert(found != plain_.end());
  if (--found->second == 0) {
    plain_.erase(found);
  }
}

int InodeMode::TakeDirect(pid_t* holder) {
  if (!plain_.empty()) {
    *holder = plain_.begin()->first;
    return EBUSY;
  }
  ++direct_;
  cache_is_stale_ = true;
  return 0;
}

void InodeMode::DropDirect() {
  assert(direct_ != 0);
  --direct_;
}

bool InodeMode::ChangedBesideCache() {
  if (!plain_.empty()) {
    return true;
  }
  cache_is_stale_ = true;
  return false;
}

}  // namespace pmirror::fs
