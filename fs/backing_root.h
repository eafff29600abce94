// SPDX-License-Identifier: BSD-3-Clause
// The backing directory of a volume: the plain tree under the mount, and the calls that reach into it without
// following paths.
//
// Everything is reached from descriptors (O_PATH) and single names, so that a rename or a symlink in the tree
// cannot lead out of it. Other file systems mounted inside the tree are refused (EXDEV): the replica could
// not have them.
//
// Thread-safe: immutable after Open().
#pragma once

#include <fcntl.h>
#include <sys/stat.h>

#include <memory>
#include <string>

#include "replication/result.h"
#include "replication/types.h"
#include "replication/unique_fd.h"

namespace pmirror::fs {

// Attributes of the backing objects that belong to pmirror; programs see none of them.
constexpr char kPrivateXattrPrefix[] = "trusted.pmirror.";
// The object's FileId: 8 bytes, little-endian.
constexpr char kIdXattr[] = "trusted.pmirror.id";
// Entry of the backing root that belongs to pmirror.
constexpr char kPrivateDirectory[] = ".pmirror";

// "/proc/self/fd/N": the path of an open descriptor's object, for calls that do not take O_PATH descriptors.
// It leads to the object itself also when that is a symlink.
class ProcPath {
 public:
  explicit ProcPath(int fd);
  const char* c_str() const { return text_; }

 private:
  char text_[32];
};

// What finds an object again without its name and without holding a descriptor (name_to_handle_at(2)).
struct ObjectHandle {
  struct alignas(file_handle) {
    char bytes[sizeof(file_handle) + MAX_HANDLE_SZ];
  } storage;
  file_handle* get() { return reinterpret_cast<file_handle*>(storage.bytes); }
};

class BackingRoot {
 public:
  // Opens the directory and proves what the file system needs of it: ids can be stored, and /proc works.
  // Gives the root its id. Errors name what is missing: ENOTSUP (no trusted.* xattrs), EPERM (not root),
  // EBADMSG (the root carries another id), ENOTDIR, ENOENT.
  static Result<std::unique_ptr<BackingRoot>> Open(const std::string& path);

  int fd() const { return fd_.get(); }
  dev_t device() const { return device_; }
  // Object handles work here, so that an inode need not hold a descriptor.
  bool has_handles() const { return has_handles_; }

  // An O_PATH descriptor of the entry itself (symlinks are not followed).
  Result<UniqueFd> OpenEntry(int directory, const char* name) const;
  // Opens the object behind an O_PATH descriptor for use. `flags` as for open(2); O_NOFOLLOW and O_CREAT have
  // no place here.
  Result<UniqueFd> Reopen(int path_fd, int flags) const;

  // The stored id; kNone when the object has none yet. EBADMSG when what is stored is no id.
  Result<FileId> GetId(int path_fd) const;
  // The same through a directory and a name. ENOENT when the entry has gone.
  Result<FileId> GetEntryId(int directory, const char* name) const;
  // Stores an object's id. EEXIST when it has one already.
  Error SetId(int path_fd, FileId id) const;
  // Replaces the id of an object that carries another object's (a copy made behind pmirror's back).
  Error ReplaceId(int path_fd, FileId id) const;

  // An O_PATH descriptor of the file that `fd` is open of, found again by its name in this tree. ENOENT: it has none here (any more), or one of
  // several names was removed and it is that by which it was opened.
  Result<UniqueFd> FindByDescriptor(int fd) const;

  Result<ObjectHandle> HandleOf(int path_fd) const;
  Result<UniqueFd> OpenHandle(ObjectHandle& handle) const;

 private:
  explicit BackingRoot(UniqueFd fd) : fd_(std::move(fd)) {}
  Error ProveIds();
  void ProveHandles();

  UniqueFd fd_;  // O_RDONLY | O_DIRECTORY
  dev_t device_ = 0;
  bool has_handles_ = false;
};

}  // namespace pmirror::fs
