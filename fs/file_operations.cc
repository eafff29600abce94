// SPDX-License-Identifier: BSD-3-Clause
// Operations of FileSystem that open, create and close files.
#include <unistd.h>

#include "fs/file_system.h"
#include "fs/proc_status.h"

namespace pmirror::fs {
namespace {

bool WantsToWrite(int flags) { return (flags & O_ACCMODE) != O_RDONLY || (flags & O_TRUNC) != 0; }

}  // namespace

bool FileSystem::OpenedByAnnounced(const Caller& caller) const {
  if (own_opens_ != 0 && ProcessOf(caller.pid) == ::getpid()) {
    return true;  // it only syncs
  }
  if (caller.pid == 0 || !oracle_.AnyAnnounced()) {
    return false;
  }
  if (oracle_.IsAnnounced(caller.pid)) {
    return true;
  }
  const pid_t process = ProcessOf(caller.pid);  // the kernel names the thread
  return process != caller.pid && process != 0 && oracle_.IsAnnounced(process);
}

void FileSystem::EndOpen(Inode& inode) {
  if (inode.EndOpen()) {
    Retire(inode);
  }
}

// The last reference to an orphan takes it away from the replicas too.
void FileSystem::Retire(Inode& inode) {
  replicator_.Change([&](NamespaceOp& op) {
    if (!inode.RetireOrphan()) {
      return ECANCELED;  // opened again, or linked
    }
    op.kind = OpKind::kForgetOrphan;
    op.target = inode.id();
    return 0;
  });
}

Result<std::unique_ptr<FileHandle>> FileSystem::OpenInode(std::shared_ptr<Inode> inode, int flags,
                                                          const Caller& caller, UniqueFd fresh_fd) {
  if (inode->type() != S_IFREG) {
    return Error{S_ISDIR(inode->type()) ? EISDIR : EINVAL, "open a file"};
  }
  auto file = std::make_unique<FileHandle>();
  file->inode = std::move(inode);
  file->flags = flags;
  file->process = caller.pid;
  file->inode->BeginOpen();
  Result<std::shared_ptr<OpenBacking>> backing =
      file->inode->Backing(replicator_, WantsToWrite(flags), std::move(fresh_fd));
  if (!backing.ok()) {
    EndOpen(*file->inode);
    return backing.error();
  }
  file->backing = std::move(backing).value();
  if ((flags & O_NOATIME) != 0 && (flags & O_ACCMODE) != O_WRONLY) {
    Result<Inode::Path> path = file->inode->OpenPath();
    Result<UniqueFd> fd =
        path.ok() ? root_.Reopen(path.value().get(), O_RDONLY | O_NOATIME) : Result<UniqueFd>(path.error());
    if (fd.ok()) {  // else reading through the shared descriptor only costs an access time
      file->private_fd = std::move(fd).value();
    }
  }
  file->announced = OpenedByAnnounced(caller);
  file->mode =
      file->announced ? InodeMode{}.OpenAnnounced() : file->inode->OpenPlain(caller.pid, WantsToWrite(flags));
  return file;
}

Result<std::unique_ptr<FileHandle>> FileSystem::Open(FileId id, int flags, const Caller& caller,
                                                     bool drop_privileges) {
  Result<std::shared_ptr<Inode>> inode = Known(id);
  if (!inode.ok()) {
    return inode.error();
  }
  Result<std::unique_ptr<FileHandle>> opened = OpenInode(std::move(inode).value(), flags, caller, {});
  if (!opened.ok() || (flags & O_TRUNC) == 0) {
    return opened;
  }
  FileHandle& file = *opened.value();
  int error = DropPrivileges(*file.inode, *file.backing, drop_privileges, caller);
  if (error == 0) {
    error = Truncate(*file.inode, *file.backing, 0, /*by_handle=*/true);
  }
  if (error != 0) {
    Release(std::move(opened).value());
    return Error{error, "truncate at open"};
  }
  return opened;
}

Result<CreatedFile> FileSystem::Create(FileId parent, const char* name, mode_t mode, int flags,
                                       const Caller& caller) {
  Result<Made> made = Make(parent, name, {.mode = (mode & 07777) | S_IFREG}, caller);
  if (made.ok()) {
    Entry entry = std::move(made.value().entry);
    Result<std::unique_ptr<FileHandle>> file =
        OpenInode(entry.inode, flags & ~O_TRUNC, caller, std::move(made.value().fd));
    if (!file.ok()) {
      Forget(entry.inode->id(), 1);
      return file.error();
    }
    return CreatedFile{std::move(entry), std::move(file).value()};
  }
  if (made.error().code != EEXIST || (flags & O_EXCL) != 0) {
    return made.error();
  }
  // The kernel did not know the name yet.
  Result<Entry> entry = Lookup(parent, name);
  if (!entry.ok()) {
    return entry.error();
  }
  Result<std::unique_ptr<FileHandle>> file =
      Open(entry.value().inode->id(), flags, caller, /*drop_privileges=*/caller.uid != 0);
  if (!file.ok()) {
    Forget(entry.value().inode->id(), 1);
    return file.error();
  }
  return CreatedFile{std::move(entry).value(), std::move(file).value()};
}

Result<CreatedFile> FileSystem::CreateUnnamed(FileId parent, mode_t mode, int flags, const Caller& caller) {
  Result<std::shared_ptr<Inode>> directory = Known(parent);
  if (!directory.ok()) {
    return directory.error();
  }
  Result<Inode::Path> path = directory.value()->OpenPath();
  if (!path.ok()) {
    return path.error();
  }
  UniqueFd fd;
  Entry entry;
  const int error = replicator_.Change([&](NamespaceOp& op) {
    {
      const ScopedCaller as(caller);
      // O_EXCL, where the program gave it, keeps the file from ever being linked.
      fd.Reset(as.error() != 0 ? -1
                               : ::open(ProcPath(path.value().get()).c_str(),
                                        O_TMPFILE | O_RDWR | O_CLOEXEC | (flags & O_EXCL), mode & 07777));
      if (!fd.valid()) {
        return as.error() != 0 ? as.error() : errno;
      }
    }
    const FileId id = replicator_.NewId();
    if (const Error failed = root_.SetId(fd.get(), id); !failed.ok()) {
      return failed.code;
    }
    Result<UniqueFd> object = root_.Reopen(fd.get(), O_PATH);
    if (!object.ok()) {
      return object.error().code;
    }
    Result<struct stat> info = AttributesOf(id, object.value().get());
    if (!info.ok()) {
      return info.error().code;
    }
    entry.attributes = info.value();
    struct stat backing {};
    ::fstat(fd.get(), &backing);
    Result<std::shared_ptr<Inode>> inode = inodes_.Obtain(id, backing, object.value(), Inode::Life::kOrphan);
    if (!inode.ok()) {
      return inode.error().code;
    }
    entry.inode = std::move(inode).value();
    op.kind = OpKind::kCreateOrphan;
    op.target = id;
    op.mode = backing.st_mode;
    op.uid = backing.st_uid;
    op.gid = backing.st_gid;
    return 0;
  });
  Result<std::unique_ptr<FileHandle>> file =
      error == 0 ? OpenInode(entry.inode, flags, caller, std::move(fd))
                 : Result<std::unique_ptr<FileHandle>>(Error{error, "make an unnamed file"});
  if (!file.ok()) {
    if (entry.inode != nullptr) {
      entry.inode->BeginOpen();
      EndOpen(*entry.inode);  // the replicas have it already
      Forget(entry.inode->id(), 1);
    }
    return file.error();
  }
  return CreatedFile{std::move(entry), std::move(file).value()};
}

void FileSystem::Release(std::unique_ptr<FileHandle> file) {
  file->backing.reset();
  const bool retire = file->inode->EndOpen();
  if (file->counted()) {  // before anything that may block: somebody may wait for it
    file->inode->ClosePlain(file->process);
  }
  if (retire) {
    Retire(*file->inode);
  }
}

}  // namespace pmirror::fs
