// SPDX-License-Identifier: BSD-3-Clause
// getattr and setattr of FileSystem.
#include <unistd.h>

#include "fs/file_system.h"

namespace pmirror::fs {
namespace {

constexpr mode_t kPermissionBits = 07777;

OpTime TimeOf(const std::optional<timespec>& asked, const timespec& now_in_place) {
  if (!asked) {
    return {.seconds = 0, .nanoseconds = UTIME_OMIT};
  }
  return {.seconds = now_in_place.tv_sec, .nanoseconds = now_in_place.tv_nsec};
}

int Stat(int path_fd, struct stat& info) {
  return ::fstatat(path_fd, "", &info, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) == 0 ? 0 : errno;
}

}  // namespace

bool FileSystem::AttributesAreVolatile(FileId id) const {
  const std::shared_ptr<Inode> inode = inodes_.Find(id);
  return inode != nullptr && inode->direct();
}

Result<struct stat> FileSystem::GetAttributes(FileId id) {
  Result<std::shared_ptr<Inode>> inode = Known(id);
  if (!inode.ok()) {
    return inode.error();
  }
  Result<Inode::Path> path = inode.value()->OpenPath();
  if (!path.ok()) {
    return path.error();
  }
  return AttributesOf(id, path.value().get());
}

Result<struct stat> FileSystem::SetAttributes(FileId id, const AttributeChange& change,
                                              const Caller& caller) {
  Result<std::shared_ptr<Inode>> inode = Known(id);
  if (!inode.ok()) {
    return inode.error();
  }
  Result<Inode::Path> path = inode.value()->OpenPath();
  if (!path.ok()) {
    return path.error();
  }
  const int fd = path.value().get();
  // The owner first: changing it clears setuid bits that an explicit mode in the same request puts back.
  int error = change.uid || change.gid ? SetOwner(*inode.value(), fd, change, caller) : 0;
  if (error == 0 && change.mode) {
    error = SetMode(*inode.value(), fd, *change.mode);
  }
  if (error == 0 && change.size) {
    error = SetSize(inode.value(), change, caller);
  }
  if (error == 0 && (change.atime || change.mtime)) {
    error = SetTimes(*inode.value(), fd, change);
  }
  if (error != 0) {
    return Error{error, "change attributes"};
  }
  return AttributesOf(id, fd);
}

int FileSystem::SetMode(Inode& inode, int path_fd, mode_t mode) {
  inode.may_have_privileges() = true;
  return ChangeInode(inode, [&](NamespaceOp& op) {
    struct stat info {};
    if (::chmod(ProcPath(path_fd).c_str(), mode & kPermissionBits) != 0 || Stat(path_fd, info) != 0) {
      return errno;
    }
    op.kind = OpKind::kSetMode;
    op.mode = info.st_mode & kPermissionBits;
    return 0;
  });
}

int FileSystem::SetOwner(Inode& inode, int path_fd, const AttributeChange& change, const Caller& caller) {
  const uid_t uid = change.uid.value_or(static_cast<uid_t>(-1));
  const gid_t gid = change.gid.value_or(static_cast<gid_t>(-1));
  // The backing file system clears setuid bits by itself, but takes the daemon for a member of every group.
  if (change.drop_privileges && !S_ISDIR(inode.type())) {
    if (const int error = DropForeignSetgid(inode, path_fd, caller); error != 0) {
      return error;
    }
  }
  return ChangeInode(inode, [&](NamespaceOp& op) {
    struct stat info {};
    if (::fchownat(path_fd, "", uid, gid, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) != 0 ||
        Stat(path_fd, info) != 0) {
      return errno;
    }
    op.kind = OpKind::kSetOwner;
    op.uid = uid;
    op.gid = gid;
    op.mode = info.st_mode & kPermissionBits;
    return 0;
  });
}

int FileSystem::SetTimes(Inode& inode, int path_fd, const AttributeChange& change) {
  const timespec omit{.tv_sec = 0, .tv_nsec = UTIME_OMIT};
  const timespec times[2] = {change.atime.value_or(omit), change.mtime.value_or(omit)};
  return ChangeInode(inode, [&](NamespaceOp& op) {
    struct stat info {};
    if (::utimensat(path_fd, "", times, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) != 0 ||
        Stat(path_fd, info) != 0) {
      return errno;
    }
    op.kind = OpKind::kSetTimes;
    op.atime = TimeOf(change.atime, info.st_atim);  // "now" is the time of this node, the same on every copy
    op.mtime = TimeOf(change.mtime, info.st_mtim);
    return 0;
  });
}

int FileSystem::SetSize(const std::shared_ptr<Inode>& inode, const AttributeChange& change,
                        const Caller& caller) {
  if (inode->type() != S_IFREG) {
    return S_ISDIR(inode->type()) ? EISDIR : EINVAL;
  }
  inode->BeginOpen();  // makes the file an orphan instead of gone, should it lose its last entry meanwhile
  Result<std::shared_ptr<OpenBacking>> backing = inode->Backing(replicator_, /*write=*/true);
  int error = backing.ok() ? DropPrivileges(*inode, *backing.value(), change.drop_privileges, caller)
                           : backing.error().code;
  if (error == 0) {
    error = Truncate(*inode, *backing.value(), *change.size, change.by_handle);
  }
  EndOpen(*inode);
  return error;
}

}  // namespace pmirror::fs
