// SPDX-License-Identifier: BSD-3-Clause
// A program under the preload library: it maps files, stores to them from several threads, and syncs. Mirrors
// interpose/sync_range.cc (SyncRange), interpose/ticket_log.cc and interpose/mapped_file.cc; the pages' dirty bits stand for
// PAGEMAP_SCAN. Its threads also make requests of the mount, as any process does: WRITE, fsync, truncate, names.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <vector>

#include "fs/extent_set.h"
#include "tests/sim/call.h"
#include "tests/sim/daemon.h"
#include "tests/sim/oracle.h"
#include "tests/sim/sync.h"

namespace pmirror::sim {

class Node;

class Program {
 public:
  Program(World& world, Oracle& oracle, Node& node, size_t index);
  ~Program();

  Group& group() { return group_; }
  uint64_t serial() const { return serial_; }
  // Threads end by themselves after their last action, with a sync of everything.
  void Finish() { finishing_ = true; }
  bool finished() const { return threads_ == 0; }

  // --- what the daemon reads, also of one that is stopped or dying ---
  void TakePages(FileId file, Extent range, fs::ExtentSet& taken);
  void AddTickets(FileId file, Extent range, fs::ExtentSet& taken) const;
  const std::set<FileId>& mapped() const { return mapped_; }

 private:
  enum class TicketState : uint8_t { kFree, kOpen, kRedo };
  struct Ticket {
    TicketState state = TicketState::kFree;
    uint64_t serial = 0;
    FileId file{};
    Extent range;
  };
  struct Held {
    size_t slot = 0;
    uint64_t serial = 0;
  };
  class Path;

  using Request = std::function<Task<int>(Daemon&)>;  // named before it is awaited, see call.h
  Task<> Thread();
  Task<> Act();
  Task<bool> MapFiles();
  void StoreSome(FileId file);
  Task<bool> Msync(FileId file, uint64_t first_page, uint64_t pages);
  Task<int> SyncRange(FileId file, Extent range);
  Task<int> Capture(FileId file, const fs::ExtentSet& extents, const DiskFile* snapshot);
  Task<int> AwaitOthers(const std::vector<Held>& others);
  Task<> NameSomething();
  // A request of the mount; EIO when the daemon dies.
  Task<int> Ask(const Request& request);
  std::vector<Session*> Sessions();

  World& world_;
  Oracle& oracle_;
  Node& node_;
  const size_t index_;
  const uint64_t serial_;  // tells it from one that has its address later
  std::shared_ptr<SharedVolume> shared_;
  std::set<FileId> mapped_;
  std::map<FileId, std::set<uint64_t>> dirty_pages_;
  std::vector<Ticket> tickets_;
  std::map<uint64_t, bool> failed_;  // serials of tickets that failed
  uint64_t next_serial_ = 1;
  Signal tickets_changed_;
  std::set<uint64_t> running_syncs_;  // tokens of the oracle
  std::vector<std::unique_ptr<Path>> paths_;
  size_t threads_ = 0;
  bool finishing_ = false;
  Group group_;
};

}  // namespace pmirror::sim
