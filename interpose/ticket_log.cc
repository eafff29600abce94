// SPDX-License-Identifier: BSD-3-Clause
// The writer's side of the ticket table.
#include "interpose/ticket_log.h"

#include <climits>

#include <algorithm>

namespace pmirror::interpose {
namespace {

uint32_t Word(TicketState state) { return static_cast<uint32_t>(state); }

Extent Intersection(Extent a, Extent b) {
  const uint64_t start = std::max(a.offset, b.offset);
  const uint64_t end = std::min(a.end(), b.end());
  return end > start ? Extent{start, end - start} : Extent{};
}

bool Covers(const Ticket& outer, const Ticket& inner) {
  return outer.offset <= inner.offset && inner.offset + inner.length <= outer.offset + outer.length;
}

// The daemon may read between any two of these (fs/ticket_reader.cc): a length that reaches over the new range from
// any offset, the offset, the length. What it makes of them always holds what was scanned.
void Narrow(Ticket& ticket, Extent extent) {
  __atomic_store_n(&ticket.length, std::max(extent.end(), ticket.offset + ticket.length), __ATOMIC_RELEASE);
  __atomic_store_n(&ticket.offset, extent.offset, __ATOMIC_RELEASE);
  __atomic_store_n(&ticket.length, extent.length, __ATOMIC_RELEASE);
}

}  // namespace

void TicketLog::Attach(TicketTable* table) {
  lock_.ResetAfterFork();
  table_ = table;
  used_ = 0;
  waiters_.store(0, std::memory_order_relaxed);
  for (auto& failed : failed_) {
    failed.store(0, std::memory_order_relaxed);
  }
}

// The serial is looked at once more behind the state: between the two the slot may have been freed and taken anew, and the state be the next
// holder's, whose serial was stored before it.
bool TicketLog::Is(const Held& held, TicketState state) {
  const Ticket& ticket = at(held);
  return ticket.serial.load(std::memory_order_acquire) == held.serial &&
         ticket.state.load(std::memory_order_acquire) == Word(state) &&
         ticket.serial.load(std::memory_order_acquire) == held.serial;
}

void TicketLog::Set(Ticket& ticket, TicketState state) {
  ticket.state.store(Word(state), std::memory_order_seq_cst);
  if (waiters_.load(std::memory_order_seq_cst) != 0) {
    FutexWake(&ticket.state, INT_MAX, FutexScope::kShared);
  }
}

// Every change that moves a range from one slot to another takes a serial, so that a reader of the whole
// table (the daemon) can tell that it has to read again: next_serial is its sequence counter.
Result<TicketLog::Held> TicketLog::Take(uint32_t volume, FileId file, Extent range, TicketState state) {
  for (uint32_t slot = 0; slot < kMaxTickets; ++slot) {
    Ticket& ticket = table_->tickets[slot];
    if (ticket.state.load(std::memory_order_relaxed) != Word(TicketState::kFree)) {
      continue;
    }
    used_ = std::max(used_, slot + 1);
    const uint64_t serial = table_->next_serial.fetch_add(1, std::memory_order_acq_rel) + 1;
    ticket.volume = volume;
    ticket.file = Raw(file);
    ticket.offset = range.offset;
    ticket.length = range.length;
    ticket.serial.store(serial, std::memory_order_release);
    ticket.state.store(Word(state), std::memory_order_seq_cst);
    return Held{slot, serial};
  }
  return Error{EAGAIN, "open a ticket: every one is taken"};
}

Result<TicketLog::Held> TicketLog::Open(uint32_t volume, FileId file, Extent range) {
  const SignalGuard guard(lock_);
  return Take(volume, file, range, TicketState::kOpen);
}

void TicketLog::Look(const Held& own, Extent range, bool wait_for_nobody, ExtentList& extents,
                     Others& others) {
  const SignalGuard guard(lock_);
  Ticket& mine = at(own);
  for (uint32_t slot = 0; slot < used_; ++slot) {
    const Ticket& ticket = table_->tickets[slot];
    const auto state = static_cast<TicketState>(ticket.state.load(std::memory_order_relaxed));
    const Extent hull{ticket.offset, ticket.length};
    if (slot == own.slot || state == TicketState::kFree || ticket.file != mine.file ||
        ticket.volume != mine.volume || !hull.Overlaps(range)) {
      continue;
    }
    const Held held{slot, ticket.serial.load(std::memory_order_relaxed)};
    if (state == TicketState::kRedo) {
      extents.Add(hull);
      if (others.redo_count < Others::kRoom) {  // else it stays, and is sent once more
        others.redo[others.redo_count++] = held;
      }
    } else if (wait_for_nobody || others.open_count == Others::kRoom) {
      extents.Add(Intersection(hull, range));
    } else {
      others.open[others.open_count++] = held;
    }
  }
  // What this sync did not take is nobody's wait.
  Narrow(mine, extents.hull());
}

void TicketLog::Free(const Held& held, TicketState expected) {
  if (Is(held, expected)) {
    Set(at(held), TicketState::kFree);
  }
}

void TicketLog::Close(const Held& own, const Others& others) {
  const SignalGuard guard(lock_);
  Free(own, TicketState::kOpen);
  for (size_t i = 0; i < others.redo_count; ++i) {
    Free(others.redo[i], TicketState::kRedo);
  }
}

void TicketLog::Fail(const Held& own, const Others& others) {
  const SignalGuard guard(lock_);
  Ticket& mine = at(own);
  if (mine.length == 0) {
    Set(mine, TicketState::kFree);
    return;
  }
  failed_[own.slot].store(own.serial, std::memory_order_release);
  Set(mine, TicketState::kRedo);
  // The redo ranges it carried lie within it now; dropping them keeps a program that retries for ever at one
  // ticket.
  for (size_t i = 0; i < others.redo_count; ++i) {
    if (Is(others.redo[i], TicketState::kRedo) && Covers(mine, at(others.redo[i]))) {
      table_->next_serial.fetch_add(1, std::memory_order_acq_rel);
      Set(at(others.redo[i]), TicketState::kFree);
    }
  }
}

Error TicketLog::Await(const Others& others, Deadline deadline) {
  Error result = Error::Ok();
  for (size_t i = 0; i < others.open_count; ++i) {
    const Held& held = others.open[i];
    waiters_.fetch_add(1, std::memory_order_seq_cst);
    while (Is(held, TicketState::kOpen) && !deadline.Expired()) {
      FutexWait(&at(held).state, Word(TicketState::kOpen), deadline, FutexScope::kShared);
    }
    waiters_.fetch_sub(1, std::memory_order_seq_cst);
    // A later failure in the same slot also counts: it cannot be told apart any more, and to fail is safe.
    const bool failed =
        Is(held, TicketState::kOpen) || failed_[held.slot].load(std::memory_order_acquire) >= held.serial;
    if (failed) {
      result = Error{EIO, "wait for another thread's capture of the same range"};
    }
  }
  return result;
}

bool TicketLog::MarkRedo(uint32_t volume, FileId file, Extent range) {
  if (range.empty()) {
    return true;
  }
  const SignalGuard guard(lock_);
  for (uint32_t slot = 0; slot < used_; ++slot) {
    const Ticket& ticket = table_->tickets[slot];
    if (ticket.state.load(std::memory_order_relaxed) == Word(TicketState::kRedo) &&
        ticket.file == Raw(file) && ticket.volume == volume && ticket.offset <= range.offset &&
        range.end() <= ticket.offset + ticket.length) {
      // Somebody may be carrying it right now with older bytes: a new serial keeps it from being cleared by
      // that.
      table_->tickets[slot].serial.store(table_->next_serial.fetch_add(1, std::memory_order_acq_rel) + 1,
                                         std::memory_order_release);
      return true;
    }
  }
  if (Take(volume, file, range, TicketState::kRedo).ok()) {
    return true;
  }
  table_->abandoned.store(1, std::memory_order_release);
  return false;
}

void TicketLog::CollectRedo(uint32_t volume, FileId file, Extent range, ExtentList& extents, Others& others) {
  const SignalGuard guard(lock_);
  for (uint32_t slot = 0; slot < used_; ++slot) {
    const Ticket& ticket = table_->tickets[slot];
    const Extent hull{ticket.offset, ticket.length};
    if (ticket.state.load(std::memory_order_relaxed) != Word(TicketState::kRedo) ||
        ticket.file != Raw(file) || ticket.volume != volume || !hull.Overlaps(range)) {
      continue;
    }
    extents.Add(hull);
    if (others.redo_count < Others::kRoom) {
      others.redo[others.redo_count++] = {slot, ticket.serial.load(std::memory_order_relaxed)};
    }
  }
}

void TicketLog::ClearRedo(const Others& others) {
  const SignalGuard guard(lock_);
  for (size_t i = 0; i < others.redo_count; ++i) {
    Free(others.redo[i], TicketState::kRedo);
  }
}

void TicketLog::CountSync(uint32_t volume) {
  table_->acknowledged_syncs[volume].fetch_add(1, std::memory_order_relaxed);
}

void TicketLog::Abandon() {
  if (table_ != nullptr) {
    table_->abandoned.store(1, std::memory_order_release);
  }
}

}  // namespace pmirror::interpose
