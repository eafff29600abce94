// SPDX-License-Identifier: BSD-3-Clause
// This process's captures under way and ranges to redo, in the table that the daemon reads
// (replication/ticket_table.h).
//
// The rules (each checked by the capture order model): a ticket is opened before the scan; after the scan a
// sync looks at all tickets that overlap its range, whatever their age; it takes redo ranges into its own
// capture and clears them only when that is acknowledged and they are still the same incarnation; its own
// ticket closes when its capture is acknowledged, before it waits for the others (no circle); a ticket that
// failed becomes a redo range in one step, and everybody who waited for it fails too. A sync in a signal
// handler that interrupted a sync of the same thread waits for nobody: it captures what the others hold
// itself.
//
// Thread-safe, async-signal-safe, no allocation.
#pragma once

#include <array>
#include <cstdint>

#include "interpose/extent_list.h"
#include "interpose/signal_lock.h"
#include "replication/deadline.h"
#include "replication/result.h"
#include "replication/ticket_table.h"

namespace pmirror::interpose {

class TicketLog {
 public:
  struct Held {
    uint32_t slot = 0;
    uint64_t serial = 0;
  };

  // What a sync found after its scan.
  struct Others {
    static constexpr size_t kRoom = 16;
    std::array<Held, kRoom> open;  // to wait for
    size_t open_count = 0;
    std::array<Held, kRoom> redo;  // taken into this capture
    size_t redo_count = 0;
  };

  constexpr TicketLog() = default;
  // `table` must outlive its use. Also for the table of a forked child: forgets everything of the parent's.
  void Attach(TicketTable* table);
  TicketTable* table() const { return table_; }

  // Step 2 of a sync. EAGAIN: kMaxTickets threads are at it already.
  Result<Held> Open(uint32_t volume, FileId file, Extent range);

  // After the scan: adds redo ranges that overlap `range` to `extents`, and open ones to `others` (or, when
  // `wait_for_nobody` or there are too many, their part of `range` to `extents` too). Then narrows the own
  // ticket to what `extents` holds.
  void Look(const Held& own, Extent range, bool wait_for_nobody, ExtentList& extents, Others& others);

  // The capture is acknowledged: the ticket and the redo ranges it carried are gone.
  void Close(const Held& own, const Others& others);
  // It is not: what it carried is to be redone. An own ticket that carries nothing just ends.
  void Fail(const Held& own, const Others& others);

  // EIO: one of them failed, or the deadline passed first.
  Error Await(const Others& others, Deadline deadline);

  // A range that counts as dirty from now on although no scan will show it. False when it could only be noted
  // by giving up on all of the process (abandoned).
  bool MarkRedo(uint32_t volume, FileId file, Extent range);

  // Redo ranges of the file that overlap `range`, added to `extents`; `others.redo` remembers them for
  // ClearRedo.
  void CollectRedo(uint32_t volume, FileId file, Extent range, ExtentList& extents, Others& others);
  void ClearRedo(const Others& others);

  void CountSync(uint32_t volume);
  void Abandon();

 private:
  Ticket& at(const Held& held) { return table_->tickets[held.slot]; }
  bool Is(const Held& held, TicketState state);
  void Set(Ticket& ticket, TicketState state);
  void Free(const Held& held, TicketState expected);
  Result<Held> Take(uint32_t volume, FileId file, Extent range, TicketState state);

  FutexMutex lock_;
  TicketTable* table_ = nullptr;
  uint32_t used_ = 0;  // slots ever used, guarded by lock_
  std::atomic<uint32_t> waiters_{0};
  // Serial of the last ticket of a slot that failed: outlives the ticket, so that a waiter that comes late
  // learns it.
  std::array<std::atomic<uint64_t>, kMaxTickets> failed_{};
};

}  // namespace pmirror::interpose
