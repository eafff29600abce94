// SPDX-License-Identifier: BSD-3-Clause
// The inodes that the kernel or somebody in the daemon knows, by id. The kernel's node number *is* the id
// (the root is 1 in both), so no number is ever used for two objects and no generation is needed.
//
// An inode lives while the kernel has looked it up (and not forgotten as often) or somebody holds its
// shared_ptr. While it lives every Obtain and Find of its id gives the same object. Thread-safe; the table
// must outlive its inodes.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "absl/functional/function_ref.h"
#include "fs/inode.h"

namespace pmirror::fs {

class InodeTable {
 public:
  // At most `pin_limit` inodes hold a descriptor each; further ones are reached by handle, where the backing
  // file system has handles.
  InodeTable(const BackingRoot& root, size_t pin_limit) : root_(root), pin_limit_(pin_limit) {}
  ~InodeTable();

  // The inode of an object that was just found in the tree, and one more lookup by the kernel. Takes
  // `path_fd` when the object was not known yet. EEXIST when another living object carries the same id.
  Result<std::shared_ptr<Inode>> Obtain(FileId id, const struct stat& info, UniqueFd& path_fd,
                                        Inode::Life life = Inode::Life::kNamed);

  // Null when nobody knows it.
  std::shared_ptr<Inode> Find(FileId id) const;

  // The kernel forgets `lookups` of its lookups. A number larger than what it has counts as all.
  void Forget(FileId id, uint64_t lookups);

  // The kernel is gone, with all it knew.
  void ForgetAll();

  size_t size() const;
  // Those known to the kernel for which `wanted` says true. It is called with a lock held.
  std::vector<FileId> Select(absl::FunctionRef<bool(const Inode&)> wanted) const;

 private:
  struct Slot {
    std::weak_ptr<Inode> inode;
    std::shared_ptr<Inode> held_for_kernel;  // not null exactly while lookups > 0
    uint64_t lookups = 0;
  };
  struct Shard {
    mutable std::mutex mutex;
    std::unordered_map<FileId, Slot> slots;  // guarded by mutex
  };
  static constexpr size_t kShards = 64;

  Shard& ShardOf(FileId id) { return shards_[Raw(id) % kShards]; }
  const Shard& ShardOf(FileId id) const { return shards_[Raw(id) % kShards]; }
  std::shared_ptr<Inode> Make(FileId id, const struct stat& info, UniqueFd& path_fd, Inode::Life life);
  void Destroy(Inode* inode);

  const BackingRoot& root_;
  const size_t pin_limit_;
  std::atomic<size_t> pinned_{0};
  std::array<Shard, kShards> shards_;
};

}  // namespace pmirror::fs
