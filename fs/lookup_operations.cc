// SPDX-License-Identifier: BSD-3-Clause
// Names, inodes and ids of FileSystem; its construction.
#include <sys/xattr.h>
#include <unistd.h>

#include <climits>
#include <cstring>

#include "fs/file_system.h"

namespace pmirror::fs {

FileSystem::FileSystem(const BackingRoot& root, Replicator& replicator, const OpenOracle& oracle,
                       size_t pin_limit)
    : root_(root), replicator_(replicator), oracle_(oracle), inodes_(root, pin_limit) {
  struct stat info {};
  ::fstat(root_.fd(), &info);
  UniqueFd path(::fcntl(root_.fd(), F_DUPFD_CLOEXEC, 0));
  // The kernel never forgets the root: this lookup stands for its.
  [[maybe_unused]] const auto root_inode = inodes_.Obtain(FileId::kRoot, info, path);
}

FileSystem::~FileSystem() = default;

Result<std::shared_ptr<Inode>> FileSystem::Known(FileId id) const {
  std::shared_ptr<Inode> inode = inodes_.Find(id);
  if (inode == nullptr) {
    return Error{ESTALE, "find an inode"};
  }
  return inode;
}

int FileSystem::CheckName(FileId parent, const char* name, int missing) const {
  const size_t length = std::strlen(name);
  if (length > kMaxNameBytes) {
    return ENAMETOOLONG;
  }
  if (length == 0 || std::strchr(name, '/') != nullptr || std::strcmp(name, ".") == 0 ||
      std::strcmp(name, "..") == 0) {
    return EINVAL;
  }
  return parent == FileId::kRoot && std::strcmp(name, kPrivateDirectory) == 0 ? missing : 0;
}

Result<Inode::Path> FileSystem::ParentOf(FileId parent, const char* name) const {
  if (const int error = CheckName(parent, name, EPERM); error != 0) {
    return Error{error, "check a name"};
  }
  Result<std::shared_ptr<Inode>> inode = Known(parent);
  if (!inode.ok()) {
    return inode.error();
  }
  return inode.value()->OpenPath();
}

Result<FileId> FileSystem::IdOf(int path_fd, FileId parent, const char* name) {
  Result<FileId> id = root_.GetId(path_fd);
  if (!id.ok() || id.value() != FileId::kNone) {
    return id;
  }
  return Adopt(path_fd, parent, name);
}

Result<FileId> FileSystem::Adopt(int path_fd, FileId parent, const char* name) {
  const FileId id = replicator_.NewId();
  const Error error = root_.SetId(path_fd, id);
  if (error.code == EEXIST) {
    return root_.GetId(path_fd);  // another thread has just met the object under another of its names
  }
  if (!error.ok()) {
    return error;
  }
  replicator_.Adopted(parent, name, id);
  return id;
}

Result<struct stat> FileSystem::AttributesOf(FileId id, int path_fd) const {
  struct stat info {};
  if (::fstatat(path_fd, "", &info, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) != 0) {
    return Error::FromErrno("stat a backing object");
  }
  info.st_ino = Raw(id);
  if (id == FileId::kRoot && info.st_nlink > 2 &&
      ::faccessat(root_.fd(), kPrivateDirectory, F_OK, AT_SYMLINK_NOFOLLOW) == 0) {
    --info.st_nlink;  // the hidden directory's ".."
  }
  return info;
}

Result<Entry> FileSystem::Remember(UniqueFd path_fd, FileId parent, const char* name) {
  struct stat info {};
  if (::fstatat(path_fd.get(), "", &info, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) != 0) {
    return Error::FromErrno("stat a backing object");
  }
  Result<FileId> id = IdOf(path_fd.get(), parent, name);
  if (!id.ok()) {
    return id.error();
  }
  Result<std::shared_ptr<Inode>> inode = inodes_.Obtain(id.value(), info, path_fd);
  if (!inode.ok() && inode.error().code == EEXIST) {
    // A copy of another object, made in the backing tree with its attributes: it must become an object of its
    // own.
    id = replicator_.NewId();
    if (const Error error = root_.ReplaceId(path_fd.get(), id.value()); !error.ok()) {
      return error;
    }
    replicator_.Adopted(parent, name, id.value());
    inode = inodes_.Obtain(id.value(), info, path_fd);
  }
  if (!inode.ok()) {
    return inode.error();
  }
  info.st_ino = Raw(id.value());
  return Entry{.inode = std::move(inode).value(), .attributes = info};
}

Result<Entry> FileSystem::Lookup(FileId parent, const char* name) {
  if (const int error = CheckName(parent, name, ENOENT); error != 0) {
    return Error{error, "check a name"};
  }
  Result<Inode::Path> directory = ParentOf(parent, name);
  if (!directory.ok()) {
    return directory.error();
  }
  Result<UniqueFd> found = root_.OpenEntry(directory.value().get(), name);
  if (!found.ok()) {
    return found.error();
  }
  return Remember(std::move(found).value(), parent, name);
}

Result<std::string> FileSystem::ReadLink(FileId id) {
  Result<std::shared_ptr<Inode>> inode = Known(id);
  if (!inode.ok()) {
    return inode.error();
  }
  Result<Inode::Path> path = inode.value()->OpenPath();
  if (!path.ok()) {
    return path.error();
  }
  std::string value(PATH_MAX, '\0');
  const ssize_t length = ::readlinkat(path.value().get(), "", value.data(), value.size());
  if (length < 0) {
    return Error::FromErrno("read a symlink");
  }
  value.resize(static_cast<size_t>(length));
  return value;
}

Result<struct statvfs> FileSystem::Statistics() {
  struct statvfs statistics {};
  if (::fstatvfs(root_.fd(), &statistics) != 0) {
    return Error::FromErrno("read the backing file system's statistics");
  }
  statistics.f_namemax = kMaxNameBytes;
  return statistics;
}

}  // namespace pmirror::fs
