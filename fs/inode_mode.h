// SPDX-License-Identifier: BSD-3-Clause
// In which of the two modes an inode is, as a state machine without I/O.
//
//   cached   a plain handle is open: the kernel caches pages of the FUSE file, which may be mapped shared.
//   Nobody gets the backing file. direct   somebody maps the backing file: every FUSE handle is direct I/O,
//   without shared mappings. idle     neither; the next taker decides.
//
// The two exclude each other because a cached FUSE mapping beside a mapping of the backing file loses stores.
// Handles of programs that run the preload library are always direct I/O and never stand in the way.
//
// Invariants: plain_ is empty or direct_ == 0. What the kernel has cached is only kept at an open
// (keep_cache) when nobody can have changed the file beside that cache since it was filled.
//
// Not thread-safe: Inode guards it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>

namespace pmirror::fs {

class InodeMode {
 public:
  struct Opened {
    bool direct_io = false;   // FOPEN_DIRECT_IO
    bool keep_cache = false;  // FOPEN_KEEP_CACHE; only when not direct_io
  };

  // A program without the preload library opens the file. When the answer is not direct I/O, the handle
  // counts until ClosePlain(pid).
  Opened OpenPlain(pid_t pid);
  void ClosePlain(pid_t pid);

  // A program with the preload library opens the file; such a handle is not counted.
  Opened OpenAnnounced() const { return {.direct_io = true}; }

  // Somebody wants the backing file. 0, and it counts until DropDirect(); or EBUSY, and *holder is a process
  // with a plain handle.
  int TakeDirect(pid_t* holder);
  void DropDirect();

  // The file's data changed beside the kernel's cache (a direct I/O handle, or the daemon itself). True when
  // cached handles are open, so that the cache must be invalidated now; otherwise the next open does it.
  bool ChangedBesideCache();

  bool cached() const { return !plain_.empty(); }
  bool direct() const { return direct_ != 0; }

 private:
  std::map<pid_t, uint32_t> plain_;  // process (as it was at open) -> its plain handles
  uint32_t direct_ = 0;
  bool cache_is_stale_ = true;
};

}  // namespace pmirror::fs
