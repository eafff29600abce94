// SPDX-License-Identifier: BSD-3-Clause
// Direct mode: who maps the backing file itself, and what the kernel must forget for it.
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "fs/file_system.h"

namespace pmirror::fs {

DirectLease::DirectLease(DirectLease&& other) noexcept
    : file_system_(std::exchange(other.file_system_, nullptr)),
      inode_(std::move(other.inode_)),
      backing_(std::move(other.backing_)),
      descriptor_(std::move(other.descriptor_)),
      size_(other.size_) {}

DirectLease::~DirectLease() {
  if (file_system_ == nullptr) {
    return;
  }
  backing_.reset();
  inode_->DropDirect();
  file_system_->EndOpen(*inode_);
}

// A program that an earlier daemon gave the file has it mapped, and nobody has looked it up since. Null when it has no name in the tree any more:
// what was open without a name has left the replicas with the mount that knew of it.
std::shared_ptr<Inode> FileSystem::Recall(FileId id, int backing_fd) {
  Result<UniqueFd> named = root_.FindByDescriptor(backing_fd);
  if (!named.ok()) {
    return nullptr;
  }
  Result<FileId> stored = root_.GetId(named.value().get());
  struct stat info {};
  if (!stored.ok() || stored.value() != id || ::fstatat(named.value().get(), "", &info, AT_EMPTY_PATH) != 0) {
    return nullptr;
  }
  Result<std::shared_ptr<Inode>> inode = inodes_.Obtain(id, info, named.value());
  if (!inode.ok()) {
    return nullptr;
  }
  inodes_.Forget(id, 1);  // the kernel has not looked it up
  // Unlinked before it was known here: then nothing has made an orphan of it.
  return ::fstat(backing_fd, &info) == 0 && info.st_nlink > 0 ? inode.value() : nullptr;
}

FileSystem::DirectAnswer FileSystem::AcquireDirect(FileId id, bool writable, Deadline deadline,
                                                   int backing_fd) {
  DirectAnswer answer;
  std::shared_ptr<Inode> inode = inodes_.Find(id);
  if (inode == nullptr && backing_fd >= 0) {
    inode = Recall(id, backing_fd);
  }
  if (inode == nullptr || inode->type() != S_IFREG) {
    answer.error = inode == nullptr ? ESTALE : EINVAL;
    return answer;
  }
  answer.error = inode->TakeDirect(deadline, &answer.holder);
  if (answer.error != 0) {
    return answer;
  }
  inode->BeginOpen();
  DirectLease lease;  // from here on its end undoes everything
  lease.file_system_ = this;
  lease.inode_ = inode;
  Result<std::shared_ptr<OpenBacking>> backing = inode->Backing(replicator_, writable);
  if (!backing.ok()) {
    answer.error = backing.error().code;
    return answer;
  }
  lease.backing_ = std::move(backing).value();
  Result<Inode::Path> path = inode->OpenPath();
  Result<UniqueFd> fd = path.ok() ? root_.Reopen(path.value().get(), writable ? O_RDWR : O_RDONLY)
                                  : Result<UniqueFd>(path.error());
  struct stat info {};
  if (!fd.ok() || ::fstat(fd.value().get(), &info) != 0) {
    answer.error = fd.ok() ? errno : fd.error().code;
    return answer;
  }
  lease.descriptor_ = std::move(fd).value();
  lease.size_ = static_cast<uint64_t>(info.st_size);
  // From the attributes on: nothing that the kernel remembers of the file may outlive the first store to its
  // backing file. Pages are only left over from handles that are closed, so there is nothing to write back.
  if (kernel_cache_ != nullptr) {
    kernel_cache_->DropData(id, {});
  }
  answer.lease.emplace(std::move(lease));
  return answer;
}

int FileSystem::AwaitPlainClosed(FileId id, Deadline deadline) {
  const std::shared_ptr<Inode> inode = inodes_.Find(id);
  return inode == nullptr || inode->AwaitPlainClosed(deadline) ? 0 : EBUSY;
}

void FileSystem::DataChanged(FileId id, Extent extent) {
  const std::shared_ptr<Inode> inode = inodes_.Find(id);
  if (inode != nullptr && inode->ChangedBesideCache() && kernel_cache_ != nullptr) {
    kernel_cache_->DropData(id, extent);
  }
}

}  // namespace pmirror::fs
