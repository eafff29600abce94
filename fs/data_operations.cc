// SPDX-License-Identifier: BSD-3-Clause
// Operations of FileSystem on the data of open files.
#include <sys/xattr.h>
#include <unistd.h>

#include "fs/file_system.h"

namespace pmirror::fs {
namespace {

constexpr char kCapabilityXattr[] = "security.capability";

// The bits that a write by an ordinary user takes away. Setgid without group execution stays for members of
// the group.
mode_t PrivilegeBits(const struct stat& info, const Caller& caller) {
  const bool setgid =
      (info.st_mode & S_ISGID) != 0 && ((info.st_mode & S_IXGRP) != 0 || !InGroup(caller, info.st_gid));
  return (info.st_mode & S_ISUID) | (setgid ? S_ISGID : 0);
}

// Writes all of it, or as much as fits. An error only when nothing was written.
Result<size_t> WriteAt(int fd, std::span<const char> from, uint64_t offset) {
  size_t done = 0;
  while (done < from.size()) {
    const ssize_t n = ::pwrite(fd, from.data() + done, from.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) {
      continue;
    }
    if (n < 0 && done == 0) {
      return Error::FromErrno("write to a backing file");
    }
    if (n <= 0) {
      break;
    }
    done += static_cast<size_t>(n);
  }
  return done;
}

int SyncLocally(int fd, bool data_only) {
  return (data_only ? ::fdatasync(fd) : ::fsync(fd)) == 0 ? 0 : errno;
}

}  // namespace

int FileSystem::ChangeSize(Inode& inode, OpenBacking& backing, Change change) {
  if (backing.file == nullptr) {
    NamespaceOp unsent;
    return change(unsent);
  }
  return replicator_.ChangeSize(*backing.file, [&](NamespaceOp& op) {
    op.target = inode.id();
    return change(op);
  });
}

int FileSystem::Truncate(Inode& inode, OpenBacking& backing, uint64_t size, bool by_handle) {
  return ChangeSize(inode, backing, [&](NamespaceOp& op) {
    const auto length = static_cast<off_t>(size);
    const int fd = backing.fd.get();
    if ((by_handle ? ::ftruncate(fd, length) : ::truncate(ProcPath(fd).c_str(), length)) != 0) {
      return errno;
    }
    op.kind = OpKind::kTruncate;
    op.extent = {.offset = size, .length = 0};
    return 0;
  });
}

int FileSystem::DropXattr(Inode& inode, int fd, const char* name) {
  return ChangeInode(inode, [&](NamespaceOp& op) {
    if (::fremovexattr(fd, name) != 0) {
      return errno;
    }
    op.kind = OpKind::kRemoveXattr;
    op.name = name;
    return 0;
  });
}

int FileSystem::DropPrivileges(Inode& inode, OpenBacking& backing, bool drop_mode_bits,
                               const Caller& caller) {
  // Cleared before the look, so that a change of mode or attributes meanwhile sets it again.
  if (!inode.may_have_privileges().exchange(false)) {
    return 0;
  }
  const int fd = backing.fd.get();
  if (::fgetxattr(fd, kCapabilityXattr, nullptr, 0) >= 0) {
    const int error = DropXattr(inode, fd, kCapabilityXattr);
    if (error != 0 && error != ENODATA) {
      inode.may_have_privileges() = true;
      return error;
    }
  }
  struct stat info {};
  if (::fstat(fd, &info) != 0) {
    inode.may_have_privileges() = true;
    return errno;
  }
  const mode_t bits = drop_mode_bits ? PrivilegeBits(info, caller) : 0;
  if (bits == 0) {
    if ((info.st_mode & (S_ISUID | S_ISGID)) != 0) {
      inode.may_have_privileges() = true;  // for the next caller
    }
    return 0;
  }
  Result<Inode::Path> path = inode.OpenPath();
  const int error = path.ok() ? SetMode(inode, path.value().get(), info.st_mode & ~bits) : path.error().code;
  if (kernel_cache_ != nullptr) {
    kernel_cache_->DropAttributes(inode.id());
  }
  return error;
}

// A handle beside the kernel's page cache has changed the file. Current kernels drop the pages after such a
// write themselves, older ones before it at most.
void FileSystem::ChangedData(FileHandle& file, Extent extent) {
  if (file.mode.direct_io && file.inode->ChangedBesideCache() && kernel_cache_ != nullptr) {
    kernel_cache_->DropData(file.inode->id(), extent);
  }
}

int FileSystem::TellWritten(FileHandle& file, Extent extent, bool durably) {
  const OpenBacking& backing = *file.backing;
  const auto sync = [&] { return SyncLocally(backing.fd.get(), /*data_only=*/true); };
  if (backing.file == nullptr) {
    return durably ? sync() : 0;
  }
  return durably ? replicator_.WrittenDurably(*backing.file, extent, sync)
                 : replicator_.Written(*backing.file, extent);
}

Result<size_t> FileSystem::AppendOrWrite(FileHandle& file, std::span<const char> from, bool append,
                                         uint64_t* offset) {
  const int fd = file.backing->fd.get();
  if (!append) {
    return WriteAt(fd, from, *offset);
  }
  // The kernel's idea of the size is as good as ever only while nobody else appends; ours is exact under the
  // lock.
  std::lock_guard lock(file.inode->append_mutex());
  struct stat info {};
  if (::fstat(fd, &info) != 0) {
    return Error::FromErrno("find the end of a file");
  }
  *offset = static_cast<uint64_t>(info.st_size);
  return WriteAt(fd, from, *offset);
}

Result<size_t> FileSystem::Read(FileHandle& file, std::span<char> into, uint64_t offset) {
  size_t done = 0;
  while (done < into.size()) {
    const ssize_t n =
        ::pread(file.read_fd(), into.data() + done, into.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) {
      continue;
    }
    if (n < 0 && done == 0) {
      return Error::FromErrno("read a backing file");
    }
    if (n <= 0) {
      break;
    }
    done += static_cast<size_t>(n);
  }
  return done;
}

namespace {

// A write passes the gate before its local part (Replicator::BeginWrite), and is out again before the kernel is asked to drop pages: it may
// want to write some of them first.
class WritePass {
 public:
  WritePass(Replicator& replicator, const FileHandle& handle)
      : replicator_(replicator), file_(handle.backing->file.get()) {
    replicator_.BeginWrite(file_);
  }
  ~WritePass() { replicator_.EndWrite(file_); }
  WritePass(const WritePass&) = delete;
  WritePass& operator=(const WritePass&) = delete;

 private:
  Replicator& replicator_;
  ReplicatedFile* const file_;
};

}  // namespace

Result<size_t> FileSystem::Write(FileHandle& file, std::span<const char> from, uint64_t offset,
                                 const WriteOptions& options, const Caller& caller) {
  if (const int error = DropPrivileges(*file.inode, *file.backing, options.drop_privileges, caller);
      error != 0) {
    return Error{error, "drop privileges before a write"};
  }
  const bool by_program = !options.from_page_cache;
  Result<size_t> written = size_t{0};
  Extent extent;
  int error = 0;
  {
    const WritePass pass(replicator_, file);
    written = AppendOrWrite(file, from, by_program && (options.flags & O_APPEND) != 0, &offset);
    if (!written.ok() || written.value() == 0) {
      return written;
    }
    extent = {.offset = offset, .length = written.value()};
    const bool durably = by_program && (options.flags & (O_SYNC | O_DSYNC | O_DIRECT)) != 0;
    error = TellWritten(file, extent, durably);
  }
  ChangedData(file, extent);
  if (error != 0) {
    return Error{error, "replicate a write"};
  }
  return written;
}

int FileSystem::Sync(FileHandle& file, bool data_only) {
  const OpenBacking& backing = *file.backing;
  const auto sync = [&] { return SyncLocally(backing.fd.get(), data_only); };
  return backing.file == nullptr ? sync() : replicator_.Sync(*backing.file, data_only, sync);
}

int FileSystem::SyncCachedStores() {
  if (kernel_cache_ == nullptr) {
    return 0;
  }
  ++own_opens_;
  int error = 0;
  for (const FileId id : inodes_.Select([](const Inode& inode) { return inode.MayHaveCachedStores(); })) {
    error = kernel_cache_->WriteBack(id);
    if (error != 0) {
      break;
    }
  }
  --own_opens_;
  return error;
}

int FileSystem::SyncVolume() {
  return replicator_.SyncVolume([this] { return ::syncfs(root_.fd()) == 0 ? 0 : errno; });
}

int FileSystem::Allocate(FileHandle& file, int mode, Extent extent, const Caller& caller) {
  if (const int error = DropPrivileges(*file.inode, *file.backing, caller.uid != 0, caller); error != 0) {
    return error;
  }
  const int error = ChangeSize(*file.inode, *file.backing, [&](NamespaceOp& op) {
    if (::fallocate(file.backing->fd.get(), mode, static_cast<off_t>(extent.offset),
                    static_cast<off_t>(extent.length)) != 0) {
      return errno;
    }
    op.kind = OpKind::kAllocate;
    op.extent = extent;
    op.flags = static_cast<uint32_t>(mode);
    return 0;
  });
  ChangedData(file, extent);
  return error;
}

Result<uint64_t> FileSystem::Seek(FileHandle& file, uint64_t offset, int whence) {
  const off_t found = ::lseek(file.backing->fd.get(), static_cast<off_t>(offset), whence);
  if (found < 0) {
    return Error::FromErrno("seek in a backing file");
  }
  return static_cast<uint64_t>(found);
}

Result<size_t> FileSystem::CopyRange(FileHandle& from, uint64_t from_offset, FileHandle& to,
                                     uint64_t to_offset, size_t length, const Caller& caller) {
  if (const int error = DropPrivileges(*to.inode, *to.backing, caller.uid != 0, caller); error != 0) {
    return Error{error, "drop privileges before a copy"};
  }
  auto in = static_cast<off64_t>(from_offset);
  auto out = static_cast<off64_t>(to_offset);
  Extent extent{.offset = to_offset, .length = 0};
  int error = 0;
  {
    const WritePass pass(replicator_, to);
    const ssize_t copied =
        ::copy_file_range(from.backing->fd.get(), &in, to.backing->fd.get(), &out, length, 0);
    if (copied < 0) {
      return Error::FromErrno("copy a range");
    }
    extent.length = static_cast<uint64_t>(copied);
    error = copied == 0 ? 0 : TellWritten(to, extent, (to.flags & (O_SYNC | O_DSYNC)) != 0);
  }
  ChangedData(to, extent);
  if (error != 0) {
    return Error{error, "replicate a copy"};
  }
  return static_cast<size_t>(extent.length);
}

}  // namespace pmirror::fs
