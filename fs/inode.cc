// SPDX-License-Identifier: BSD-3-Clause
// State of one known object. See inode.h.
#include "fs/inode.h"

#include <cassert>

namespace pmirror::fs {
namespace {

// A file that cannot be opened for writing for one of these reasons can still be read.
bool OnlyReadable(int code) { return code == EROFS || code == EACCES || code == EPERM || code == ETXTBSY; }

}  // namespace

Inode::Inode(const BackingRoot& root, FileId id, const struct stat& info, UniqueFd path_fd, bool pinned,
             Life life)
    : root_(root),
      id_(id),
      backing_inode_(info.st_ino),
      type_(info.st_mode & S_IFMT),
      path_(std::move(path_fd)),
      handle_{},
      life_(life) {
  if (pinned) {
    return;
  }
  Result<ObjectHandle> handle = root_.HandleOf(path_.get());
  if (handle.ok()) {
    handle_ = handle.value();
    path_.Reset();
  }
}

Result<Inode::Path> Inode::OpenPath() const {
  Path path;
  if (path_.valid()) {
    path.borrowed_ = path_.get();
    return path;
  }
  Result<UniqueFd> fd = root_.OpenHandle(handle_);
  if (!fd.ok()) {
    return fd.error();
  }
  path.owned_ = std::move(fd).value();
  return path;
}

Inode::Life Inode::BeginOpen() {
  std::lock_guard lock(mutex_);
  ++opens_;
  return life_;
}

bool Inode::EndOpen() {
  std::lock_guard lock(mutex_);
  assert(opens_ > 0);
  --opens_;
  return opens_ == 0 && life_ == Life::kOrphan;
}

Result<std::shared_ptr<OpenBacking>> Inode::Backing(Replicator& replicator, bool write, UniqueFd fresh_fd) {
  Result<std::shared_ptr<OpenBacking>> open = OpenOnce(replicator, write, std::move(fresh_fd));
  if (open.ok() && write && open.value()->file != nullptr) {
    if (const int error = replicator.BeforeWriting(*open.value()->file); error != 0) {
      return Error{error, "record that the file may be written"};
    }
  }
  return open;
}

Result<std::shared_ptr<OpenBacking>> Inode::OpenOnce(Replicator& replicator, bool write, UniqueFd fresh_fd) {
  std::lock_guard lock(opening_);
  if (std::shared_ptr<OpenBacking> open = backing_.lock(); open != nullptr && (open->writable || !write)) {
    return open;
  }
  auto open = std::make_shared<OpenBacking>();
  open->writable = true;
  if (fresh_fd.valid()) {
    open->fd = std::move(fresh_fd);
  } else {
    Result<Path> path = OpenPath();
    if (!path.ok()) {
      return path.error();
    }
    Result<UniqueFd> fd = root_.Reopen(path.value().get(), O_RDWR | O_NONBLOCK);
    if (!fd.ok() && !write && OnlyReadable(fd.error().code)) {
      open->writable = false;
      fd = root_.Reopen(path.value().get(), O_RDONLY | O_NONBLOCK);
    }
    if (!fd.ok()) {
      return fd.error();
    }
    open->fd = std::move(fd).value();
  }
  if (life() != Life::kGone) {
    open->file = replicator.Attach(id_, open->fd.get());
    if (open->file == nullptr) {
      return Error{EIO, "attach replication to a file"};
    }
  }
  backing_ = open;
  return open;
}

Inode::Life Inode::life() const {
  std::lock_guard lock(mutex_);
  return life_;
}

bool Inode::LoseLastEntry() {
  std::lock_guard lock(mutex_);
  life_ = opens_ > 0 ? Life::kOrphan : Life::kGone;
  return life_ == Life::kOrphan;
}

void Inode::GainEntry() {
  std::lock_guard lock(mutex_);
  life_ = Life::kNamed;
}

bool Inode::RetireOrphan() {
  std::lock_guard lock(mutex_);
  if (opens_ > 0 || life_ != Life::kOrphan) {
    return false;
  }
  life_ = Life::kGone;
  return true;
}

InodeMode::Opened Inode::OpenPlain(pid_t pid, bool for_writing) {
  std::lock_guard lock(mutex_);
  const InodeMode::Opened opened = mode_.OpenPlain(pid);
  cached_writer_ = cached_writer_ || (for_writing && !opened.direct_io);
  return opened;
}

void Inode::ClosePlain(pid_t pid) {
  std::lock_guard lock(mutex_);
  mode_.ClosePlain(pid);
  cached_writer_ = cached_writer_ && mode_.cached();  // with the last handle the kernel has written all back
  plain_closed_.notify_all();
}

int Inode::TakeDirect(Deadline deadline, pid_t* holder) {
  std::unique_lock lock(mutex_);
  plain_closed_.wait_for(lock, deadline.Remaining(), [this] { return !mode_.cached(); });
  return mode_.TakeDirect(holder);
}

bool Inode::AwaitPlainClosed(Deadline deadline) {
  std::unique_lock lock(mutex_);
  return plain_closed_.wait_for(lock, deadline.Remaining(), [this] { return !mode_.cached(); });
}

void Inode::DropDirect() {
  std::lock_guard lock(mutex_);
  mode_.DropDirect();
}

bool Inode::ChangedBesideCache() {
  std::lock_guard lock(mutex_);
  return mode_.ChangedBesideCache();
}

bool Inode::MayHaveCachedStores() const {
  std::lock_guard lock(mutex_);
  return cached_writer_;
}

bool Inode::direct() const {
  std::lock_guard lock(mutex_);
  return mode_.direct();
}

}  // namespace pmirror::fs
