// SPDX-License-Identifier: BSD-3-Clause
// The storage that forgets. See forgetful_storage.h.
#include "tests/unit/recovery/forgetful_storage.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace pmirror::recovery {
namespace {

constexpr size_t kSector = ForgetfulStorage::kSector;

// One sector of `bytes`; zeros behind their end.
std::string SectorOf(const std::string& bytes, uint64_t number) {
  std::string sector =
      number * kSector < bytes.size() ? bytes.substr(number * kSector, kSector) : std::string();
  sector.resize(kSector, '\0');
  return sector;
}

}  // namespace

class ForgetfulFile : public LogFile {
 public:
  ForgetfulFile(ForgetfulStorage& storage, std::shared_ptr<ForgetfulStorage::Inode> inode)
      : storage_(storage), inode_(std::move(inode)) {}

  absl::StatusOr<uint64_t> Size() override {
    const std::lock_guard lock(storage_.mutex_);
    return inode_->visible.size();
  }
  absl::StatusOr<std::string> Read(uint64_t offset, size_t length) override {
    const std::lock_guard lock(storage_.mutex_);
    if (storage_.unreadable_) {
      return absl::DataLossError("the medium cannot read it");
    }
    return offset < inode_->visible.size() ? inode_->visible.substr(offset, length) : std::string();
  }
  absl::Status Write(uint64_t offset, std::span<const std::byte> bytes) override {
    return storage_.Write(*inode_, offset, bytes);
  }
  absl::Status Truncate(uint64_t size) override { return storage_.Truncate(*inode_, size); }
  absl::Status Sync() override { return storage_.Sync(*inode_); }

 private:
  ForgetfulStorage& storage_;
  const std::shared_ptr<ForgetfulStorage::Inode> inode_;
};

absl::Status ForgetfulStorage::Begin(bool& fault) {
  if (operations_ >= cut_) {
    return absl::UnavailableError("the power is off");
  }
  fault = operations_++ == fail_;
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<LogFile>> ForgetfulStorage::Open(const std::string& path) {
  const std::lock_guard lock(mutex_);
  const auto found = names_.find(path);
  if (found == names_.end()) {
    return absl::NotFoundError(path);
  }
  return std::make_unique<ForgetfulFile>(*this, found->second);
}

absl::StatusOr<std::unique_ptr<LogFile>> ForgetfulStorage::Create(const std::string& path) {
  const std::lock_guard lock(mutex_);
  bool fault = false;
  if (const absl::Status status = Begin(fault); !status.ok() || fault) {
    return fault ? absl::InternalError("make") : status;
  }
  auto inode = std::make_shared<Inode>();
  names_[path] = inode;
  names_dirty_ = true;
  Renamed();
  return std::make_unique<ForgetfulFile>(*this, std::move(inode));
}

absl::Status ForgetfulStorage::Rename(const std::string& from, const std::string& to) {
  const std::lock_guard lock(mutex_);
  bool fault = false;
  if (const absl::Status status = Begin(fault); !status.ok() || fault) {
    return fault ? absl::InternalError("rename") : status;
  }
  const auto found = names_.find(from);
  if (found == names_.end()) {
    return absl::NotFoundError(from);
  }
  if (const auto replaced = names_.find(to); replaced != names_.end()) {
    stale_ = replaced->second->visible;
  }
  names_[to] = found->second;
  names_.erase(found);
  names_dirty_ = true;
  Renamed();
  return absl::OkStatus();
}

absl::Status ForgetfulStorage::Remove(const std::string& path) {
  const std::lock_guard lock(mutex_);
  bool fault = false;
  if (const absl::Status status = Begin(fault); !status.ok() || fault) {
    return fault ? absl::InternalError("remove") : status;
  }
  if (const auto found = names_.find(path); found != names_.end()) {
    stale_ = found->second->visible;
    names_.erase(found);
    names_dirty_ = true;
    Renamed();
  }
  return absl::OkStatus();
}

absl::Status ForgetfulStorage::SyncDirectory(const std::string&) {
  const std::lock_guard lock(mutex_);
  bool fault = false;
  if (const absl::Status status = Begin(fault); !status.ok()) {
    return status;
  }
  if (std::exchange(names_dirty_, false) && !fault) {
    durable_names_ = names_;
    later_names_.clear();
  }
  return fault ? absl::InternalError("sync of the directory") : absl::OkStatus();
}

absl::Status ForgetfulStorage::Write(Inode& inode, uint64_t offset, std::span<const std::byte> bytes) {
  const std::lock_guard lock(mutex_);
  bool fault = false;
  if (const absl::Status status = Begin(fault); !status.ok()) {
    return status;
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const bool no_room = full_ && offset + bytes.size() > inode.visible.size();
  Store(inode, offset, fault || no_room ? text.substr(0, text.size() / 2) : text);
  if (no_room) {
    return absl::ResourceExhaustedError("No space left on device");
  }
  return fault ? absl::InternalError("write") : absl::OkStatus();
}

void ForgetfulStorage::Store(Inode& inode, uint64_t offset, std::string_view bytes) {
  Resize(inode, std::max<uint64_t>(inode.visible.size(), offset + bytes.size()));
  std::memcpy(inode.visible.data() + offset, bytes.data(), bytes.size());
  Remember(inode, offset, offset + bytes.size());
}

absl::Status ForgetfulStorage::Truncate(Inode& inode, uint64_t size) {
  const std::lock_guard lock(mutex_);
  bool fault = false;
  if (const absl::Status status = Begin(fault); !status.ok() || fault) {
    return fault ? absl::InternalError("cut") : status;
  }
  const uint64_t old = inode.visible.size();
  Resize(inode, size);
  Remember(inode, std::min(old, size), std::max(old, size));
  return absl::OkStatus();
}

void ForgetfulStorage::Resize(Inode& inode, uint64_t size) {
  if (size != inode.visible.size()) {
    inode.visible.resize(size, '\0');
    inode.sizes.push_back(size);
    inode.size_dirty = true;
  }
}

void ForgetfulStorage::Remember(Inode& inode, uint64_t from, uint64_t to) {
  for (uint64_t number = from / kSector; number * kSector < to; ++number) {
    const std::string now = SectorOf(inode.visible, number);
    Sector& sector = inode.sectors[number];
    sector.dirty = true;
    if (now != (sector.later.empty() ? SectorOf(inode.durable, number) : sector.later.back())) {
      sector.later.push_back(now);
    }
  }
}

absl::Status ForgetfulStorage::Sync(Inode& inode) {
  const std::lock_guard lock(mutex_);
  bool fault = false;
  if (const absl::Status status = Begin(fault); !status.ok()) {
    return status;
  }
  if (fault) {
    for (auto& [number, sector] : inode.sectors) {
      sector.dirty = false;
    }
    inode.size_dirty = false;
    return absl::InternalError("sync");
  }
  if (std::exchange(inode.size_dirty, false)) {
    inode.sizes.clear();
    inode.durable.resize(inode.visible.size(), '\0');
  }
  for (auto at = inode.sectors.begin(); at != inode.sectors.end();) {
    const uint64_t offset = at->first * kSector;
    if (!at->second.dirty) {
      ++at;
      continue;
    }
    if (offset < inode.durable.size()) {
      const size_t length = std::min(kSector, inode.durable.size() - offset);
      inode.durable.replace(offset, length, SectorOf(inode.visible, at->first), 0, length);
    }
    at = inode.sectors.erase(at);
  }
  return absl::OkStatus();
}

std::unique_ptr<ForgetfulStorage> ForgetfulStorage::AfterPowerCut(Chooser& chooser) const {
  const std::lock_guard lock(mutex_);
  auto left = std::make_unique<ForgetfulStorage>();
  const size_t names = chooser.Choose(1 + later_names_.size());
  for (const auto& [name, inode] : names == 0 ? durable_names_ : later_names_[names - 1]) {
    left->names_[name] = Survivor(*inode, chooser);
  }
  left->durable_names_ = left->names_;
  left->stale_ = stale_;
  return left;
}

std::shared_ptr<ForgetfulStorage::Inode> ForgetfulStorage::Survivor(const Inode& inode,
                                                                    Chooser& chooser) const {
  const size_t size = chooser.Choose(1 + inode.sizes.size());
  std::string bytes = inode.durable;
  bytes.resize(size == 0 ? inode.durable.size() : inode.sizes[size - 1], '\0');
  // Storage that is new to the file: zeros, or what was there when another file owned it.
  const bool stale = bytes.size() > inode.durable.size() && chooser.Choose(2) == 1;
  for (const auto& [number, sector] : inode.sectors) {
    if (const uint64_t offset = number * kSector; offset < bytes.size()) {
      const size_t length = std::min(kSector, bytes.size() - offset);
      bytes.replace(offset, length, SurvivingSector(inode, number, sector, stale, chooser), 0, length);
    }
  }
  auto left = std::make_shared<Inode>();
  left->visible = left->durable = std::move(bytes);
  return left;
}

std::string ForgetfulStorage::SurvivingSector(const Inode& inode, uint64_t number, const Sector& sector,
                                              bool stale, Chooser& chooser) const {
  const std::string durable = SectorOf(inode.durable, number);
  const size_t version = chooser.Choose(1 + sector.later.size());
  if (version == 0) {
    return stale && number * kSector >= inode.durable.size() ? SectorOf(stale_, number) : durable;
  }
  const std::string& next = sector.later[version - 1];
  const std::string& before = version == 1 ? durable : sector.later[version - 2];
  // Whole, or torn in the middle of what differs.
  if (chooser.Choose(2) == 0) {
    return next;
  }
  const auto differs = [&](size_t i) { return next[i] != before[i]; };
  size_t first = 0;
  while (first < kSector && !differs(first)) {
    ++first;
  }
  size_t last = kSector - 1;
  while (last > first && !differs(last)) {
    --last;
  }
  const size_t cut = first + (last - first + 1) / 2;
  return next.substr(0, cut) + before.substr(cut);
}

uint64_t ForgetfulStorage::operations() const {
  const std::lock_guard lock(mutex_);
  return operations_;
}
void ForgetfulStorage::CutBefore(uint64_t operation) {
  const std::lock_guard lock(mutex_);
  cut_ = operation;
}
void ForgetfulStorage::FailAt(uint64_t operation) {
  const std::lock_guard lock(mutex_);
  fail_ = operation;
}
void ForgetfulStorage::SetFull(bool full) {
  const std::lock_guard lock(mutex_);
  full_ = full;
}
void ForgetfulStorage::SetUnreadable(bool unreadable) {
  const std::lock_guard lock(mutex_);
  unreadable_ = unreadable;
}

std::string ForgetfulStorage::Content(const std::string& path) const {
  const std::lock_guard lock(mutex_);
  const auto found = names_.find(path);
  return found == names_.end() ? "" : found->second->visible;
}

void ForgetfulStorage::SetContent(const std::string& path, const std::string& content) {
  const std::lock_guard lock(mutex_);
  auto inode = std::make_shared<Inode>();
  inode->visible = inode->durable = content;
  durable_names_[path] = names_[path] = std::move(inode);
}

}  // namespace pmirror::recovery
