// SPDX-License-Identifier: BSD-3-Clause
// Operations of FileSystem on extended attributes. Who may use which name space is decided by the kernel;
// pmirror's own attributes are nobody's.
#include <sys/xattr.h>
#include <unistd.h>

#include <climits>
#include <cstring>
#include <string_view>

#include "fs/file_system.h"

namespace pmirror::fs {
namespace {

constexpr std::string_view kTrusted = "trusted.";
constexpr char kAccessAcl[] = "system.posix_acl_access";

bool IsPrivate(std::string_view name) { return name.starts_with(kPrivateXattrPrefix); }

// The names of `list` (each ended by NUL) that a program of `caller` may see.
std::string Visible(std::string_view list, const Caller& caller) {
  std::string visible;
  while (!list.empty()) {
    const std::string_view name = list.substr(0, list.find('\0'));
    list.remove_prefix(name.size() + (name.size() < list.size() ? 1 : 0));
    if (!IsPrivate(name) && (caller.uid == 0 || !name.starts_with(kTrusted))) {
      visible.append(name).push_back('\0');
    }
  }
  return visible;
}

}  // namespace

// Takes the setgid bit away from a file whose group the caller is not in.
int FileSystem::DropForeignSetgid(Inode& inode, int path_fd, const Caller& caller) {
  struct stat info {};
  if (::fstatat(path_fd, "", &info, AT_EMPTY_PATH) != 0 || (info.st_mode & S_ISGID) == 0 ||
      InGroup(caller, info.st_gid)) {
    return 0;
  }
  return SetMode(inode, path_fd, info.st_mode & ~static_cast<mode_t>(S_ISGID));
}

int FileSystem::SetXattr(FileId id, const char* name, std::span<const char> value, int flags,
                         const Caller& caller) {
  if (IsPrivate(name)) {
    return EPERM;
  }
  Result<std::shared_ptr<Inode>> inode = Known(id);
  if (!inode.ok()) {
    return inode.error().code;
  }
  Result<Inode::Path> path = inode.value()->OpenPath();
  if (!path.ok()) {
    return path.error().code;
  }
  inode.value()->may_have_privileges() = true;
  const int error = ChangeInode(*inode.value(), [&](NamespaceOp& op) {
    if (::setxattr(ProcPath(path.value().get()).c_str(), name, value.data(), value.size(), flags) != 0) {
      return errno;
    }
    op.kind = OpKind::kSetXattr;
    op.name = name;
    op.value.assign(value.data(), value.size());
    return 0;
  });
  if (error == 0 && std::strcmp(name, kAccessAcl) == 0) {
    return DropForeignSetgid(*inode.value(), path.value().get(), caller);
  }
  return error;
}

int FileSystem::RemoveXattr(FileId id, const char* name) {
  if (IsPrivate(name)) {
    return ENODATA;
  }
  Result<std::shared_ptr<Inode>> inode = Known(id);
  if (!inode.ok()) {
    return inode.error().code;
  }
  Result<Inode::Path> path = inode.value()->OpenPath();
  if (!path.ok()) {
    return path.error().code;
  }
  return ChangeInode(*inode.value(), [&](NamespaceOp& op) {
    if (::removexattr(ProcPath(path.value().get()).c_str(), name) != 0) {
      return errno;
    }
    op.kind = OpKind::kRemoveXattr;
    op.name = name;
    return 0;
  });
}

Result<size_t> FileSystem::GetXattr(FileId id, const char* name, std::span<char> into) {
  if (IsPrivate(name)) {
    return Error{ENODATA, "read an extended attribute"};
  }
  Result<std::shared_ptr<Inode>> inode = Known(id);
  if (!inode.ok()) {
    return inode.error();
  }
  Result<Inode::Path> path = inode.value()->OpenPath();
  if (!path.ok()) {
    return path.error();
  }
  const ssize_t length = ::getxattr(ProcPath(path.value().get()).c_str(), name, into.data(), into.size());
  if (length < 0) {
    return Error::FromErrno("read an extended attribute");
  }
  return static_cast<size_t>(length);
}

Result<size_t> FileSystem::ListXattr(FileId id, std::span<char> into, const Caller& caller) {
  Result<std::shared_ptr<Inode>> inode = Known(id);
  if (!inode.ok()) {
    return inode.error();
  }
  Result<Inode::Path> path = inode.value()->OpenPath();
  if (!path.ok()) {
    return path.error();
  }
  std::string list(XATTR_LIST_MAX, '\0');
  const ssize_t length = ::listxattr(ProcPath(path.value().get()).c_str(), list.data(), list.size());
  if (length < 0) {
    return Error::FromErrno("list extended attributes");
  }
  const std::string visible = Visible(std::string_view(list).substr(0, static_cast<size_t>(length)), caller);
  if (!into.empty()) {
    if (into.size() < visible.size()) {
      return Error{ERANGE, "list extended attributes"};
    }
    std::memcpy(into.data(), visible.data(), visible.size());
  }
  return visible.size();
}

}  // namespace pmirror::fs
