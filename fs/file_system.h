// SPDX-License-Identifier: BSD-3-Clause
// The file system of a primary: what a mount of the volume does with each request, in plain types. The FUSE
// adapter (fuse_operations.h) translates; nothing here knows FUSE.
//
// Every operation does its work in the backing tree and says to the Replicator what it did. Functions return
// 0 or an errno, or a Result with one. Thread-safe; all may block until the Replicator's deadline.
//
// Permissions are the kernel's business (default_permissions): it knows the callers' groups, capabilities and
// name spaces. Locks (flock, POSIX) are the kernel's too: the volume is mounted writable in one place, so
// local locks are all the locks there are, and they die with their programs when the node does.
//
// When an operation fails in the Replicator after the local change, the caller gets the errno and the change
// stays (replicator.h): the names it touched are dropped from the kernel's cache, because the kernel believes
// that nothing happened.
//
// The operations are spread by theme: lookup_operations.cc, attribute_operations.cc, tree_operations.cc
// (entries come and go), file_operations.cc, data_operations.cc, directory_operations.cc,
// xattr_operations.cc, direct_access.cc.
#pragma once

#include <sys/stat.h>
#include <sys/statvfs.h>

#include <atomic>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "fs/backing_root.h"
#include "fs/caller.h"
#include "fs/handles.h"
#include "fs/inode_table.h"
#include "fs/kernel_cache.h"
#include "fs/open_oracle.h"
#include "fs/replicator.h"

namespace pmirror::fs {

// An object as the kernel learns of it. Its st_ino is the id. The kernel has one more lookup of it, to be
// given back by Forget.
struct Entry {
  std::shared_ptr<Inode> inode;
  struct stat attributes {};
};

struct CreatedFile {
  Entry entry;
  std::unique_ptr<FileHandle> handle;
};

// What setattr is to change; absent: leave it.
struct AttributeChange {
  std::optional<mode_t> mode;
  std::optional<uid_t> uid;
  std::optional<gid_t> gid;
  std::optional<uint64_t> size;
  std::optional<timespec> atime;  // UTIME_NOW in tv_nsec: now
  std::optional<timespec> mtime;
  bool by_handle = false;        // ftruncate rather than truncate: times move also when the size stays
  bool drop_privileges = false;  // a change of size or owner by somebody who may not keep setuid bits
};

struct WriteOptions {
  int flags = 0;  // of open(2), as they are at the time of the write
  bool from_page_cache =
      false;  // written back by the kernel, on nobody's behalf: never an append, never synchronous
  bool drop_privileges = false;  // the writer may not keep setuid bits
};

// A client's hold on the backing file of an inode (direct mode), until it is destroyed. Outlives neither the
// FileSystem nor the Replicator.
class DirectLease {
 public:
  DirectLease(DirectLease&&) noexcept;
  DirectLease& operator=(DirectLease&&) = delete;
  ~DirectLease();

  // The backing file, with an open file description of its own: O_RDWR or O_RDONLY as it was asked for.
  UniqueFd TakeDescriptor() { return std::move(descriptor_); }
  // Null when the file has been removed and nobody had it open: it is not replicated.
  const std::shared_ptr<ReplicatedFile>& file() const { return backing_->file; }
  FileId id() const { return inode_->id(); }
  uint64_t size() const { return size_; }  // of the file when the lease was taken

 private:
  friend class FileSystem;
  DirectLease() = default;
  class FileSystem* file_system_ = nullptr;
  std::shared_ptr<Inode> inode_;
  std::shared_ptr<OpenBacking> backing_;
  UniqueFd descriptor_;
  uint64_t size_ = 0;
};

class FileSystem {
 public:
  // The references must outlive the file system. `pin_limit`: how many descriptors it may keep open for known
  // inodes.
  FileSystem(const BackingRoot& root, Replicator& replicator, const OpenOracle& oracle, size_t pin_limit);
  ~FileSystem();

  // Set by the session before the first request, and null after the last.
  void set_kernel_cache(KernelCache* cache) { kernel_cache_ = cache; }

  // --- names and inodes (lookup_operations.cc) ---
  Result<Entry> Lookup(FileId parent, const char* name);
  void Forget(FileId id, uint64_t lookups) { inodes_.Forget(id, lookups); }
  void ForgetAll() { inodes_.ForgetAll(); }
  Result<std::string> ReadLink(FileId id);
  Result<struct statvfs> Statistics();

  // --- attributes (attribute_operations.cc) ---
  // `id`'s attributes may change without a request: somebody stores to its backing file.
  bool AttributesAreVolatile(FileId id) const;
  Result<struct stat> GetAttributes(FileId id);
  Result<struct stat> SetAttributes(FileId id, const AttributeChange& change, const Caller& caller);

  // --- the tree (tree_operations.cc) ---
  // Anything but a symlink; `mode` with its type bits.
  Result<Entry> MakeNode(FileId parent, const char* name, mode_t mode, dev_t device, const Caller& caller);
  Result<Entry> MakeSymlink(FileId parent, const char* name, const char* value, const Caller& caller);
  Result<Entry> Link(FileId id, FileId parent, const char* name);
  int Unlink(FileId parent, const char* name);
  int RemoveDirectory(FileId parent, const char* name);
  // `flags` of renameat2(2); RENAME_WHITEOUT is refused.
  int Rename(FileId parent, const char* name, FileId new_parent, const char* new_name, unsigned flags);

  // --- files (file_operations.cc) ---
  Result<CreatedFile> Create(FileId parent, const char* name, mode_t mode, int flags, const Caller& caller);
  Result<CreatedFile> CreateUnnamed(FileId parent, mode_t mode, int flags, const Caller& caller);
  // `drop_privileges`: with O_TRUNC, by somebody who may not keep setuid bits.
  Result<std::unique_ptr<FileHandle>> Open(FileId id, int flags, const Caller& caller, bool drop_privileges);
  // Never fails: what the Replicator says of a forgotten orphan is of no use to anybody.
  void Release(std::unique_ptr<FileHandle> handle);

  // --- data (data_operations.cc) ---
  Result<size_t> Read(FileHandle& file, std::span<char> into, uint64_t offset);
  Result<size_t> Write(FileHandle& file, std::span<const char> from, uint64_t offset,
                       const WriteOptions& options, const Caller& caller);
  int Sync(FileHandle& file, bool data_only);
  int Allocate(FileHandle& file, int mode, Extent extent, const Caller& caller);
  Result<uint64_t> Seek(FileHandle& file, uint64_t offset, int whence);
  Result<size_t> CopyRange(FileHandle& from, uint64_t from_offset, FileHandle& to, uint64_t to_offset,
                           size_t length, const Caller& caller);
  int SyncVolume();
  // What plain programs have stored to mappings is durable here and on the replicas. The kernel's own sync(2) does not wait
  // for that. Not from a session thread.
  int SyncCachedStores();

  // --- directories (directory_operations.cc) ---
  Result<std::unique_ptr<DirectoryHandle>> OpenDirectory(FileId id);
  struct DirectoryEntry {
    const char* name;
    ino_t inode;         // the id; for an entry listed with `lookup`, that of entry->attributes
    mode_t type;         // S_IFMT bits
    uint64_t position;   // where the listing goes on after it
    const Entry* entry;  // only with `lookup`, and not for "." and "..": the kernel has a lookup of it when
                         // `take` says true
  };
  // Lists from `position` until `take` says false (no room: the entry is not used up) or the end.
  using Take = absl::FunctionRef<bool(const DirectoryEntry&)>;
  int List(DirectoryHandle& directory, uint64_t position, bool lookup, Take take);
  int SyncDirectory(DirectoryHandle& directory, bool data_only);

  // --- extended attributes (xattr_operations.cc); sizes and ERANGE as in the system calls ---
  int SetXattr(FileId id, const char* name, std::span<const char> value, int flags, const Caller& caller);
  int RemoveXattr(FileId id, const char* name);
  Result<size_t> GetXattr(FileId id, const char* name, std::span<char> into);
  Result<size_t> ListXattr(FileId id, std::span<char> into, const Caller& caller);

  // --- direct mode (direct_access.cc), for the client registry; not from a session thread ---
  struct DirectAnswer {
    std::optional<DirectLease> lease;
    int error = 0;  // when there is no lease: EBUSY, ESTALE (unknown id), EINVAL (no regular file), or why it
                    // cannot be opened
    pid_t holder =
        0;  // with EBUSY: a process that has a plain handle; 0 when the kernel opened it for itself
  };
  // Waits until `deadline` for plain handles to go away. `writable`: the descriptor is O_RDWR. `backing_fd`: a descriptor of the
  // backing file (-1: none), by which it is found when nobody has looked it up in this mount.
  DirectAnswer AcquireDirect(FileId id, bool writable, Deadline deadline, int backing_fd = -1);
  // 0 when no plain handle of the file is open, at once or until the deadline; else EBUSY. Takes nothing.
  int AwaitPlainClosed(FileId id, Deadline deadline);
  // The file's data was changed by the daemon itself (a repair): what the kernel has cached of it goes.
  void DataChanged(FileId id, Extent extent);

  const InodeTable& inodes() const { return inodes_; }

 private:
  friend class DirectLease;
  using Change = absl::FunctionRef<int(NamespaceOp& op)>;

  // Everything about a new object but its place.
  struct NewObject {
    mode_t mode = 0;
    dev_t device = 0;
    const char* value = "";  // of a symlink
    int open_flags = 0;      // for a regular file that is opened at once
  };
  struct Made {
    Entry entry;
    UniqueFd fd;  // O_RDWR, when it was opened
  };

  // lookup_operations.cc
  Result<std::shared_ptr<Inode>> Known(FileId id) const;
  // The O_PATH descriptor of a directory in which `name` may be changed. Refuses bad names and pmirror's own.
  Result<Inode::Path> ParentOf(FileId parent, const char* name) const;
  // 0 or why `name` cannot be an entry of `parent`. `missing`: what to answer for pmirror's own.
  int CheckName(FileId parent, const char* name, int missing) const;
  // The id of an object in the tree; gives it one when it has none.
  Result<FileId> IdOf(int path_fd, FileId parent, const char* name);
  Result<FileId> Adopt(int path_fd, FileId parent, const char* name);
  Result<Entry> Remember(UniqueFd path_fd, FileId parent, const char* name);
  std::shared_ptr<Inode> Recall(FileId id, int backing_fd);
  Result<struct stat> AttributesOf(FileId id, int path_fd) const;

  // tree_operations.cc
  // Changes `inode` itself: sends the operation unless the object is gone from the volume. Fills op.target.
  int ChangeInode(Inode& inode, Change change);
  Result<Made> Make(FileId parent, const char* name, const NewObject& object, const Caller& caller);
  int MakeLocally(int directory, FileId parent, const char* name, const NewObject& object,
                  const Caller& caller, NamespaceOp& op, Made& made);
  int SendInheritedAcls(Inode& inode);
  int LoseEntry(FileId parent, const char* name, int unlink_flags);
  int LoseEntryLocally(int directory, FileId parent, const char* name, int unlink_flags, NamespaceOp& op);
  int RenameLocally(FileId parent, const char* name, FileId new_parent, const char* new_name, unsigned flags,
                    NamespaceOp& op);
  int EntryChangeFailed(int error, FileId parent, const char* name);

  // file_operations.cc
  Result<std::unique_ptr<FileHandle>> OpenInode(std::shared_ptr<Inode> inode, int flags, const Caller& caller,
                                                UniqueFd fresh_fd);
  bool OpenedByAnnounced(const Caller& caller) const;
  void EndOpen(Inode& inode);
  void Retire(Inode& inode);

  // data_operations.cc
  int ChangeSize(Inode& inode, OpenBacking& backing, Change change);
  int Truncate(Inode& inode, OpenBacking& backing, uint64_t size, bool by_handle);
  // Before data changes, on behalf of `caller`: takes away file capabilities, and setuid and setgid bits when
  // `drop_mode_bits`, and tells the replicas. (The backing file system does neither for the daemon, or
  // without telling anybody.)
  int DropPrivileges(Inode& inode, OpenBacking& backing, bool drop_mode_bits, const Caller& caller);
  void ChangedData(FileHandle& file, Extent extent);
  int DropXattr(Inode& inode, int fd, const char* name);
  int TellWritten(FileHandle& file, Extent extent, bool durably);
  Result<size_t> AppendOrWrite(FileHandle& file, std::span<const char> from, bool append, uint64_t* offset);

  // directory_operations.cc
  int ListEntry(DirectoryHandle& directory, const DirectoryHandle::Entry& found, bool lookup, Take take,
                bool* taken);

  // xattr_operations.cc
  int DropForeignSetgid(Inode& inode, int path_fd, const Caller& caller);

  // attribute_operations.cc
  int SetMode(Inode& inode, int path_fd, mode_t mode);
  int SetOwner(Inode& inode, int path_fd, const AttributeChange& change, const Caller& caller);
  int SetTimes(Inode& inode, int path_fd, const AttributeChange& change);
  int SetSize(const std::shared_ptr<Inode>& inode, const AttributeChange& change, const Caller& caller);

  const BackingRoot& root_;
  Replicator& replicator_;
  const OpenOracle& oracle_;
  KernelCache* kernel_cache_ = nullptr;
  InodeTable inodes_;
  std::atomic<int> own_opens_{0};  // the daemon opens files of the mount itself now
};

}  // namespace pmirror::fs
