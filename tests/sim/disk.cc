// SPDX-License-Identifier: BSD-3-Clause
// How disk.h does it.
#include "tests/sim/disk.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstring>

namespace pmirror::sim {
namespace {

std::span<const std::byte> BytesOf(const DiskFile& file) { return std::as_bytes(std::span(file.words)); }

}  // namespace

DiskFile* Disk::Find(FileId id) {
  const auto found = files_.find(id);
  return found == files_.end() || (!NameOf(id).has_value() && !tree_.parked.contains(id))
             ? nullptr
             : found->second.get();
}

DiskFile* Disk::FindName(const std::string& name) {
  const auto found = tree_.names.find(name);
  return found == tree_.names.end() ? nullptr : Find(found->second);
}

std::optional<std::string> Disk::NameOf(FileId id) const {
  for (const auto& [name, named] : tree_.names) {
    if (named == id) {
      return name;
    }
  }
  return std::nullopt;
}

uint64_t Disk::Visible(FileId id, uint64_t word) {
  const DiskFile* const file = Find(id);
  return file == nullptr || word * kWord >= file->size ? 0 : file->words[word];
}

uint64_t Disk::Durable(FileId id, uint64_t word) {
  const auto found = files_.find(id);
  return found == files_.end() || word * kWord >= found->second->durable_size ? 0
                                                                              : found->second->durable[word];
}

bool Disk::DurablyNamed(FileId id) const {
  return std::any_of(durable_tree_.names.begin(), durable_tree_.names.end(),
                     [id](const auto& entry) { return entry.second == id; });
}

void Disk::Store(DiskFile& file, uint64_t word, uint64_t value) {
  file.words[word] = value;
  file.changed[word / DiskFile::kSectorWords] = world_.Stamp();
}

void Disk::Write(DiskFile& file, uint64_t offset, std::span<const std::byte> bytes) {
  std::memcpy(reinterpret_cast<std::byte*>(file.words.data()) + offset, bytes.data(), bytes.size());
  const uint64_t stamp = world_.Stamp();
  const uint64_t sector = DiskFile::kSectorWords * kWord;
  for (uint64_t at = offset / sector; at * sector < offset + bytes.size(); ++at) {
    file.changed[at] = stamp;
  }
  if (offset + bytes.size() > file.size) {
    file.size = offset + bytes.size();
    file.size_changed = stamp;
  }
}

size_t Disk::Read(const DiskFile& file, Extent extent, std::span<std::byte> out) const {
  if (extent.offset >= file.size) {
    return 0;
  }
  const size_t length = std::min<uint64_t>(extent.length, file.size - extent.offset);
  std::memcpy(out.data(), BytesOf(file).data() + extent.offset, length);
  return length;
}

void Disk::Resize(DiskFile& file, uint64_t size) {
  const uint64_t stamp = world_.Stamp();
  if (size < file.size) {
    const size_t from = size / kWord;
    std::fill(file.words.begin() + static_cast<ptrdiff_t>(from), file.words.end(), 0);
    for (size_t sector = from / DiskFile::kSectorWords; sector < DiskFile::kSectors; ++sector) {
      file.changed[sector] = stamp;
    }
  }
  file.size = size;
  file.size_changed = stamp;
}

bool Disk::Apply(const NamespaceOp& op) {
  switch (op.kind) {
    case OpKind::kCreate: {
      if (const auto there = tree_.names.find(op.name); there != tree_.names.end()) {
        return there->second == op.target;
      }
      if (full) {
        return false;
      }
      if (!files_.contains(op.target)) {
        auto file = std::make_unique<DiskFile>();
        file->id = op.target;
        files_.emplace(op.target, std::move(file));
      } else if (!tree_.parked.contains(op.target)) {
        Resize(*files_.at(op.target), 0);  // only an older tree had it
      }
      tree_.names[op.name] = op.target;
      break;
    }
    case OpKind::kLink:
      tree_.names[op.name] = op.target;
      tree_.parked.erase(op.target);
      break;
    case OpKind::kUnlink: {
      const auto there = tree_.names.find(op.name);
      if (there == tree_.names.end() || there->second != op.target) {
        return true;
      }
      tree_.names.erase(there);
      if ((op.flags & kOpOrphaned) != 0 && !NameOf(op.target).has_value()) {
        tree_.parked[op.target] = true;
      }
      break;
    }
    case OpKind::kForgetOrphan:
      tree_.parked.erase(op.target);
      break;
    case OpKind::kRename: {
      const auto from = tree_.names.find(op.name);
      if (from == tree_.names.end() || from->second != op.target) {
        return true;  // it was done before
      }
      tree_.names.erase(from);
      tree_.names[op.new_name] = op.target;
      break;
    }
    case OpKind::kTruncate: {
      DiskFile* const file = Find(op.target);
      if (file == nullptr) {
        return false;
      }
      Resize(*file, op.extent.offset);
      return true;
    }
    default:
      return true;  // attributes
  }
  TreeChanged();
  return true;
}

void Disk::SetMark(uint64_t mount, uint64_t operation) {
  tree_.mark_mount = mount;
  tree_.mark_operation = operation;
  TreeChanged();
}

void Disk::TreeChanged() { later_trees_.emplace_back(++tree_changes_, tree_); }

Disk::Flush Disk::BeginFlush(std::span<const FileId> files) const {
  Flush flush{.files = {}, .tree_change = tree_changes_};
  for (const FileId id : files) {
    if (const auto found = files_.find(id); found != files_.end()) {
      flush.files.push_back(*found->second);
    }
  }
  return flush;
}

Disk::Flush Disk::BeginFlushAll() const {
  Flush flush{.files = {}, .tree_change = tree_changes_};
  for (const auto& [id, file] : files_) {
    flush.files.push_back(*file);
  }
  return flush;
}

void Disk::Take(DiskFile& file, const DiskFile& from) {
  for (size_t sector = 0; sector < DiskFile::kSectors; ++sector) {
    if (from.changed[sector] > file.flushed[sector]) {
      const auto at = static_cast<ptrdiff_t>(sector * DiskFile::kSectorWords);
      std::copy_n(from.words.begin() + at, DiskFile::kSectorWords, file.durable.begin() + at);
      file.flushed[sector] = from.changed[sector];
    }
  }
  if (from.size_changed > file.size_flushed) {
    file.durable_size = from.size;
    file.size_flushed = from.size_changed;
  }
}

void Disk::EndFlush(const Flush& flush) {
  for (const DiskFile& from : flush.files) {
    if (const auto found = files_.find(from.id); found != files_.end()) {
      Take(*found->second, from);
    }
  }
  while (!later_trees_.empty() && later_trees_.front().first <= flush.tree_change) {
    durable_tree_ = std::move(later_trees_.front().second);
    later_trees_.pop_front();
  }
}

void Disk::WriteBackSomething() {
  for (auto& [id, file] : files_) {
    const size_t sector = world_.rng().Below(DiskFile::kSectors);
    if (file->changed[sector] > file->flushed[sector]) {
      const auto at = static_cast<ptrdiff_t>(sector * DiskFile::kSectorWords);
      std::copy_n(file->words.begin() + at, DiskFile::kSectorWords, file->durable.begin() + at);
      file->flushed[sector] = file->changed[sector];
    }
  }
}

void Disk::PowerCut() {
  Rng& rng = world_.rng();
  const size_t survive = later_trees_.empty() ? 0 : rng.Below(later_trees_.size() + 1);
  for (size_t i = 0; i < survive; ++i) {
    durable_tree_ = later_trees_[i].second;
  }
  later_trees_.clear();
  tree_ = durable_tree_;
  std::erase_if(files_, [&](const auto& item) {
    return !NameOf(item.first).has_value() && !tree_.parked.contains(item.first);
  });
  const uint64_t whim = rng.Below(3);  // the disk wrote nothing, everything, or some
  for (auto& [id, file] : files_) {
    for (size_t sector = 0; sector < DiskFile::kSectors; ++sector) {
      if (file->changed[sector] <= file->flushed[sector]) {
        continue;
      }
      const bool written = whim == 1 || (whim == 2 && rng.Chance(500));
      const auto at = static_cast<ptrdiff_t>(sector * DiskFile::kSectorWords);
      for (size_t word = 0; word < DiskFile::kSectorWords; ++word) {
        // A sector that is torn is so between words.
        const bool torn = whim == 2 && rng.Chance(30);
        if (written != torn) {
          file->durable[sector * DiskFile::kSectorWords + word] =
              file->words[sector * DiskFile::kSectorWords + word];
        }
      }
      std::copy_n(file->durable.begin() + at, DiskFile::kSectorWords, file->words.begin() + at);
      file->changed[sector] = file->flushed[sector] = world_.Stamp();
    }
    if (file->size != file->durable_size) {
      if (whim == 1 || (whim == 2 && rng.Chance(500))) {
        file->durable_size = file->size;
      }
      file->size = file->durable_size;
      file->size_changed = file->size_flushed = world_.Stamp();
    }
    const auto end = static_cast<ptrdiff_t>((file->size + kWord - 1) / kWord);
    std::fill(file->words.begin() + end, file->words.end(), 0);
    std::fill(file->durable.begin() + end, file->durable.end(), 0);
  }
}

recovery::BlockChecksums Disk::Checksums(const DiskFile& file, Extent extent, uint32_t block) const {
  recovery::BlockChecksums sums;
  sums.size = file.size;
  for (uint64_t at = extent.offset; at < std::min(file.size, extent.end()); at += block) {
    const uint64_t length = std::min({uint64_t{block}, extent.end() - at, file.size - at});
    sums.sums.push_back(recovery::SumOf(BytesOf(file).subspan(at, length)));
  }
  return sums;
}

recovery::Inventory Disk::Inventory() const {
  recovery::Inventory inventory;
  recovery::TreeItem root;
  root.id = FileId::kRoot;
  root.mode = S_IFDIR | 0755;
  root.links = 1;
  inventory.push_back(root);
  const auto add = [&](std::string path, FileId id, bool orphan) {
    recovery::TreeItem item;
    item.path = std::move(path);
    item.id = id;
    item.mode = S_IFREG | 0644;
    item.size = files_.at(id)->size;
    item.links = orphan ? 0 : 1;
    item.orphan = orphan;
    inventory.push_back(std::move(item));
  };
  for (const auto& [name, id] : tree_.names) {
    add(name, id, false);
  }
  for (const auto& [id, parked] : tree_.parked) {
    add(fmt::format(".pmirror/orphans/{:016x}", Raw(id)), id, true);
  }
  return inventory;
}

}  // namespace pmirror::sim
