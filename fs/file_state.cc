// SPDX-License-Identifier: BSD-3-Clause
// See file_state.h.
#include "fs/file_state.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <utility>

#include "replication/deadline.h"

namespace pmirror::fs {

std::shared_ptr<FileState> FileState::Create(FileId id, int backing_fd, uint64_t size_generation,
                                             VolumePageOwner& page) {
  UniqueFd backing(::fcntl(backing_fd, F_DUPFD_CLOEXEC, 0));
  struct stat info {};
  if (!backing.valid() || ::fstat(backing.get(), &info) != 0) {
    return nullptr;
  }
  absl::StatusOr<SharedObject<OrderPage>> order =
      SharedObject<OrderPage>::Create("pmirror-order", Receivers::kReadWrite);
  if (!order.ok()) {
    return nullptr;
  }
  // Above every number used for the file before: the daemon forgets files that nobody uses.
  (*order)->next.store(static_cast<uint64_t>(Deadline::Now().count()));
  const absl::StatusOr<uint32_t> slot =
      page.TakeSlot(id, size_generation, static_cast<uint64_t>(info.st_size));
  if (!slot.ok()) {
    return nullptr;
  }
  return std::shared_ptr<FileState>(new FileState(id, std::move(backing), *slot, *std::move(order), page));
}

FileState::~FileState() {
  if (sizes_ != nullptr && !gone_) {
    sizes_->Closed(id_, size());
  }
  page_.FreeSlot(slot_);
}

void FileState::MayBeWritten(std::shared_ptr<KnownSizes> sizes) {
  const std::lock_guard lock(mutex_);
  sizes_ = std::move(sizes);
  may_be_written_ = true;
}

void FileState::Extend(uint64_t end) {
  std::atomic<uint64_t>& size = slot().size;
  uint64_t known = size.load(std::memory_order_relaxed);
  while (known < end && !size.compare_exchange_weak(known, end, std::memory_order_release)) {
  }
}

void FileState::Hold(Extent extent) {
  const std::lock_guard lock(mutex_);
  if (!gone_) {
    dirty_.Add(extent);
  }
  UpdateFlag();
}

void FileState::Hold(const ExtentSet& extents) {
  const std::lock_guard lock(mutex_);
  if (!gone_) {
    dirty_.Add(extents);
  }
  UpdateFlag();
}

void FileState::HoldDoubtful(Extent extent) {
  const std::lock_guard lock(mutex_);
  if (!gone_) {
    dirty_.Add(extent);
    doubtful_.Add(extent);
  }
  UpdateFlag();
}

void FileState::Forget() {
  const std::lock_guard lock(mutex_);
  gone_ = true;
  dirty_.Clear();
  doubtful_.Clear();
  UpdateFlag();
}

bool FileState::gone() const {
  const std::lock_guard lock(mutex_);
  return gone_;
}

bool FileState::dirty() const {
  const std::lock_guard lock(mutex_);
  return !dirty_.empty();
}

bool FileState::DirtyIn(Extent range) const {
  const std::lock_guard lock(mutex_);
  return dirty_.Overlaps(range) || std::any_of(under_way_.begin(), under_way_.end(), [&](const auto& entry) {
           return entry.second.Overlaps(range);
         });
}

uint64_t FileState::dirty_bytes() const {
  const std::lock_guard lock(mutex_);
  ExtentSet all = dirty_;
  for (const auto& [number, extents] : under_way_) {
    all.Add(extents);
  }
  return all.bytes();
}

FileState::Capture::Capture(FileState& file, Extent range, const ExtentSet& more)
    : file_(file), number_([&] {
        const std::lock_guard lock(file.mutex_);
        return ++file.captures_;
      }()) {
  const std::lock_guard lock(file_.mutex_);
  extents_ = file_.dirty_.Within(range);
  file_.dirty_.Remove(range);
  for (const auto& [number, extents] : file_.under_way_) {
    extents_.Add(extents.Within(range));
  }
  extents_.Add(more);
  if (!file_.doubtful_.empty()) {
    for (const Extent& extent : extents_.extents()) {
      doubtful_.Add(file_.doubtful_.Within(extent));
    }
  }
  if (!extents_.empty()) {
    file_.under_way_.emplace(number_, extents_);
  }
  file_.UpdateFlag();
}

FileState::Capture::~Capture() {
  const std::lock_guard lock(file_.mutex_);
  file_.under_way_.erase(number_);
  if (!succeeded_ && !file_.gone_) {
    file_.dirty_.Add(extents_);
  }
  if (succeeded_ && !doubtful_.empty()) {
    file_.SettleDoubt(doubtful_);
  }
  file_.UpdateFlag();
}

// Another program may have died meanwhile that had the same mapped, and others may be asking: of what is dirty or under way the hint stays.
void FileState::SettleDoubt(const ExtentSet& settled) {
  ExtentSet open;
  for (const Extent& extent : settled.extents()) {
    open.Add(dirty_.Within(extent));
    for (const auto& [number, extents] : under_way_) {
      open.Add(extents.Within(extent));
    }
  }
  ExtentSet kept;
  for (const Extent& extent : open.extents()) {
    kept.Add(doubtful_.Within(extent));
  }
  for (const Extent& extent : settled.extents()) {
    doubtful_.Remove(extent);
  }
  doubtful_.Add(kept);
}

void FileState::NotDurable() {
  const std::lock_guard lock(mutex_);
  ++changes_;
  UpdateFlag();
}

uint64_t FileState::durability_mark() const {
  const std::lock_guard lock(mutex_);
  return changes_;
}

void FileState::Durable(uint64_t mark) {
  const std::lock_guard lock(mutex_);
  durable_changes_ = std::max(durable_changes_, mark);
  UpdateFlag();
}

FileState::RaisedFlag::RaisedFlag(FileState& file) : file_(file) {
  const std::lock_guard lock(file_.mutex_);
  ++file_.flag_reasons_;
  file_.UpdateFlag();
}

FileState::RaisedFlag::~RaisedFlag() {
  const std::lock_guard lock(file_.mutex_);
  --file_.flag_reasons_;
  file_.UpdateFlag();
}

void FileState::SetWritingMappers(size_t processes) {
  writing_mappers_ = processes;
  std::atomic<uint32_t>& flags = slot().flags;
  processes > 1 ? flags.fetch_or(kFileShared, std::memory_order_seq_cst)
                : flags.fetch_and(~kFileShared, std::memory_order_seq_cst);
}

void FileState::UpdateFlag() {
  const bool up = !dirty_.empty() || !under_way_.empty() || flag_reasons_ != 0 || durable_changes_ < changes_;
  std::atomic<uint32_t>& flags = slot().flags;
  up ? flags.fetch_or(kFileDaemonDirty, std::memory_order_seq_cst)
     : flags.fetch_and(~kFileDaemonDirty, std::memory_order_seq_cst);
}

Extent TailOf(uint64_t old_size, uint64_t new_size) {
  const uint64_t page_end = (old_size + kPageSize - 1) & ~uint64_t{kPageSize - 1};
  const uint64_t end = std::min(page_end, new_size);
  return old_size < end ? Extent{old_size, end - old_size} : Extent{};
}

}  // namespace pmirror::fs
