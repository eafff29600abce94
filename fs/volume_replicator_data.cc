// SPDX-License-Identifier: BSD-3-Clause
// Captures of data, syncs, and what failures left dirty. The order of the steps is docs/internals/capture-order.md. See volume_replicator.h.
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "fs/volume_replicator.h"

namespace pmirror::fs {
namespace {

constexpr Extent kWholeFile{0, INT64_MAX};
// Between attempts to bring over what a failure left dirty; it doubles while they fail.
constexpr std::chrono::milliseconds kFirstConvergePause{250};
constexpr std::chrono::milliseconds kLongestConvergePause{4000};
// Marks of files that are not written any more cost a comparison after a crash, and a barrier to clear.
constexpr std::chrono::seconds kSettlePause{20};

// The file system's way to make the local file durable, as a capture wants it.
class LocalSyncCall : public LocalPersist {
 public:
  explicit LocalSyncCall(Replicator::LocalSync call) : call_(call) {}
  Error Persist() override {
    const int error = call_();
    return error == 0 ? Error::Ok() : Error{error, "make the backing file durable"};
  }

 private:
  Replicator::LocalSync call_;
};

}  // namespace

std::shared_ptr<ReplicatedFile> VolumeReplicator::Attach(FileId id, int backing_fd) {
  const std::lock_guard lock(files_mutex_);
  std::weak_ptr<FileState>& known = files_[id];
  if (std::shared_ptr<FileState> file = known.lock()) {
    return file;
  }
  std::shared_ptr<FileState> file = FileState::Create(id, backing_fd, 2 * log_.last(), page_);
  if (file == nullptr) {
    files_.erase(id);
    events_.Report(
        Severity::kError, "file_not_attached",
        {{"volume", options_.volume_name},
         {"file", std::to_string(Raw(id))},
         {"reason", "too many files are open in the volume, or the daemon has no descriptors left"}});
    return nullptr;
  }
  if (durable_changes_ < changes_) {
    file->NotDurable();  // some of it may be of this file, from an earlier handle
  }
  known = file;
  if (files_.size() >= next_sweep_) {  // forget who has gone
    std::erase_if(files_, [](const auto& entry) { return entry.second.expired(); });
    next_sweep_ = 2 * files_.size() + kFirstSweep;
  }
  return file;
}

std::shared_ptr<FileState> VolumeReplicator::Find(FileId id) const {
  const std::lock_guard lock(files_mutex_);
  const auto it = files_.find(id);
  return it == files_.end() ? nullptr : it->second.lock();
}

std::vector<std::shared_ptr<FileState>> VolumeReplicator::AllFiles() const {
  std::vector<std::shared_ptr<FileState>> all;
  const std::lock_guard lock(files_mutex_);
  for (const auto& [id, weak] : files_) {
    if (std::shared_ptr<FileState> file = weak.lock()) {
      all.push_back(std::move(file));
    }
  }
  return all;
}

// What fails is tried again by itself, soon and until it succeeds: the cause may be one that no connection tells of, as a full disk.
int VolumeReplicator::Send(FileState& file, FileState::Capture& capture, WaitLevel level,
                           LocalPersist* local) {
  const int error = TrySend(file, capture, level, local, Sender::kCaller);
  if (error != 0) {
    Keep(file);
    Wake();
  }
  return error;
}

// One capture to every member. Size operations of the file that are still on their way go first: on our session nothing may overtake them.
int VolumeReplicator::TrySend(FileState& file, FileState::Capture& capture, WaitLevel level,
                              LocalPersist* local, Sender sender) {
  int error = AwaitOperation(LastOperationOf(file), sender);
  if (error == 0) {
    const uint64_t mark = file.durability_mark();
    DescriptorSource source(file.backing_fd());
    const bool caller = sender == Sender::kCaller;
    const SetWord set = LoadSet(page_.page());
    Confirmed confirmed;
    ExtentSet unequal = capture.extents();
    if (!capture.doubtful().empty()) {
      SyncObserver& observer = caller ? static_cast<SyncObserver&>(*this) : own_waits_;
      confirmed = ConfirmBlocks(file, capture.doubtful(), page_.page(), sessions_, observer,
                                options_.confirm_patience);
      for (const Extent& extent : confirmed.equal.extents()) {
        unequal.Remove(extent);
      }
    }
    Replication& replication = caller ? replication_ : own_replication_;
    if (!unequal.empty() || level == WaitLevel::kDurable) {
      error = replication.Replicate(file.target(), unequal.extents(), source, level, local).code;
    }
    if (error == 0 && !confirmed.equal.empty() && LoadSet(page_.page()).raw != set.raw) {
      // Others than those who were asked count now.
      error = replication.Replicate(file.target(), confirmed.equal.extents(), source, level, nullptr).code;
      confirmed.equal.Clear();
    }
    if (level == WaitLevel::kReceived) {
      // Counted when it has arrived (or may have): a barrier that began before does not cover it. Until then the capture keeps the flag up.
      file.NotDurable();
      ++changes_;
    }
    if (error == 0) {
      if (confirmed.compared != 0) {
        events_.Report(Severity::kInfo, "mappings_compared",
                       {{"volume", options_.volume_name},
                        {"file", std::to_string(Raw(file.id()))},
                        {"bytes", std::to_string(confirmed.compared)},
                        {"equal", std::to_string(confirmed.equal.bytes())}});
      }
      capture.Succeeded();
      if (level == WaitLevel::kDurable) {
        file.Durable(mark);
      }
    }
  }
  if (error != 0 && file.gone()) {
    return 0;  // it left the volume meanwhile, with all that was dirty of it
  }
  return error;
}

int VolumeReplicator::Written(ReplicatedFile& file, Extent extent) {
  return SendWritten(StateOf(file), extent, WaitLevel::kReceived, nullptr);
}

int VolumeReplicator::WrittenDurably(ReplicatedFile& file, Extent extent, LocalSync local_sync) {
  LocalSyncCall local(local_sync);
  const int error = SendWritten(StateOf(file), extent, WaitLevel::kDurable, &local);
  syncs_ += error == 0 ? 1 : 0;
  return error;
}

int VolumeReplicator::SendWritten(FileState& file, Extent extent, WaitLevel level, LocalPersist* local) {
  const uint64_t old_size = file.size();
  ExtentSet written;
  written.Add(extent);
  if (extent.end() > old_size) {
    written.Add(TailOf(old_size, extent.end()));
    file.Extend(extent.end());
  }
  FileState::Capture capture(file, extent, written);
  return Send(file, capture, level, local);
}

// Under the file's capture mutex, with its flag up.
ExtentSet VolumeReplicator::TakeOthers(FileState& file, Extent range, ProcessSerial asking) {
  ExtentSet taken;
  if (ForeignStores* stores = stores_; stores != nullptr) {
    stores->Take(file.id(), range, asking, taken);
  }
  return taken;
}

// R4: the flag goes up, others' pages are taken over, what the daemon holds joins them, and only then is anything sent.
int VolumeReplicator::CaptureAndSync(FileState& file, Extent range, ProcessSerial asking,
                                     LocalPersist* local) {
  const FileState::RaisedFlag flag(file);
  std::unique_lock lock(file.capture_mutex());
  const ExtentSet taken = TakeOthers(file, range, asking);
  FileState::Capture capture(file, range, taken);
  lock.unlock();
  const int error = Send(file, capture, WaitLevel::kDurable, local);
  if (error == 0) {
    Trim();
  }
  return error;
}

int VolumeReplicator::Sync(ReplicatedFile& replicated, bool data_only, LocalSync local_sync) {
  FileState& file = StateOf(replicated);
  const auto round = [&] {
    // What a failure left behind of the tree goes first: this sync covers it, too.
    if (const int error = AwaitOperation(log_.last()); error != 0) {
      return error;
    }
    LocalSyncCall local(local_sync);
    const int error = CaptureAndSync(file, kWholeFile, ProcessSerial::kNone, &local);
    syncs_ += error == 0 ? 1 : 0;
    return error;
  };
  return file.sync_rounds(data_only).Run(round, [this] { return InterruptedByOwnSignal(); });
}

// On the daemon's session a barrier covers every write and every operation before it.
int VolumeReplicator::Barrier() {
  if (const int error = AwaitOperation(log_.last()); error != 0) {
    return error;
  }
  DescriptorSource nothing(-1);
  const int error = replication_.Replicate({}, {}, nothing, WaitLevel::kDurable, nullptr).code;
  if (error == 0) {
    Trim();
  }
  return error;
}

int VolumeReplicator::SyncTree(LocalSync local_sync) {
  const int local_error = local_sync();  // of this caller's directory: nothing to share
  const int error =
      tree_rounds_.Run([this] { return Barrier(); }, [this] { return InterruptedByOwnSignal(); });
  syncs_ += error == 0 && local_error == 0 ? 1 : 0;
  return error != 0 ? error : local_error;
}

int VolumeReplicator::SyncAll(ProcessSerial asking) {
  const uint64_t mark = changes_;
  std::vector<std::pair<std::shared_ptr<FileState>, uint64_t>> marks;
  int result = 0;
  for (std::shared_ptr<FileState>& file : AllFiles()) {
    if (file->writing_mappers() != 0 || Dirty(*file, kWholeFile)) {
      const int error = CaptureAndSync(*file, kWholeFile, asking, nullptr);
      result = result != 0 ? result : error;
    }
    const uint64_t file_mark = file->durability_mark();
    marks.emplace_back(std::move(file), file_mark);
  }
  if (const int error = Barrier(); error != 0) {
    return error;
  }
  for (const auto& [file, file_mark] : marks) {
    file->Durable(file_mark);
  }
  durable_changes_ = std::max(durable_changes_.load(), mark);
  return result;
}

int VolumeReplicator::SyncVolume(LocalSync local_sync) {
  const int error = SyncAll(ProcessSerial::kNone);
  const int local_error = local_sync();
  syncs_ += error == 0 && local_error == 0 ? 1 : 0;
  return error != 0 ? error : local_error;
}

int VolumeReplicator::SyncOthers(FileState& file, Extent range, ProcessSerial asking) {
  return CaptureAndSync(file, range, asking, nullptr);
}

// In this order: a program's tickets close only when its bytes are on the replicas or here; a write and a size operation hold dirty what they
// could not bring over before they end (docs/internals/verify.md).
bool VolumeReplicator::Dirty(FileState& file, Extent range) {
  const std::lock_guard lock(file.capture_mutex());
  ForeignStores* const stores = stores_;
  const bool theirs = stores != nullptr && stores->Any(file.id(), range);
  const bool changing =
      file.writing() || file.slot().size_generation.load(std::memory_order_seq_cst) % 2 != 0;
  return theirs || changing || file.DirtyIn(range);
}

int VolumeReplicator::BringOver(FileState& file, Extent range) {
  const FileState::RaisedFlag flag(file);
  std::unique_lock lock(file.capture_mutex());
  const ExtentSet taken = TakeOthers(file, range, ProcessSerial::kNone);
  FileState::Capture capture(file, range, taken);
  lock.unlock();
  const int error = TrySend(file, capture, WaitLevel::kReceived, nullptr, Sender::kVolume);
  if (error != 0) {
    Keep(file);
    Wake();
  }
  return error;
}

void VolumeReplicator::BeginWrite(ReplicatedFile* file) {
  gate_.Enter();
  if (file != nullptr) {
    StateOf(*file).BeginWrite();
  }
}

void VolumeReplicator::EndWrite(ReplicatedFile* file) {
  if (file != nullptr) {
    StateOf(*file).EndWrite();
  }
  gate_.Leave();
}

// --- what is left behind ---

void VolumeReplicator::Hold(const std::shared_ptr<FileState>& file, std::span<const Extent> extents) {
  for (const Extent& extent : extents) {
    file->Hold(extent);
  }
  if (!extents.empty()) {
    Keep(*file);
    Wake();
  }
}

void VolumeReplicator::HoldDoubtful(const std::shared_ptr<FileState>& file, Extent extent) {
  file->HoldDoubtful(extent);
  Keep(*file);
  Wake();
}

void VolumeReplicator::TakeOver(FileId id) {
  const std::shared_ptr<FileState> file = Find(id);
  if (file == nullptr || stores_ == nullptr) {
    return;
  }
  {
    const FileState::RaisedFlag flag(*file);
    const std::lock_guard lock(file->capture_mutex());
    file->Hold(TakeOthers(*file, kWholeFile, ProcessSerial::kNone));
  }
  Keep(*file);
  Wake();
}

void VolumeReplicator::Keep(FileState& file) {
  const std::lock_guard lock(files_mutex_);
  if (!file.gone()) {
    unsettled_.emplace(file.id(), file.shared_from_this());
  }
}

void VolumeReplicator::Start() {
  converger_ = std::thread([this] { Converge(); });
}

void VolumeReplicator::Stop() {
  {
    const std::lock_guard lock(converge_mutex_);
    stopping_ = true;
  }
  converge_wake_.notify_all();
  if (converger_.joinable()) {
    converger_.join();
  }
}

void VolumeReplicator::Wake() {
  {
    const std::lock_guard lock(converge_mutex_);
    ++wakes_;
  }
  converge_wake_.notify_all();
}

void VolumeReplicator::Converge() {
  uint64_t seen = 0;
  std::chrono::milliseconds pause = kFirstConvergePause;
  std::unique_lock lock(converge_mutex_);
  while (!stopping_) {
    if (!converge_wake_.wait_for(lock, kSettlePause, [&] { return stopping_ || wakes_ != seen; })) {
      lock.unlock();
      Settle();
      lock.lock();
    }
    seen = wakes_;
    while (!stopping_) {
      lock.unlock();
      const bool settled = ConvergeOnce();
      lock.lock();
      if (settled) {
        break;
      }
      const bool woken = converge_wake_.wait_for(lock, pause, [&] { return stopping_ || wakes_ != seen; });
      seen = wakes_;
      pause = woken ? kFirstConvergePause : std::min(2 * pause, kLongestConvergePause);
    }
  }
}

// A loss is told by the state of its replica; a refusal is told here, once.
void VolumeReplicator::NoteConvergeError(const FileState& file, int error) {
  const bool lost = error == ENOTCONN || error == EIO || error == EINTR;
  if (!lost && error != converge_error_) {
    converge_error_ = error;
    events_.Report(Severity::kError, "dirty_bytes_refused",
                   {{"volume", options_.volume_name},
                    {"file", std::to_string(Raw(file.id()))},
                    {"reason", std::strerror(error)}});
  }
}

// Whether another attempt can succeed: everybody whom syncs wait for is there.
bool VolumeReplicator::WantedConnected() const {
  const SetWord set = LoadSet(page_.page());
  bool connected = true;
  ForEach(set.sent_to(), [&](size_t i) { connected = connected && sessions_[i]->connected(); });
  return connected && MaySucceed(page_.page(), set);
}

// True when nothing is left dirty, or trying again is of no use before somebody says so.
bool VolumeReplicator::ConvergeOnce() {
  std::vector<std::shared_ptr<FileState>> unsettled;
  {
    const std::lock_guard lock(files_mutex_);
    for (const auto& [id, file] : unsettled_) {
      unsettled.push_back(file);
    }
  }
  bool settled = true;
  for (const std::shared_ptr<FileState>& file : unsettled) {
    int error = ENOTCONN;
    if (WantedConnected()) {
      FileState::Capture capture(*file, kWholeFile, {});
      error = TrySend(*file, capture, WaitLevel::kReceived, nullptr, Sender::kVolume);
    }
    if (error != 0) {
      settled = false;
      NoteConvergeError(*file, error);
      continue;
    }
    converge_error_ = 0;
    const std::lock_guard lock(files_mutex_);
    // Under way counts, too: a capture that fails gives its ranges back when its caller has long kept the file.
    if (file->DirtyIn(kWholeFile)) {
      settled = false;
    } else {
      unsettled_.erase(file->id());
    }
  }
  const std::lock_guard lock(files_mutex_);
  if (unsettled_.empty()) {
    std::fill(refusals_.begin(), refusals_.end(), 0);
  }
  return settled;
}

uint64_t VolumeReplicator::dirty_bytes() const {
  uint64_t sum = 0;
  const std::lock_guard lock(files_mutex_);
  for (const auto& [id, file] : unsettled_) {
    sum += file->dirty_bytes();
  }
  return sum;
}

uint64_t VolumeReplicator::activity() const {
  ForeignStores* const stores = stores_;
  return syncs_ + changes_ + (stores != nullptr ? stores->Syncs() : 0);
}

VolumeReplicator::Counters VolumeReplicator::counters() const {
  return {.syncs = syncs_, .suspended = suspended_, .recaptures = recaptures_};
}

}  // namespace pmirror::fs
