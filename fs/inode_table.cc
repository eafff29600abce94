// SPDX-License-Identifier: BSD-3-Clause
// Lookup counts and lifetime of inodes. See inode_table.h.
#include "fs/inode_table.h"

namespace pmirror::fs {

InodeTable::~InodeTable() { ForgetAll(); }

std::shared_ptr<Inode> InodeTable::Make(FileId id, const struct stat& info, UniqueFd& path_fd,
                                        Inode::Life life) {
  // A few too many under a race do not matter: the limit has room below the process's.
  const bool pin = !root_.has_handles() || pinned_.load() < pin_limit_;
  std::shared_ptr<Inode> inode(new Inode(root_, id, info, std::move(path_fd), pin, life),
                               [this](Inode* dead) { Destroy(dead); });
  pinned_ += inode->pinned() ? 1 : 0;
  return inode;
}

void InodeTable::Destroy(Inode* inode) {
  pinned_ -= inode->pinned() ? 1 : 0;
  Shard& shard = ShardOf(inode->id());
  {
    std::lock_guard lock(shard.mutex);
    const auto found = shard.slots.find(inode->id());
    // A newer inode of the same id may have taken the slot since the last holder let go.
    if (found != shard.slots.end() && found->second.inode.expired()) {
      shard.slots.erase(found);
    }
  }
  delete inode;
}

Result<std::shared_ptr<Inode>> InodeTable::Obtain(FileId id, const struct stat& info, UniqueFd& path_fd,
                                                  Inode::Life life) {
  std::shared_ptr<Inode> inode;  // should it be the last reference, it dies after the lock: Destroy takes it
  Shard& shard = ShardOf(id);
  std::lock_guard lock(shard.mutex);
  Slot& slot = shard.slots[id];
  inode = slot.inode.lock();
  if (inode == nullptr) {
    inode = Make(id, info, path_fd, life);
    slot = Slot{.inode = inode, .held_for_kernel = inode, .lookups = 1};
    return inode;
  }
  if (inode->backing_inode() != info.st_ino) {
    return Error{EEXIST, "two objects carry one id"};
  }
  slot.held_for_kernel = inode;
  ++slot.lookups;
  return inode;
}

std::shared_ptr<Inode> InodeTable::Find(FileId id) const {
  const Shard& shard = ShardOf(id);
  std::lock_guard lock(shard.mutex);
  const auto found = shard.slots.find(id);
  return found == shard.slots.end() ? nullptr : found->second.inode.lock();
}

void InodeTable::Forget(FileId id, uint64_t lookups) {
  std::shared_ptr<Inode> dropped;  // destroyed after the lock: Destroy takes it
  Shard& shard = ShardOf(id);
  std::lock_guard lock(shard.mutex);
  const auto found = shard.slots.find(id);
  if (found == shard.slots.end()) {
    return;
  }
  Slot& slot = found->second;
  slot.lookups -= lookups < slot.lookups ? lookups : slot.lookups;
  if (slot.lookups == 0) {
    dropped.swap(slot.held_for_kernel);
  }
}

void InodeTable::ForgetAll() {
  for (Shard& shard : shards_) {
    std::vector<std::shared_ptr<Inode>> dropped;
    std::lock_guard lock(shard.mutex);
    for (auto& [id, slot] : shard.slots) {
      slot.lookups = 0;
      dropped.push_back(std::move(slot.held_for_kernel));
      slot.held_for_kernel.reset();
    }
  }
}

std::vector<FileId> InodeTable::Select(absl::FunctionRef<bool(const Inode&)> wanted) const {
  std::vector<FileId> ids;
  for (const Shard& shard : shards_) {
    std::lock_guard lock(shard.mutex);
    for (const auto& [id, slot] : shard.slots) {
      if (slot.held_for_kernel != nullptr && wanted(*slot.held_for_kernel)) {
        ids.push_back(id);
      }
    }
  }
  return ids;
}

size_t InodeTable::size() const {
  size_t total = 0;
  for (const Shard& shard : shards_) {
    std::lock_guard lock(shard.mutex);
    total += shard.slots.size();
  }
  return total;
}

}  // namespace pmirror::fs
