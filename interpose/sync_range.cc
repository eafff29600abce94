// SPDX-License-Identifier: BSD-3-Clause
// The order of the steps is the point: see the rules in ticket_log.h.
#include "interpose/sync_range.h"

#include "replication/signal_guard.h"

namespace pmirror::interpose {
namespace {

constexpr uint64_t kCopiedUnscanned = 16 * 1024;  // bytes; a scan and the faults that it causes cost as much

}  // namespace

Error SyncRange(TicketLog& tickets, const SyncRequest& request, SyncedFile& file, std::span<Extent> room) {
  if (file.Alone()) {
    // Nothing is scanned: the pages stay dirty for whoever joins. Looked again afterwards, because who joined meanwhile has to be sent them.
    const Error persisted = request.local != nullptr ? request.local->Persist() : Error::Ok();
    if (!persisted.ok()) {
      return persisted;
    }
    if (file.Alone()) {
      tickets.CountSync(request.volume);
      return Error::Ok();
    }
  }
  if (request.range.length <= kCopiedUnscanned && file.OnlyTrails()) {
    // As a flush of named words: the bytes are those of the file, whoever stored them, so that nobody else has to be asked or waited for; and
    // the pages stay dirty. Whoever counts again meanwhile is sent them by the same capture.
    Error captured = request.local != nullptr ? request.local->Persist() : Error::Ok();
    const SignalBlock block;  // one, instead of several inside
    if (captured.ok()) {
      ExtentList named(room);
      named.Add(request.range);
      named.ClipToSize(file.Size());
      captured = file.Capture(named.extents(), nullptr);
    }
    if (captured.ok()) {
      tickets.CountSync(request.volume);
    }
    return captured;
  }
  ExtentList extents(room);
  TicketLog::Others others;
  const Result<TicketLog::Held> opened = tickets.Open(request.volume, request.file, request.range);
  if (!opened.ok()) {
    return opened.error();  // nothing was scanned: what is dirty stays visibly so
  }
  const TicketLog::Held& own = opened.value();

  file.ScanAndProtect(request.range, extents);
  tickets.Look(own, request.range, request.nested, extents, others);
  // Clipped here and not in the ticket: if the file grows back, the ticket still names all that may be old on
  // the replica.
  extents.ClipToSize(file.Size());
  Error result = file.Capture(extents.extents(), request.local);
  if (result.ok()) {
    tickets.Close(own, others);
  } else {
    tickets.Fail(own, others);
  }
  // Our own capture no longer holds up anybody, so waiting cannot close a circle.
  if (const Error waited = tickets.Await(others, file.WaitDeadline()); result.ok()) {
    result = waited;
  }
  // Asked after the scan, because a capture of the daemon that took our pages raised its flag before; and
  // after the wait, because a thread that unmapped has given its dirty ranges to the daemon meanwhile.
  if (result.ok() && file.OthersMayBeDirty()) {
    result = file.SyncOthers(request.range);
  }
  if (result.ok()) {
    tickets.CountSync(request.volume);
  }
  return result;
}

}  // namespace pmirror::interpose
