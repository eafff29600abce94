// SPDX-License-Identifier: BSD-3-Clause
// What the file system must be able to take back from the kernel in front of the mount; the FUSE session
// implements it.
#pragma once

#include "replication/types.h"

namespace pmirror::fs {

class KernelCache {
 public:
  virtual ~KernelCache() = default;

  // Drops the file's cached attributes and its cached pages in `extent` (to the end when the length is 0),
  // after writing back those that a program has stored to. Blocks while the kernel does so, and the kernel
  // may send the file system requests meanwhile: call it without any lock, never with every session thread at
  // once (it is bounded by the number of threads).
  virtual void DropData(FileId id, Extent extent) = 0;

  // Writes back the pages of the file that programs have stored to, waits until all writes of it that are on
  // their way have been answered, and syncs it, by a handle of the daemon's own. Under the conditions of
  // DropData. 0, also when the kernel does not know the file; or an errno, of the sync too.
  virtual int WriteBack(FileId id) = 0;

  // Drops the file's cached attributes. Does not block.
  virtual void DropAttributes(FileId id) = 0;

  // Drops what the kernel believes about an entry, some time soon: the kernel holds the directory's lock
  // while it waits for the operation that found the need.
  virtual void DropEntrySoon(FileId parent, const char* name) = 0;
};

}  // namespace pmirror::fs
