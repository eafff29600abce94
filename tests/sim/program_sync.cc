// SPDX-License-Identifier: BSD-3-Clause
// The life of an msync in a program. Mirrors interpose/sync_range.cc and interpose/ticket_log.cc.
#include <algorithm>
#include <cerrno>

#include "tests/sim/node.h"
#include "tests/sim/program.h"
#include "tests/sim/program_path.h"

namespace pmirror::sim {

Task<bool> Program::Msync(FileId file, uint64_t first_page, uint64_t pages) {
  const Oracle::SyncToken token = oracle_.SyncBegins(file, first_page * 512, (first_page + pages) * 512,
                                                     3 * LongestSync(world_.settings));
  running_syncs_.insert(token.id);
  world_.Trace("p{}: sync #{} of {:#x} pages {}+{}", index_, token.id, Raw(file), first_page, pages);
  const int error = co_await SyncRange(file, {first_page * 4096, pages * 4096});
  world_.Trace("p{}: sync #{}: {}", index_, token.id, error == 0 ? "success" : "failure");
  running_syncs_.erase(token.id);
  oracle_.SyncReturned(token, error == 0);
  co_return error == 0;
}

Task<int> Program::SyncRange(FileId file, Extent range) {
  co_await world_.loop.Step();
  // Open.
  size_t slot = 0;
  while (slot < tickets_.size() && tickets_[slot].state != TicketState::kFree) {
    ++slot;
  }
  if (slot == tickets_.size()) {
    tickets_.emplace_back();
  }
  const uint64_t serial = next_serial_++;
  tickets_[slot] = {.state = TicketState::kOpen, .serial = serial, .file = file, .range = range};
  co_await world_.loop.Step();
  std::optional<DiskFile> snapshot;
  if (world_.Has(Planted::kCopyBeforeScan) && node_.disk().Find(file) != nullptr) {
    snapshot = *node_.disk().Find(file);
    co_await world_.loop.Step();
  }
  // Scan and protect.
  fs::ExtentSet extents;
  TakePages(file, range, extents);
  co_await world_.loop.Step();
  // Look.
  std::vector<Held> open;
  std::vector<Held> redo;
  for (size_t i = 0; i < tickets_.size(); ++i) {
    const Ticket& ticket = tickets_[i];
    if (i == slot || ticket.file != file || !ticket.range.Overlaps(range)) {
      continue;
    }
    if (ticket.state == TicketState::kOpen) {
      open.push_back({i, ticket.serial});
    } else if (ticket.state == TicketState::kRedo) {
      redo.push_back({i, ticket.serial});
      extents.Add(ticket.range);
    }
  }
  if (!extents.empty()) {
    const std::vector<Extent> all = extents.extents();
    tickets_[slot].range = {all.front().offset, all.back().end() - all.front().offset};
  }
  co_await world_.loop.Step();
  const DiskFile* const there = node_.disk().Find(file);
  fs::ExtentSet inside = extents.Within({0, there == nullptr || there->size == 0 ? 1 : there->size});
  if (there == nullptr || there->size == 0) {
    inside.Clear();
  }
  int error = co_await Capture(file, inside, snapshot.has_value() ? &*snapshot : nullptr);
  if (error == 0) {  // Close
    tickets_[slot].state = TicketState::kFree;
    for (const Held& held : redo) {
      if (tickets_[held.slot].state == TicketState::kRedo && tickets_[held.slot].serial == held.serial) {
        tickets_[held.slot].state = TicketState::kFree;
      }
    }
  } else {  // Fail
    const bool keep = !extents.empty() && !world_.Has(Planted::kNoRedoAfterFailure);
    tickets_[slot].state = keep ? TicketState::kRedo : TicketState::kFree;
    failed_[serial] = true;
  }
  tickets_changed_.Notify();
  co_await world_.loop.Step();
  if (!world_.Has(Planted::kNoWaitForTickets)) {
    const int waited = co_await AwaitOthers(open);
    error = error != 0 ? error : waited;
  }
  co_await world_.loop.Step();
  if (error == 0 && !world_.Has(Planted::kFlagsNotRead)) {
    const uint32_t flags = shared_->file(file, 0, 0).slot->flags;
    if ((flags & (kFileShared | kFileDaemonDirty)) != 0) {
      const Request request = [file, range, this](Daemon& daemon) {
        return daemon.SyncOthers(file, range, this);
      };
      error = co_await Ask(request);
    }
  }
  co_return error;
}

Task<int> Program::Capture(FileId file, const fs::ExtentSet& extents, const DiskFile* snapshot) {
  const bool in_doubt = shared_->page().unproven != 0 || !MaySucceed(shared_->page(), shared_->set());
  if (extents.empty() && (!in_doubt || world_.Has(Planted::kCleanPageOfLastMount))) {
    if (!world_.Has(Planted::kLocalNotPersisted)) {
      const FileId files[1] = {file};
      const Disk::Flush flush = node_.disk().BeginFlush(files);
      co_await world_.loop.Sleep(world_.rng().Between(20, 300));
      node_.disk().EndFlush(flush);
    }
    co_return 0;
  }
  SharedVolume::File& shared = shared_->file(file, 0, 0);
  Sync::Terms terms;
  terms.sessions = Sessions();
  terms.file = file;
  terms.order = shared.order.get();
  terms.slot = shared.slot;
  terms.extents = extents.extents();
  terms.local = true;
  terms.snapshot = snapshot;
  Sync sync(world_, *shared_, node_.disk(), std::move(terms));
  const int error = co_await sync.Run();
  co_return error;
}

Task<int> Program::AwaitOthers(const std::vector<Held>& others) {
  const Time deadline = world_.now() + LongestSync(world_.settings);
  for (const Held& held : others) {
    while (tickets_[held.slot].state == TicketState::kOpen && tickets_[held.slot].serial == held.serial) {
      if (world_.now() >= deadline) {
        co_return EIO;
      }
      co_await tickets_changed_.Wait(deadline);
    }
    if (failed_.contains(held.serial)) {
      co_return EIO;
    }
  }
  co_return 0;
}

}  // namespace pmirror::sim
