// SPDX-License-Identifier: BSD-3-Clause
// The mount, the tree, the in-sync set, the marks. See daemon.h; daemon_data.cc has the data.
#include "tests/sim/daemon.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>

#include "tests/sim/daemon_capture.h"

namespace pmirror::sim {
namespace {

constexpr uint64_t kGeneration = 77;

}  // namespace

Daemon::Daemon(World& world, Network& network, Oracle& oracle, PrimaryNode& node,
               std::vector<Replica*> replicas)
    : world_(world),
      network_(network),
      oracle_(oracle),
      node_(node),
      shared_(std::make_shared<SharedVolume>(world)),
      wake_(world.loop) {
  // TakeUp: the map sees every mount before the record does.
  history_ = node.record;
  history_.generation = kGeneration;
  history_.empty = node.disk.empty();
  mount_number_ = history_.mount_number + 1;
  recovery::MarkMap::Identity identity{.volume = {}, .generation = kGeneration, .replicas = {}};
  for (size_t i = 0; i < replicas.size(); ++i) {
    identity.replicas.push_back(fmt::format("n{}", i + 2));
  }
  auto opened = recovery::MarkMap::Open("marks", identity, mount_number_, *node.storage);
  marks_ = std::move(opened->map);
  as_mounted_ = marks_->BeginSettle([](FileId) { return false; });
  node.record = {.generation = kGeneration,
                 .mount_number = mount_number_,
                 .operation = 0,
                 .clean = false,
                 .empty = false};
  shared_->SetMembers(static_cast<uint8_t>((1U << replicas.size()) - 1), 0);
  shared_->page().unproven = !history_.clean && !history_.empty ? (1U << replicas.size()) - 1 : 0;
  for (size_t i = 0; i < replicas.size(); ++i) {
    links_.push_back(std::make_unique<Link>(world, network, *this, *replicas[i], i));
  }
  for (const std::unique_ptr<Link>& link : links_) {
    world.loop.Spawn(group_, link->Maintain());
  }
  world.loop.Spawn(group_, Converge());
  world.Trace("daemon mounts, number {}{}", mount_number_, opened->doubt.empty() ? "" : ": marks in doubt");
}

Daemon::~Daemon() { group_.Clear(); }

SharedVolume::File& Daemon::Slot(FileId file) {
  return shared_->file(file, 2 * log_.last(), world_.now() - node_.booted);
}

std::vector<Session*> Daemon::Sessions() {
  std::vector<Session*> sessions;
  for (const std::unique_ptr<Link>& link : links_) {
    sessions.push_back(&link->session());
  }
  return sessions;
}

bool Daemon::AllInSync() const {
  return std::all_of(links_.begin(), links_.end(), [](const auto& link) { return link->in_sync(); });
}

// --- the tree ---

Task<int> Daemon::Change(NamespaceOp& op, const std::function<void()>& told) {
  if (leaving_) {
    co_return ESHUTDOWN;
  }
  node_.disk.Apply(op);
  const uint64_t number = log_.Append(op);
  world_.Trace("primary: operation {} {} {:#x} {}", number, Name(op.kind), Raw(op.target), op.name);
  told();
  const int error = co_await AwaitOperation(number, false);
  co_return error;
}

Task<int> Daemon::Create(std::string name) {
  if (node_.disk.FindName(name) != nullptr) {
    co_return EEXIST;
  }
  NamespaceOp op;
  op.kind = OpKind::kCreate;
  op.target = NewId();
  op.parent = FileId::kRoot;
  op.name = name;
  op.mode = S_IFREG | 0644;
  const std::function<void()> nothing = [] {};
  const int error = co_await Change(op, nothing);
  co_return error;
}

Task<int> Daemon::Unlink(std::string name) {
  DiskFile* const file = node_.disk.FindName(name);
  if (file == nullptr) {
    co_return ENOENT;
  }
  NamespaceOp op;
  op.kind = OpKind::kUnlink;
  op.target = file->id;
  op.parent = FileId::kRoot;
  op.name = name;
  const FileId id = file->id;
  const std::function<void()> forget = [this, id] {
    State(id).gone = true;
    State(id).dirty.Clear();
    unsettled_.erase(id);
    marks_->Forget(id);
    oracle_.Removed(id);
  };
  const int error = co_await Change(op, forget);
  co_return error;
}

Task<int> Daemon::Rename(std::string from, std::string to) {
  DiskFile* const file = node_.disk.FindName(from);
  if (file == nullptr || node_.disk.FindName(to) != nullptr) {
    co_return ENOENT;
  }
  NamespaceOp op;
  op.kind = OpKind::kRename;
  op.target = file->id;
  op.parent = op.new_parent = FileId::kRoot;
  op.name = from;
  op.new_name = to;
  const std::function<void()> nothing = [] {};
  const int error = co_await Change(op, nothing);
  co_return error;
}

Task<int> Daemon::Truncate(FileId id, uint64_t size) {
  FileState& state = State(id);
  while (state.size_locked) {
    co_await wake_.Wait(world_.now() + 20 * kMs);
  }
  DiskFile* const file = node_.disk.Find(id);
  if (file == nullptr || leaving_) {
    co_return ENOENT;
  }
  state.size_locked = true;
  ++state.flag_reasons;
  UpdateFlag(id);
  FileSlot& slot = *Slot(id).slot;
  slot.size_generation += 1;
  co_await world_.loop.Step();
  NamespaceOp op;
  op.kind = OpKind::kTruncate;
  op.target = id;
  op.extent.offset = size;
  oracle_.Resized(id, file->size, size);
  node_.disk.Resize(*file, size);
  const uint64_t number = log_.Append(op);
  world_.Trace("primary: operation {} truncate {:#x} to {}", number, Raw(id), size);
  const int result = co_await AwaitOperation(number, false);
  slot.size_generation = 2 * number;
  shared_->changed.Notify();
  ++state.changes;
  --state.flag_reasons;
  state.size_locked = false;
  UpdateFlag(id);
  wake_.Notify();
  co_return result;
}

Task<int> Daemon::AwaitOperation(uint64_t number, bool own) {
  Patience patience(world_, own);
  uint8_t done = 0;
  while (true) {
    const SetWord set = shared_->set();
    const auto wanted = static_cast<uint8_t>((set.members() | set.joiners()) & ~done);
    if (wanted == 0 && (MaySucceed(shared_->page(), set) || world_.Has(Planted::kSuccessWithoutMembers))) {
      co_return 0;
    }
    for (size_t i = 0; i < links_.size(); ++i) {
      if ((wanted & Bit(i)) == 0) {
        continue;
      }
      const int error = co_await links_[i]->courier().Deliver(number, patience.Slice());
      if (error == 0) {
        done |= Bit(i);
      } else if (error == ENOSPC && world_.settings.on_loss != OnLoss::kProceed) {
        co_return ENOSPC;
      }
    }
    if (wanted == 0) {
      co_await shared_->changed.Wait(patience.Slice());
    }
    if (patience.RanOut()) {
      co_return EIO;
    }
    co_await world_.loop.Step();
  }
}

void Daemon::Trim() {
  uint64_t durable = log_.last();
  for (const std::unique_ptr<Link>& link : links_) {
    durable = std::min(durable, link->session().operation_durable());
  }
  log_.Trim(durable);
}

// --- the set ---

bool Daemon::SetLeave(size_t replica) {
  const SetWord set = shared_->set();
  oracle_.Counts(replica + 1, false);
  if (((set.members() | set.joiners()) & Bit(replica)) == 0) {
    return false;
  }
  shared_->SetMembers(static_cast<uint8_t>(set.members() & ~Bit(replica)),
                      static_cast<uint8_t>(set.joiners() & ~Bit(replica)));
  return true;
}

void Daemon::SetJoin(size_t replica) {
  const SetWord set = shared_->set();
  oracle_.Counts(replica + 1, false);
  shared_->SetMembers(static_cast<uint8_t>(set.members() & ~Bit(replica)),
                      static_cast<uint8_t>(set.joiners() | Bit(replica)));
}

bool Daemon::SetAdmit(size_t replica) {
  const SetWord set = shared_->set();
  if ((set.joiners() & Bit(replica)) == 0) {
    return false;
  }
  shared_->SetMembers(static_cast<uint8_t>(set.members() | Bit(replica)),
                      static_cast<uint8_t>(set.joiners() & ~Bit(replica)));
  return true;
}

bool Daemon::Wanted(size_t replica) const {
  const SetWord set = shared_->set();
  return ((set.members() | set.joiners()) & Bit(replica)) != 0;
}

bool Daemon::Lost(size_t replica) {
  if (world_.settings.on_loss != OnLoss::kProceed) {
    return false;
  }
  SetLeave(replica);
  wake_.Notify();
  return true;
}

// --- marks ---

// Somebody has it open for writing, or the daemon has something of it to bring over.
bool Daemon::InUse(FileId file) const {
  const auto found = files_.find(file);
  if (found == files_.end()) {
    return false;
  }
  const FileState& state = found->second;
  return !state.mappers.empty() || state.handles != 0 || !state.dirty.empty() || !state.under_way.empty() ||
         unsettled_.contains(file);
}

// BeforeWriting: the caller has counted itself.
bool Daemon::Marked(FileId file, bool was_in_use) {
  FileState& state = State(file);
  if (world_.Has(Planted::kMarkAfterStore) || (was_in_use && state.marked)) {
    return true;
  }
  if (recovery::MountOf(file) == mount_number_) {
    marks_->Note(file);
  } else if (!marks_->Mark(file).ok()) {
    return false;
  }
  state.marked = true;
  return true;
}

recovery::MarkMap::Settle Daemon::BeginSettle() {
  return marks_->BeginSettle(
      [this](FileId id) { return InUse(id) && !world_.Has(Planted::kMarkClearedBeforeBarrier); });
}

Task<> Daemon::SyncBacking() {
  const Disk::Flush flush = node_.disk.BeginFlushAll();
  co_await world_.loop.Sleep(world_.rng().Between(50, 500));
  node_.disk.EndFlush(flush);
}

Task<bool> Daemon::Resynced(size_t replica, const recovery::MarkMap::Settle& settle) {
  co_await SyncBacking();
  co_return marks_->Resynced(replica, settle).ok();
}

Task<> Daemon::Settle() {
  const SetWord set = shared_->set();
  if (set.joiners() != 0 || !WantedConnected()) {
    co_return;
  }
  const recovery::MarkMap::Settle settle = BeginSettle();
  if (settle.empty()) {
    co_return;
  }
  if (!world_.Has(Planted::kMarkClearedBeforeBarrier)) {
    const int delivered = co_await AwaitOperation(log_.last(), true);
    if (delivered != 0) {
      co_return;
    }
    const int error = co_await Barrier(true);
    if (error != 0) {
      co_return;
    }
    co_await SyncBacking();
  }
  const bool same = shared_->set().raw == set.raw;
  marks_->EndSettle(settle, same ? set.members() : 0);
}

Task<> Daemon::Recovered(size_t replica) {
  if (!links_[replica]->proven()) {
    co_await Resynced(replica, as_mounted_);
  }
  wake_.Notify();
}

// --- the end ---

Task<bool> Daemon::Leave() {
  leaving_ = true;
  const bool proceeds = world_.settings.on_loss == OnLoss::kProceed;
  if (!proceeds && !AllInSync()) {
    co_return false;
  }
  const recovery::MarkMap::Settle settle = BeginSettle();
  for (auto& [id, state] : files_) {
    if (!state.gone && node_.disk.Find(id) != nullptr) {
      const int error = co_await CaptureAndSync(id, {0, kMaxSize}, nullptr, false);
      if (error != 0) {
        co_return false;
      }
    }
  }
  const int barrier = co_await Barrier(false);
  if (barrier != 0) {
    co_return false;
  }
  co_await SyncBacking();
  for (size_t i = 0; i < links_.size(); ++i) {
    if (Member(i)) {
      const bool left = co_await links_[i]->Leave();
      if (!left) {
        co_return false;
      }
    }
  }
  marks_->EndSettle(settle, shared_->set().members());
  if (!marks_->Flush().ok()) {
    co_return false;
  }
  node_.record.operation = log_.last();
  node_.record.clean = true;
  co_return true;
}

}  // namespace pmirror::sim
