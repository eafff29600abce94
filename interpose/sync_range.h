// SPDX-License-Identifier: BSD-3-Clause
// The life of one sync of one file range (docs/internals/architecture.md), without the kernel and the
// network: what is scanned, sent and asked is behind the interfaces below.
//
// Thread-safe and async-signal-safe as far as the implementations given are.
#pragma once

#include "interpose/extent_list.h"
#include "interpose/ticket_log.h"
#include "replication/deadline.h"
#include "replication/replicate.h"
#include "replication/result.h"

namespace pmirror::interpose {

// What a sync needs to know and to do about one file.
class SyncedFile {
 public:
  virtual ~SyncedFile() = default;
  // Adds what was stored to `range` of the file through any mapping of this process since the last scan, and
  // protects it again.
  virtual void ScanAndProtect(Extent range, ExtentList& extents) = 0;
  // Where the file ends now, bytes.
  virtual uint64_t Size() = 0;
  // Captures the extents and returns when every in-sync replica has them durably; runs `local` beside it. May
  // be asked with no extents: then only `local` remains to be done.
  virtual Error Capture(std::span<const Extent> extents, LocalPersist* local) = 0;
  // There is no replica to send to, and the owner's policy is to go on: what the replicas lack, the file's mark stands for
  // (docs/internals/resync.md).
  virtual bool Alone() = 0;
  // Nobody is sent what is synced, and somebody trails (docs/internals/rpo.md): then to copy a few pages costs less than to find out which
  // of them were stored to.
  virtual bool OnlyTrails() { return false; }
  // Somebody else may hold dirty ranges of the file. Asked after the scan and after the wait for other
  // threads.
  virtual bool OthersMayBeDirty() = 0;
  // Has them captured: durable on every in-sync replica when it returns success.
  virtual Error SyncOthers(Extent range) = 0;
  // How long a sync may wait for another thread's.
  virtual Deadline WaitDeadline() = 0;
};

struct SyncRequest {
  uint32_t volume = 0;
  FileId file = FileId::kNone;
  Extent range;  // bytes of the file
  LocalPersist* local = nullptr;
  bool nested = false;  // this thread is in a signal handler that interrupted a sync of its own
};

// `room` is scratch memory for the dirty ranges (at least 2). On an error everything the sync did not bring
// to the replicas is still dirty.
Error SyncRange(TicketLog& tickets, const SyncRequest& request, SyncedFile& file, std::span<Extent> room);

}  // namespace pmirror::interpose
