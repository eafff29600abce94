// SPDX-License-Identifier: BSD-3-Clause
// The life of a replica's process and its control calls. See replica.h.
#include "tests/sim/replica.h"

#include <algorithm>
#include <string>

namespace pmirror::sim {
namespace {

constexpr Time kHandoverWait = 100 * kMs;

}  // namespace

Replica::Replica(World& world, Network& network, Oracle& oracle, size_t index, size_t copy)
    : world_(world), network_(network), oracle_(oracle), index_(index), copy_(copy), disk_(world) {
  next_session_ = 1000 * (index + 1);
}

Group& Replica::group() { return process_->group; }

// --- start and end ---

void Replica::Start() {
  process_ = std::make_unique<Process>(world_.loop);
  ++incarnation_;
  Process& p = *process_;
  p.mount_number = record_.mount_number;
  const bool same_mount = disk_.tree().mark_mount == record_.mount_number;
  p.applied = same_mount ? std::max(disk_.tree().mark_operation, record_.operation) : record_.operation;
  p.operation_durable = record_.operation;
  p.restarted_in_use = !record_.clean && record_.boot != std::to_string(boot_);
  if (!record_.clean) {
    disk_.EndFlush(disk_.BeginFlushAll());
  }
  world_.Trace("replica {} starts: mount {} applied {} resyncing {} restarted {}", index_, p.mount_number,
               p.applied, record_.resyncing, p.restarted_in_use);
}

void Replica::Kill() {
  world_.Trace("replica {} is killed", index_);
  process_->group.Clear();
  process_.reset();
  network_.ReplicaGone(index_, false);
}

void Replica::PowerCut() {
  world_.Trace("replica {} loses power", index_);
  if (process_ != nullptr) {
    process_->group.Clear();
    process_.reset();
  }
  network_.ReplicaGone(index_, true);
  disk_.PowerCut();
  disk_.full = false;
  ++boot_;
  oracle_.Reverted(copy_);
  oracle_.CheckCopy(copy_);
}

// --- control ---

Task<bool> Replica::Lock() {
  while (process_->control_busy) {
    co_await process_->changed.Wait(kForever);
  }
  process_->control_busy = true;
  co_return true;
}

void Replica::Unlock() {
  process_->control_busy = false;
  process_->changed.Notify();
}

void Replica::Store(const recovery::VolumeRecord& record) {
  const bool promotable = !record.resyncing && record.generation != 0;
  const bool was = !record_.resyncing && record_.generation != 0;
  record_ = record;
  if (promotable != was) {
    oracle_.Promotable(copy_, promotable);
  }
}

Task<Replica::CopyState> Replica::State() {
  co_return CopyState{.record = record_,
                      .operation = process_->applied,
                      .restarted = process_->restarted_in_use && !world_.Has(Planted::kReplayAfterPowerCut),
                      .empty = disk_.empty(),
                      .refuses = false};
}

Task<recovery::Inventory> Replica::Inventory() { co_return disk_.Inventory(); }

Task<std::optional<recovery::BlockChecksums>> Replica::Checksums(FileId id, Extent extent, uint32_t block) {
  DiskFile* const file = disk_.Find(id);
  if (file == nullptr) {
    co_return std::nullopt;
  }
  co_return disk_.Checksums(*file, extent, block);
}

// Ends all sessions, or those of the daemon but one; waits until nobody serves them. (SessionTable::EndWhere)
Task<bool> Replica::EndSessions(bool all, SessionId but) {
  Process& p = *process_;
  std::vector<std::shared_ptr<Held>> ended;
  for (const auto& [id, held] : p.sessions) {
    if (all || (held->receiver.config().kind == SessionKind::kDaemon && SessionId{id} != but)) {
      held->ended = true;
      if (held->connection != nullptr) {
        held->connection->Close(Side::kReplica);
      }
      ended.push_back(held);
    }
  }
  const Time deadline = world_.now() + kHandoverWait;
  bool every = true;
  for (const std::shared_ptr<Held>& held : ended) {
    while (held->connection != nullptr && world_.now() < deadline) {
      co_await held->released.Wait(deadline);
    }
    if (held->connection != nullptr) {
      every = false;
    } else {
      p.sessions.erase(Raw(held->receiver.config().session));
    }
  }
  co_return every;
}

void Replica::AdoptOrders(uint64_t mount_number, uint64_t operation) {
  Process& p = *process_;
  p.mount_number = mount_number;
  p.applied = operation;
  p.operation_durable = 0;
  p.restarted_in_use = false;
  if (!world_.Has(Planted::kOrdersKeptOverMount)) {
    for (auto& [id, file] : p.files) {
      file.order = ApplyOrder(8);
    }
  }
  disk_.SetMark(mount_number, operation);
  p.changed.Notify();
}

// PrepareSession, CheckRequest, Adopt.
Task<Replica::Permit> Replica::OpenSession(Terms terms) {
  co_await Lock();
  Process& p = *process_;
  Permit permit;
  const bool new_mount = terms.mount_number > record_.mount_number;
  const bool other_history = record_.generation != 0 && terms.generation != record_.generation;
  if (terms.mount_number < record_.mount_number || other_history || (new_mount && !terms.daemon) ||
      (new_mount && record_.resyncing) ||
      (!new_mount && p.restarted_in_use && !world_.Has(Planted::kReplayAfterPowerCut))) {
    permit.refused = true;
    Unlock();
    co_return permit;
  }
  if (p.token != 0 && !p.adopted) {
    permit.unavailable = true;
    Unlock();
    co_return permit;
  }
  recovery::VolumeRecord next = record_;
  next.mount_number = terms.mount_number;
  next.generation = terms.generation;
  next.clean = false;
  next.boot = std::to_string(boot_);
  if (!(next == record_)) {
    if (new_mount) {
      const bool ended = co_await EndSessions(true, {});
      if (!ended) {
        permit.unavailable = true;
        Unlock();
        co_return permit;
      }
      next.operation = 0;
    }
    co_await world_.loop.Step();
    Store(next);
    if (new_mount) {
      co_await world_.loop.Step();
      AdoptOrders(next.mount_number, 0);
      world_.Trace("replica {} adopts mount {}", index_, next.mount_number);
    }
  }
  if (terms.daemon) {
    const bool ended = co_await EndSessions(false, terms.session);
    if (!ended) {
      permit.unavailable = true;
      Unlock();
      co_return permit;
    }
  }
  if (terms.session == SessionId{}) {
    terms.session = SessionId{next_session_++};
  }
  auto found = p.sessions.find(Raw(terms.session));
  if (found == p.sessions.end()) {
    Receiver::Config config{.session = terms.session,
                            .kind = terms.daemon ? SessionKind::kDaemon : SessionKind::kProcess,
                            .epoch = Epoch{1},
                            .credit_window = 64 << 10};
    p.sessions.emplace(Raw(terms.session), std::make_shared<Held>(world_.loop, config));
  } else if (found->second->ended) {
    permit.refused = true;
  }
  permit.session = terms.session;
  Unlock();
  co_return permit;
}

Task<uint64_t> Replica::BeginResync(uint64_t mount_number, uint64_t generation) {
  co_await Lock();
  Process& p = *process_;
  const bool unused = record_.generation == 0 && record_.mount_number == 0;
  if (mount_number < record_.mount_number || (record_.generation != 0 && generation != record_.generation) ||
      (unused && !disk_.empty())) {
    Unlock();
    co_return 0;
  }
  p.token = 0;
  const bool ended = co_await EndSessions(true, {});
  if (!ended) {
    Unlock();
    co_return 0;
  }
  recovery::VolumeRecord next = record_;
  next.generation = generation;
  next.clean = false;
  next.resyncing = !world_.Has(Planted::kResyncingNotRecorded);
  next.boot = std::to_string(boot_);
  co_await world_.loop.Step();
  Store(next);
  p.token = next_token_++;
  p.adopted = false;
  p.token_mount = mount_number;
  const uint64_t token = p.token;
  Unlock();
  world_.Trace("replica {} begins a resync", index_);
  co_return token;
}

Task<bool> Replica::ChangeTree(uint64_t token, std::vector<NamespaceOp> operations) {
  co_await Lock();
  Process& p = *process_;
  bool good = token != 0 && token == p.token;
  for (const NamespaceOp& op : operations) {
    if (!good) {
      break;
    }
    good = disk_.Apply(op);
    p.files[op.target].order.SizeChanged(0);
    p.tree_changed = true;
    world_.Trace("replica {} tree: {} {:#x} {}", index_, Name(op.kind), Raw(op.target), op.name);
    co_await world_.loop.Step();
  }
  Unlock();
  co_return good;
}

Task<bool> Replica::AdoptMount(uint64_t token, uint64_t operation) {
  co_await Lock();
  Process& p = *process_;
  if (token == 0 || token != p.token) {
    Unlock();
    co_return false;
  }
  recovery::VolumeRecord next = record_;
  next.mount_number = p.token_mount;
  next.operation = 0;
  Store(next);
  co_await world_.loop.Step();
  AdoptOrders(next.mount_number, operation);
  world_.Trace("replica {} adopts mount {} at operation {}", index_, next.mount_number, operation);
  p.adopted = true;
  Unlock();
  co_return true;
}

Task<bool> Replica::EndResync(uint64_t token) {
  Process& p = *process_;
  const uint64_t operation = p.applied;
  if (!world_.Has(Planted::kEndWithoutPersist)) {
    const std::vector<FileId> none;
    co_await Flush(none, true);
  }
  co_await Lock();
  if (token == 0 || token != p.token) {
    Unlock();
    co_return false;
  }
  recovery::VolumeRecord next = record_;
  next.operation = operation;
  next.resyncing = false;
  Store(next);
  p.token = 0;
  Unlock();
  world_.Trace("replica {} ends its resync at operation {}", index_, operation);
  co_return true;
}

Task<bool> Replica::Leave(uint64_t mount_number, uint64_t operation) {
  co_await Lock();
  bool good = mount_number == record_.mount_number && operation == process_->applied && !record_.resyncing;
  if (good) {
    good = co_await EndSessions(true, {});
  }
  if (good) {
    const std::vector<FileId> none;
    co_await Flush(none, true);
    recovery::VolumeRecord next = record_;
    next.clean = true;
    next.operation = operation;
    Store(next);
  }
  Unlock();
  co_return good;
}

Task<> Replica::Flush(const std::vector<FileId>& files, bool everything) {
  const Disk::Flush flush = everything ? disk_.BeginFlushAll() : disk_.BeginFlush(files);
  Rng& rng = world_.rng();
  co_await world_.loop.Sleep(slow_disk_ ? rng.Between(kMs, 20 * kMs) : rng.Between(20, 200));
  disk_.EndFlush(flush);
}

}  // namespace pmirror::sim
