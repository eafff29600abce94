// SPDX-License-Identifier: BSD-3-Clause
// The durable map of marks. See mark_map.h.
#include "recovery/mark_map.h"

#include <algorithm>
#include <bit>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "recovery/volume_record.h"

namespace pmirror::recovery {
namespace {

absl::Status CheckIdentity(const std::string& path, const MarkIdentity& identity) {
  if (identity.replicas.size() > kMaxReplicas) {
    return absl::InvalidArgumentError(absl::StrCat("map of marks ", path, ": ", identity.replicas.size(),
                                                   " replicas; configure at most ", kMaxReplicas));
  }
  std::set<std::string> names;
  for (const std::string& name : identity.replicas) {
    if (name.empty() || name.size() > kMaxNameBytes || !names.insert(name).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("map of marks ", path, ": replica name '", name,
                       "' is empty, too long or there twice; give every replica a name of its own of 1 to ",
                       kMaxNameBytes, " bytes"));
    }
  }
  return absl::OkStatus();
}

// Why a whole file cannot be trusted in this mount; empty when it can.
std::string Stranger(const MarkState& found, const MarkIdentity& identity, uint64_t mount_number) {
  if (found.identity.volume != identity.volume) {
    return absl::StrCat("it belongs to volume ", UuidText(found.identity.volume), ", not to ",
                        UuidText(identity.volume));
  }
  if (found.identity.generation != identity.generation) {
    return absl::StrCat("it belongs to data generation ", found.identity.generation, ", the volume has ",
                        identity.generation);
  }
  // The same number: that mount was given up before the volume's record said so.
  if (found.mount_number != mount_number && found.mount_number + 1 != mount_number) {
    return absl::StrCat("it saw mount ", found.mount_number, " last, and this is mount ", mount_number,
                        ": it did not see what was written in between");
  }
  return "";
}

// Everything is marked for every replica.
MarkState AllOf(const MarkIdentity& identity, uint64_t mount_number) {
  MarkState state{.identity = identity, .mount_number = mount_number, .replicas = {}, .files = {}};
  state.replicas.resize(identity.replicas.size(), {.all = true, .base_mount = 0});
  return state;
}

// What `found` says about the replicas of `identity`, which may have other places there, or none.
MarkState Translated(const MarkState& found, const MarkIdentity& identity, uint64_t mount_number) {
  MarkState state = AllOf(identity, mount_number);
  std::vector<uint8_t> bits(found.replicas.size());  // of a replica there: its bit here
  for (size_t i = 0; i < found.replicas.size(); ++i) {
    const auto& names = identity.replicas;
    const auto place = static_cast<size_t>(std::find(names.begin(), names.end(), found.identity.replicas[i]) -
                                           names.begin());
    if (place < names.size()) {
      bits[i] = static_cast<uint8_t>(1U << place);
      state.replicas[place] = found.replicas[i];
    }
  }
  for (const auto& [file, replicas] : found.files) {
    uint8_t here = 0;
    for (size_t i = 0; i < bits.size(); ++i) {
      here |= (replicas >> i & 1) != 0 ? bits[i] : 0;
    }
    if (here != 0) {
      state.files.emplace_back(file, here);
    }
  }
  return state;
}

// For a caller that cannot go on: which file, and what to do.
absl::Status Explained(const std::string& path, const absl::Status& status) {
  if (status.ok()) {
    return status;
  }
  const char* remedy = status.code() == absl::StatusCode::kResourceExhausted
                           ? "make room there"
                           : "check the file system that holds it";
  return {status.code(),
          absl::StrCat("map of marks ", path, " cannot be written: ", status.message(), "; ", remedy)};
}

}  // namespace

absl::StatusOr<MarkMap::Opened> MarkMap::Open(const std::string& path, const Identity& identity,
                                              uint64_t mount_number, LogStorage& storage) {
  if (const absl::Status status = CheckIdentity(path, identity); !status.ok()) {
    return status;
  }
  std::string reason;
  MarkState state = AllOf(identity, mount_number);
  const absl::StatusOr<MarkState> found = MarkLog::Load(storage, path);
  if (found.ok()) {
    reason = Stranger(*found, identity, mount_number);
    state = reason.empty() ? Translated(*found, identity, mount_number) : state;
  } else if (found.status().code() == absl::StatusCode::kDataLoss) {
    reason = std::string(found.status().message());
  } else if (found.status().code() != absl::StatusCode::kNotFound) {
    return found.status();
  } else if (mount_number > 1) {
    reason = "it is missing, although the volume was mounted before";
  }
  // A new file in any case: what was just read may have been in the page cache only, left by a failed sync. And a torn end is gone with it.
  auto log = std::make_unique<MarkLog>(storage, path);
  if (const absl::Status status = Explained(path, log->Replace(state)); !status.ok()) {
    return status;
  }
  Opened opened{.map = std::unique_ptr<MarkMap>(new MarkMap(path, std::move(log), state)), .doubt = ""};
  if (!reason.empty()) {
    opened.doubt = absl::StrCat("map of marks ", path, ": ", reason, "; every file is compared");
  }
  return opened;
}

MarkMap::MarkMap(std::string path, std::unique_ptr<MarkLog> log, const MarkState& state)
    : path_(std::move(path)),
      mount_number_(state.mount_number),
      log_(std::move(log)),
      identity_(state.identity),
      everyone_(static_cast<uint8_t>((1U << state.replicas.size()) - 1)),
      collecting_(std::make_shared<Batch>()) {
  collecting_->number = 1;
  for (const MarkState::Replica& replica : state.replicas) {
    replicas_.push_back(
        {.all = replica.all, .all_durable = replica.all, .all_stamp = 0, .base = replica.base_mount});
  }
  files_.reserve(state.files.size());
  for (const auto& [file, replicas] : state.files) {
    files_[file] = {.marked = replicas, .durable = replicas, .gone = false, .stamp = 0, .batch = 0};
  }
}

MarkMap::~MarkMap() {
  // Both only spare the next mount work.
  (void)Flush();
  (void)log_->Close();
}

absl::StatusOr<size_t> MarkMap::AddReplica(const std::string& name) {
  std::unique_lock lock(mutex_);
  if (std::find(identity_.replicas.begin(), identity_.replicas.end(), name) != identity_.replicas.end()) {
    return absl::AlreadyExistsError(
        absl::StrCat("map of marks ", path_, ": it has a replica ", name, " already"));
  }
  MarkIdentity wider = identity_;
  wider.replicas.push_back(name);
  if (absl::Status status = CheckIdentity(path_, wider); !status.ok()) {
    return status;
  }
  // What is being written speaks of those that were there.
  changed_.wait(lock, [this] { return writing_ == nullptr; });
  const size_t replica = replicas_.size();
  const auto bit = static_cast<uint8_t>(1U << replica);
  MarkIdentity narrower = std::exchange(identity_, std::move(wider));
  everyone_ |= bit;
  replicas_.push_back({.all = true, .all_durable = false, .all_stamp = clock_, .base = 0});
  for (auto& [file, entry] : files_) {
    entry.marked |= bit;  // who uses it now does not mark it again
  }
  behind_ = true;  // a file that names the replicas anew has to come first
  if (absl::Status status = Wait(lock, collecting_); !status.ok()) {
    identity_ = std::move(narrower);
    everyone_ &= static_cast<uint8_t>(~bit);
    replicas_.pop_back();
    for (auto& [file, entry] : files_) {
      entry.marked &= static_cast<uint8_t>(~bit);
      entry.durable &= static_cast<uint8_t>(~bit);
    }
    return status;
  }
  replicas_[replica].all_durable = true;
  return replica;
}

void MarkMap::DropReplica(size_t replica) {
  const auto others = static_cast<uint8_t>(~(1U << replica));
  const std::lock_guard lock(mutex_);
  identity_.replicas[replica] = absl::StrCat("~", replica);  // no node is called so
  everyone_ &= others;
  replicas_[replica].all = false;
  for (auto& [file, entry] : files_) {
    entry.marked &= others;
    entry.durable &= others;
  }
}

absl::Status MarkMap::Mark(FileId file) {
  if (file == FileId::kNone) {
    return absl::InvalidArgumentError("no file can be marked that has no identity");
  }
  std::unique_lock lock(mutex_);
  Entry& entry = files_[file];  // without a replica, too: one may be added while the file is in use
  entry.stamp = clock_;
  entry.gone = false;
  if (entry.durable == everyone_) {
    return absl::OkStatus();
  }
  if (entry.batch <= finished_) {  // else it is on its way
    collecting_->records.push_back(
        {.kind = MarkRecordKind::kMark, .replicas = everyone_, .value = Raw(file)});
    entry.marked = everyone_;
    entry.batch = collecting_->number;
  }
  return Wait(lock, entry.batch == collecting_->number ? collecting_ : writing_);
}

void MarkMap::Note(FileId file) {
  const std::lock_guard lock(mutex_);
  Entry& entry = files_[file];
  entry.stamp = clock_;
  entry.gone = false;
  entry.marked = everyone_;
}

absl::Status MarkMap::MarkAll(size_t replica) {
  std::unique_lock lock(mutex_);
  Replica& r = replicas_[replica];
  r.all = true;
  r.all_stamp = clock_;
  if (r.all_durable) {
    return absl::OkStatus();
  }
  r.all_batch = collecting_->number;
  collecting_->records.push_back(
      {.kind = MarkRecordKind::kAll, .replicas = static_cast<uint8_t>(1U << replica)});
  return Wait(lock, collecting_);
}

bool MarkMap::AllMarked(size_t replica) const {
  const std::lock_guard lock(mutex_);
  return replicas_[replica].all;
}

std::vector<FileId> MarkMap::Marked(size_t replica) const {
  const std::lock_guard lock(mutex_);
  std::vector<FileId> marked;
  for (const auto& [file, entry] : files_) {
    if ((entry.marked >> replica & 1) != 0) {
      marked.push_back(file);
    }
  }
  return marked;
}

bool MarkMap::NamesEverything(size_t replica, uint64_t followed_mount) const {
  const std::lock_guard lock(mutex_);
  const Replica& r = replicas_[replica];
  return r.all || (r.base <= followed_mount && followed_mount <= mount_number_);
}

uint64_t MarkMap::base_mount(size_t replica) const {
  const std::lock_guard lock(mutex_);
  return replicas_[replica].base;
}

MarkMap::Settle MarkMap::BeginSettle(const InUse& in_use) {
  Settle settle;
  std::vector<std::pair<FileId, bool>> candidates;
  {
    const std::lock_guard lock(mutex_);
    settle.point_ = clock_++;
    candidates.reserve(files_.size());
    for (const auto& [file, entry] : files_) {
      candidates.emplace_back(file, entry.gone);
    }
  }
  // Behind the new point: who begins to use a file after in_use has said no marks it with a later stamp.
  for (const auto& [file, gone] : candidates) {
    if (!in_use(file)) {
      (gone ? settle.gone_ : settle.files_).push_back(file);
    }
  }
  return settle;
}

void MarkMap::EndSettle(const Settle& settle, uint8_t replicas) {
  const std::lock_guard lock(mutex_);
  replicas &= everyone_;
  for (const FileId file : settle.files_) {
    ClearFile(file, replicas, settle.point_);
  }
  for (const FileId file : settle.gone_) {
    ClearFile(file, everyone_, settle.point_);
  }
  for (size_t i = 0; i < replicas_.size(); ++i) {
    if ((replicas >> i & 1) != 0 && !settle.files_.empty()) {
      RaiseBase(i);
    }
  }
}

absl::Status MarkMap::Resynced(size_t replica, const Settle& settle) {
  const auto bit = static_cast<uint8_t>(1U << replica);
  EndSettle(settle, bit);
  {
    const std::lock_guard lock(mutex_);
    Replica& r = replicas_[replica];
    RaiseBase(replica);
    if (r.all && r.all_stamp <= settle.point_ && r.all_batch <= finished_) {
      r.all = r.all_durable = false;
      collecting_->records.push_back({.kind = MarkRecordKind::kNotAll, .replicas = bit});
    }
  }
  return Flush();
}

void MarkMap::Forget(FileId file) {
  const std::lock_guard lock(mutex_);
  if (const auto found = files_.find(file); found != files_.end()) {
    found->second.gone = true;
  }
}

absl::Status MarkMap::Flush() {
  std::unique_lock lock(mutex_);
  if (!collecting_->records.empty()) {
    return Wait(lock, collecting_);
  }
  return writing_ != nullptr ? Wait(lock, writing_) : absl::OkStatus();
}

void MarkMap::ClearFile(FileId file, uint8_t replicas, uint64_t point) {
  const auto found = files_.find(file);
  if (found == files_.end()) {
    return;
  }
  Entry& entry = found->second;
  const auto cleared = static_cast<uint8_t>(entry.marked & replicas);
  if ((cleared == 0 && entry.marked != 0) || entry.stamp > point || entry.batch > finished_) {
    return;
  }
  if ((entry.durable & cleared) != 0) {  // else it was noted only
    collecting_->records.push_back({.kind = MarkRecordKind::kClear, .replicas = cleared, .value = Raw(file)});
  }
  entry.marked &= static_cast<uint8_t>(~cleared);
  entry.durable &= static_cast<uint8_t>(~cleared);
  if (entry.marked == 0) {
    files_.erase(found);
  }
}

void MarkMap::RaiseBase(size_t replica) {
  if (replicas_[replica].base != mount_number_) {
    replicas_[replica].base = mount_number_;
    // In the batch of the clearing: a batch is there as a whole or not at all. When it fails, a new file says both.
    collecting_->records.push_back({.kind = MarkRecordKind::kBase,
                                    .replicas = static_cast<uint8_t>(1U << replica),
                                    .value = mount_number_});
  }
}

absl::Status MarkMap::Wait(std::unique_lock<std::mutex>& lock, std::shared_ptr<Batch> batch) {
  // Bounded by the writes of two batches: the one under way and this.
  while (!batch->done) {
    if (writing_ != nullptr) {
      changed_.wait(lock);
    } else {
      WriteBatch(lock);
    }
  }
  return batch->result;
}

void MarkMap::WriteBatch(std::unique_lock<std::mutex>& lock) {
  writing_ = std::exchange(collecting_, std::make_shared<Batch>());
  collecting_->number = writing_->number + 1;
  const std::vector<MarkRecord>& records = writing_->records;
  // Only who writes touches the log, and it holds this place until it is done.
  const bool whole = behind_ || log_->WantsReplace(records.size());
  const bool either = whole && !behind_ && log_->CanAppend(records.size());
  const MarkState state = whole ? State() : MarkState{};
  lock.unlock();
  absl::Status status = whole ? log_->Replace(state) : log_->Append(records);
  if (!status.ok() && either && log_->CanAppend(records.size())) {
    status = log_->Append(records);  // the smaller file was worth trying, no more
  }
  status = Explained(path_, status);
  lock.lock();
  behind_ = !status.ok();
  if (status.ok()) {
    for (const MarkRecord& record : records) {
      if (record.kind == MarkRecordKind::kMark) {
        files_[FileId{record.value}].durable = everyone_;
      } else if (record.kind == MarkRecordKind::kAll) {
        replicas_[static_cast<size_t>(std::countr_zero(record.replicas))].all_durable = true;
      }
    }
  }
  finished_ = writing_->number;
  writing_->result = std::move(status);
  writing_->done = true;
  writing_ = nullptr;
  changed_.notify_all();
}

MarkState MarkMap::State() const {
  MarkState state{.identity = identity_, .mount_number = mount_number_, .replicas = {}, .files = {}};
  for (const Replica& replica : replicas_) {
    state.replicas.push_back({.all = replica.all, .base_mount = replica.base});
  }
  state.files.reserve(files_.size());
  for (const auto& [file, entry] : files_) {
    if (entry.marked != 0) {
      state.files.emplace_back(file, entry.marked);
    }
  }
  return state;
}

}  // namespace pmirror::recovery
