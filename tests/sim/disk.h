// SPDX-License-Identifier: BSD-3-Clause
// The storage of one simulated node: a flat directory of files, what of it is visible and what a power cut would leave.
//
// What a flush had not finished a power cut leaves in any mixture, 512-byte sector for sector; the names as after one of the
// changes since the last flush of anything (a journal commits in order, and fsync commits it: ext4, XFS). A flush covers
// what was visible when it began, once it has ended. The background writes back whatever it likes.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "recovery/block_checksums.h"
#include "recovery/tree_item.h"
#include "replication/namespace_op.h"
#include "replication/types.h"
#include "tests/sim/world.h"

namespace pmirror::sim {

struct DiskFile {
  static constexpr size_t kSectorWords = 64;
  static constexpr size_t kSectors = kMaxWords / kSectorWords;

  FileId id{};
  std::array<uint64_t, kMaxWords> words{};
  uint64_t size = 0;  // bytes
  std::array<uint64_t, kMaxWords> durable{};
  uint64_t durable_size = 0;
  std::array<uint64_t, kSectors> changed{};  // stamp of the last change
  std::array<uint64_t, kSectors> flushed{};  // of the change that is durable
  uint64_t size_changed = 0;
  uint64_t size_flushed = 0;
};

class Disk {
 public:
  // name -> id, and the replica's operation mark, which is an attribute of the directory.
  struct Tree {
    std::map<std::string, FileId> names;
    std::map<FileId, bool> parked;  // objects without a name
    uint64_t mark_mount = 0;
    uint64_t mark_operation = 0;
  };

  explicit Disk(World& world) : world_(world) {}

  const Tree& tree() const { return tree_; }
  bool empty() const { return tree_.names.empty(); }
  DiskFile* Find(FileId id);
  DiskFile* FindName(const std::string& name);
  std::optional<std::string> NameOf(FileId id) const;
  // Seen from outside: 0 where there is nothing.
  uint64_t Visible(FileId id, uint64_t word);
  uint64_t Durable(FileId id, uint64_t word);
  bool DurablyNamed(FileId id) const;

  void Store(DiskFile& file, uint64_t word, uint64_t value);
  void Write(DiskFile& file, uint64_t offset, std::span<const std::byte> bytes);
  // As many as there are.
  size_t Read(const DiskFile& file, Extent extent, std::span<std::byte> out) const;
  void Resize(DiskFile& file, uint64_t size);
  // Applies what the simulation uses of the operations, again and again with the same result. False: it cannot be.
  bool Apply(const NamespaceOp& op);
  void SetMark(uint64_t mount, uint64_t operation);

  // Which bytes a flush that begins now will have made durable when it ends.
  struct Flush {
    std::vector<DiskFile> files;
    uint64_t tree_change = 0;
  };
  Flush BeginFlush(std::span<const FileId> files) const;
  Flush BeginFlushAll() const;
  void EndFlush(const Flush& flush);
  void WriteBackSomething();
  void PowerCut();

  bool full = false;  // nothing that grows or is new finds room

  recovery::BlockChecksums Checksums(const DiskFile& file, Extent extent, uint32_t block) const;
  recovery::Inventory Inventory() const;

 private:
  void TreeChanged();
  void Take(DiskFile& file, const DiskFile& from);

  World& world_;
  Tree tree_;
  Tree durable_tree_;
  std::deque<std::pair<uint64_t, Tree>>
      later_trees_;  // after each change that is not flushed, with its number
  uint64_t tree_changes_ = 0;
  std::map<FileId, std::unique_ptr<DiskFile>> files_;  // also those that only an older tree names
};

}  // namespace pmirror::sim
