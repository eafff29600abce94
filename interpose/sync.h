// SPDX-License-Identifier: BSD-3-Clause
// The syncs of a program with page granularity: msync, fsync and their kin. Any thread, also in signal
// handlers and while it is being cancelled.
#pragma once

#include <cstddef>
#include <cstdint>

#include "interpose/runtime.h"
#include "interpose/thread_state.h"
#include "replication/result.h"

namespace pmirror::interpose {

// Around everything that replicates: keeps cancellation out, counts nesting, keeps errno on success.
class SyncScope {
 public:
  SyncScope();
  ~SyncScope();
  SyncScope(const SyncScope&) = delete;
  SyncScope& operator=(const SyncScope&) = delete;
  bool nested() const;

 private:
  int cancel_state_ = 0;
  int saved_errno_;
};

// msync(2) with MS_SYNC of a range that overlaps replicated mappings.
int SyncMemory(Runtime& runtime, uintptr_t address, size_t length, int flags);

// The part of fsync and its kin that the kernel cannot do: this process's stores to [range) of the file
// behind inode number `id` of the volume, on the replicas and durable here. Ok at once when it has no mapping
// that was stored to.
Error SyncFile(Runtime& runtime, Volume& volume, FileId id, Extent range);

// The same for every file of the volume, then for everybody else's.
Error SyncVolume(Runtime& runtime, Volume& volume);

// Remembers a failure for pmirror_error and pmirror_get_error_info, and returns it as errno for a call that may only
// fail with EIO, ENOSPC or EDQUOT.
int Fail(Error error, const ErrorPlace& place);
int ErrnoOf(const Error& error);  // that errno alone, of what has been remembered
ErrorPlace PlaceOf(const Runtime& runtime, int action, const Mapping& part);
ErrorPlace PlaceOf(int action, const Volume& volume, FileId file);

}  // namespace pmirror::interpose
