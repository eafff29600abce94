// SPDX-License-Identifier: BSD-3-Clause
// Access to the backing tree. See backing_root.h.
#include "fs/backing_root.h"

#include <endian.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <climits>
#include <cstdio>
#include <cstring>

namespace pmirror::fs {
namespace {

// `get` is getxattr (through /proc/self/fd/N, which must be followed, to the object itself) or lgetxattr (of
// an entry, which must not).
Result<FileId> ReadId(decltype(&::getxattr) get, const char* path) {
  uint64_t raw = 0;
  const ssize_t length = get(path, kIdXattr, &raw, sizeof(raw));
  if (length < 0 && errno == ENODATA) {
    return FileId::kNone;
  }
  if (length < 0 && errno != ERANGE) {
    return Error::FromErrno("read an object's id");
  }
  const FileId id{le64toh(raw)};
  if (length != sizeof(raw) || id == FileId::kNone) {
    return Error{EBADMSG, "read an object's id: malformed"};
  }
  return id;
}

constexpr int kTriesOfPath = 4;

// The path of an open descriptor, empty when there is none.
std::string ReadLink(int fd) {
  char path[PATH_MAX];
  const ssize_t length = ::readlink(ProcPath(fd).c_str(), path, sizeof(path));
  return length < 0 ? std::string() : std::string(path, static_cast<size_t>(length));
}

Error WriteId(int path_fd, FileId id, int flags) {
  const uint64_t raw = htole64(Raw(id));
  return ::setxattr(ProcPath(path_fd).c_str(), kIdXattr, &raw, sizeof(raw), flags) == 0
             ? Error::Ok()
             : Error::FromErrno("store an object's id");
}

}  // namespace

ProcPath::ProcPath(int fd) { std::snprintf(text_, sizeof(text_), "/proc/self/fd/%d", fd); }

Result<std::unique_ptr<BackingRoot>> BackingRoot::Open(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid()) {
    return Error::FromErrno("open the backing directory");
  }
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) {
    return Error::FromErrno("stat the backing directory");
  }
  std::unique_ptr<BackingRoot> root(new BackingRoot(std::move(fd)));
  root->device_ = info.st_dev;
  PMIRROR_RETURN_IF_ERROR(root->ProveIds());
  root->ProveHandles();
  return root;
}

Error BackingRoot::ProveIds() {
  Result<FileId> id = GetId(fd());
  if (!id.ok()) {
    return id.error();
  }
  if (id.value() == FileId::kNone) {
    return SetId(fd(), FileId::kRoot);
  }
  return id.value() == FileId::kRoot
             ? Error::Ok()
             : Error{EBADMSG, "open the backing directory: it is not the root of a volume"};
}

void BackingRoot::ProveHandles() {
  Result<ObjectHandle> handle = HandleOf(fd());
  has_handles_ = handle.ok() && OpenHandle(handle.value()).ok();
}

Result<UniqueFd> BackingRoot::OpenEntry(int directory, const char* name) const {
  open_how how{};
  how.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC;
  how.resolve = RESOLVE_NO_XDEV | RESOLVE_NO_MAGICLINKS;
  UniqueFd fd(static_cast<int>(::syscall(SYS_openat2, directory, name, &how, sizeof(how))));
  if (!fd.valid()) {
    return Error::FromErrno("look up an entry");
  }
  return fd;
}

// The kernel says by which path a descriptor was opened, renames followed. That is no more than a hint: what counts is what lies there.
Result<UniqueFd> BackingRoot::FindByDescriptor(int fd) const {
  for (int attempt = 0; attempt < kTriesOfPath; ++attempt) {  // somebody may rename meanwhile
    const std::string root = ReadLink(fd_.get()) + "/";
    const std::string path = ReadLink(fd);
    if (!path.starts_with(root) || path.starts_with(root + kPrivateDirectory + "/")) {
      break;
    }
    open_how how{};
    how.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC;
    how.resolve = RESOLVE_BENEATH | RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS;
    UniqueFd found(
        static_cast<int>(::syscall(SYS_openat2, fd_.get(), path.c_str() + root.size(), &how, sizeof(how))));
    struct stat there {};
    struct stat given {};
    if (found.valid() && ::fstatat(found.get(), "", &there, AT_EMPTY_PATH) == 0 && ::fstat(fd, &given) == 0 &&
        S_ISREG(there.st_mode) && there.st_dev == given.st_dev && there.st_ino == given.st_ino) {
      return found;
    }
  }
  return Error{ENOENT, "find a backing file by its descriptor"};
}

Result<UniqueFd> BackingRoot::Reopen(int path_fd, int flags) const {
  UniqueFd fd(::open(ProcPath(path_fd).c_str(), flags | O_CLOEXEC));
  if (!fd.valid()) {
    return Error::FromErrno("open a backing object");
  }
  return fd;
}

Result<FileId> BackingRoot::GetId(int path_fd) const {
  return ReadId(&::getxattr, ProcPath(path_fd).c_str());
}

Result<FileId> BackingRoot::GetEntryId(int directory, const char* name) const {
  const std::string path = std::string(ProcPath(directory).c_str()) + "/" + name;
  return ReadId(&::lgetxattr, path.c_str());
}

Error BackingRoot::SetId(int path_fd, FileId id) const { return WriteId(path_fd, id, XATTR_CREATE); }

Error BackingRoot::ReplaceId(int path_fd, FileId id) const { return WriteId(path_fd, id, XATTR_REPLACE); }

Result<ObjectHandle> BackingRoot::HandleOf(int path_fd) const {
  ObjectHandle handle{};
  handle.get()->handle_bytes = MAX_HANDLE_SZ;
  int mount_id = 0;
  if (::name_to_handle_at(path_fd, "", handle.get(), &mount_id, AT_EMPTY_PATH) != 0) {
    return Error::FromErrno("take an object's handle");
  }
  return handle;
}

Result<UniqueFd> BackingRoot::OpenHandle(ObjectHandle& handle) const {
  UniqueFd object(::open_by_handle_at(fd(), handle.get(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
  if (!object.valid()) {
    return Error::FromErrno("open an object by its handle");
  }
  return object;
}

}  // namespace pmirror::fs
