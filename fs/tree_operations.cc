// SPDX-License-Identifier: BSD-3-Clause
// Operations of FileSystem that make, link, remove and rename entries. Each does its work inside
// Replicator::Change and fills the operation with what has actually happened, read back from the backing
// object.
#include <linux/fs.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstring>

#include "fs/file_system.h"

namespace pmirror::fs {
namespace {

constexpr std::array kAclXattrs = {"system.posix_acl_access", "system.posix_acl_default"};

// Makes the backing object as the current file system user. For a regular file that is opened at once, *fd is
// its descriptor.
int MakeObject(int directory, const char* name, mode_t mode, dev_t device, const char* value, int open_flags,
               UniqueFd* fd) {
  switch (mode & S_IFMT) {
    case S_IFDIR:
      return ::mkdirat(directory, name, mode & 07777) == 0 ? 0 : errno;
    case S_IFLNK:
      return ::symlinkat(value, directory, name) == 0 ? 0 : errno;
    case S_IFREG:
      fd->Reset(::openat(directory, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC | open_flags,
                         mode & 07777));
      return fd->valid() ? 0 : errno;
    default:
      return ::mknodat(directory, name, mode, device) == 0 ? 0 : errno;
  }
}

void RemoveObject(int directory, const char* name, mode_t mode) {
  ::unlinkat(directory, name, S_ISDIR(mode) ? AT_REMOVEDIR : 0);
}

void DescribeCreation(const struct stat& info, NamespaceOp& op) {
  op.mode = info.st_mode;
  op.uid = info.st_uid;
  op.gid = info.st_gid;
  op.rdev = S_ISCHR(info.st_mode) || S_ISBLK(info.st_mode) ? info.st_rdev : 0;
}

}  // namespace

int FileSystem::ChangeInode(Inode& inode, Change change) {
  if (inode.life() == Inode::Life::kGone) {
    NamespaceOp unsent;
    return change(unsent);
  }
  bool gone = false;
  const int error = replicator_.Change([&](NamespaceOp& op) {
    if (const int failed = change(op); failed != 0) {
      return failed;
    }
    op.target = inode.id();
    gone = inode.life() == Inode::Life::kGone;
    return gone ? ECANCELED : 0;
  });
  return gone ? 0 : error;
}

int FileSystem::EntryChangeFailed(int error, FileId parent, const char* name) {
  if (kernel_cache_ != nullptr) {
    kernel_cache_->DropEntrySoon(parent, name);
  }
  return error;
}

// --- new objects ---

int FileSystem::MakeLocally(int directory, FileId parent, const char* name, const NewObject& object,
                            const Caller& caller, NamespaceOp& op, Made& made) {
  {
    const ScopedCaller as(caller);
    const int error = as.error() != 0 ? as.error()
                                      : MakeObject(directory, name, object.mode, object.device, object.value,
                                                   object.open_flags, &made.fd);
    if (error != 0) {
      return error;
    }
  }
  const auto undo = [&](int error) {
    RemoveObject(directory, name, object.mode);
    return error;
  };
  Result<UniqueFd> path = root_.OpenEntry(directory, name);
  if (!path.ok()) {
    return undo(path.error().code);
  }
  if (const Error error = root_.SetId(path.value().get(), replicator_.NewId()); !error.ok()) {
    return undo(error.code);
  }
  Result<Entry> entry = Remember(std::move(path).value(), parent, name);
  if (!entry.ok()) {
    return undo(entry.error().code);
  }
  made.entry = std::move(entry).value();
  op.kind = OpKind::kCreate;
  op.target = made.entry.inode->id();
  op.parent = parent;
  op.name = name;
  op.value = object.value;
  DescribeCreation(made.entry.attributes, op);
  return 0;
}

Result<FileSystem::Made> FileSystem::Make(FileId parent, const char* name, const NewObject& object,
                                          const Caller& caller) {
  Result<Inode::Path> directory = ParentOf(parent, name);
  if (!directory.ok()) {
    return directory.error();
  }
  Made made;
  int error = replicator_.Change([&](NamespaceOp& op) {
    return MakeLocally(directory.value().get(), parent, name, object, caller, op, made);
  });
  if (error == 0 && !S_ISLNK(object.mode)) {
    error = SendInheritedAcls(*made.entry.inode);
  }
  if (error == 0) {
    return made;
  }
  if (made.entry.inode != nullptr) {
    Forget(made.entry.inode->id(), 1);
    EntryChangeFailed(error, parent, name);
  }
  return Error{error, "make an entry"};
}

// A new object may have inherited ACLs from its directory. They are sent like any other change, so that a
// replica inherits nothing by chance.
int FileSystem::SendInheritedAcls(Inode& inode) {
  Result<Inode::Path> path = inode.OpenPath();
  if (!path.ok()) {
    return path.error().code;
  }
  const ProcPath object(path.value().get());
  for (const char* name : kAclXattrs) {
    const ssize_t length = ::getxattr(object.c_str(), name, nullptr, 0);
    if (length <= 0 || (name == kAclXattrs[1] && !S_ISDIR(inode.type()))) {
      continue;
    }
    const int error = ChangeInode(inode, [&](NamespaceOp& op) {
      std::string value(static_cast<size_t>(length), '\0');
      const ssize_t got = ::getxattr(object.c_str(), name, value.data(), value.size());
      if (got < 0) {
        return ECANCELED;  // changed meanwhile by somebody who sends that change himself
      }
      value.resize(static_cast<size_t>(got));
      op.kind = OpKind::kSetXattr;
      op.name = name;
      op.value = std::move(value);
      return 0;
    });
    if (error != 0 && error != ECANCELED) {
      return error;
    }
  }
  return 0;
}

Result<Entry> FileSystem::MakeNode(FileId parent, const char* name, mode_t mode, dev_t device,
                                   const Caller& caller) {
  Result<Made> made = Make(parent, name, {.mode = mode, .device = device}, caller);
  if (!made.ok()) {
    return made.error();
  }
  return std::move(made.value().entry);
}

Result<Entry> FileSystem::MakeSymlink(FileId parent, const char* name, const char* value,
                                      const Caller& caller) {
  Result<Made> made = Make(parent, name, {.mode = S_IFLNK | 0777, .value = value}, caller);
  if (!made.ok()) {
    return made.error();
  }
  return std::move(made.value().entry);
}

Result<Entry> FileSystem::Link(FileId id, FileId parent, const char* name) {
  Result<std::shared_ptr<Inode>> inode = Known(id);
  if (!inode.ok()) {
    return inode.error();
  }
  Result<Inode::Path> object = inode.value()->OpenPath();
  Result<Inode::Path> directory = ParentOf(parent, name);
  if (!object.ok() || !directory.ok()) {
    return object.ok() ? directory.error() : object.error();
  }
  bool linked = false;
  const int error = replicator_.Change([&](NamespaceOp& op) {
    if (::linkat(object.value().get(), "", directory.value().get(), name, AT_EMPTY_PATH) != 0) {
      return errno;
    }
    linked = true;
    inode.value()->GainEntry();
    op.kind = OpKind::kLink;
    op.target = id;
    op.parent = parent;
    op.name = name;
    return 0;
  });
  if (error != 0) {
    return Error{linked ? EntryChangeFailed(error, parent, name) : error, "link"};
  }
  return Lookup(parent, name);
}

// --- entries that go ---

int FileSystem::LoseEntryLocally(int directory, FileId parent, const char* name, int unlink_flags,
                                 NamespaceOp& op) {
  Result<UniqueFd> object = root_.OpenEntry(directory, name);
  if (!object.ok()) {
    return object.error().code;
  }
  struct stat info {};
  if (::fstatat(object.value().get(), "", &info, AT_EMPTY_PATH) != 0) {
    return errno;
  }
  Result<FileId> id = IdOf(object.value().get(), parent, name);
  if (!id.ok()) {
    return id.error().code;
  }
  if (::unlinkat(directory, name, unlink_flags) != 0) {
    return errno;
  }
  op.kind = unlink_flags == AT_REMOVEDIR ? OpKind::kRemoveDirectory : OpKind::kUnlink;
  op.target = id.value();
  op.parent = parent;
  op.name = name;
  if (S_ISDIR(info.st_mode) || info.st_nlink == 1) {
    const std::shared_ptr<Inode> inode = inodes_.Find(id.value());
    op.flags = inode != nullptr && inode->LoseLastEntry() ? kOpOrphaned : 0;
  }
  return 0;
}

int FileSystem::LoseEntry(FileId parent, const char* name, int unlink_flags) {
  Result<Inode::Path> directory = ParentOf(parent, name);
  if (!directory.ok()) {
    return directory.error().code;
  }
  bool changed = false;
  const int error = replicator_.Change([&](NamespaceOp& op) {
    const int failed = LoseEntryLocally(directory.value().get(), parent, name, unlink_flags, op);
    changed = failed == 0;
    return failed;
  });
  return error != 0 && changed ? EntryChangeFailed(error, parent, name) : error;
}

int FileSystem::Unlink(FileId parent, const char* name) { return LoseEntry(parent, name, 0); }

int FileSystem::RemoveDirectory(FileId parent, const char* name) {
  return LoseEntry(parent, name, AT_REMOVEDIR);
}

int FileSystem::RenameLocally(FileId parent, const char* name, FileId new_parent, const char* new_name,
                              unsigned flags, NamespaceOp& op) {
  Result<Inode::Path> from = ParentOf(parent, name);
  Result<Inode::Path> to = ParentOf(new_parent, new_name);
  if (!from.ok() || !to.ok()) {
    return from.ok() ? to.error().code : from.error().code;
  }
  Result<UniqueFd> source = root_.OpenEntry(from.value().get(), name);
  if (!source.ok()) {
    return source.error().code;
  }
  Result<FileId> source_id = IdOf(source.value().get(), parent, name);
  if (!source_id.ok()) {
    return source_id.error().code;
  }
  Result<UniqueFd> target = root_.OpenEntry(to.value().get(), new_name);
  if (!target.ok() && target.error().code != ENOENT) {
    return target.error().code;  // without the replaced object's id the operation could not be told
  }
  struct stat info {};
  if (target.ok() && ::fstatat(target.value().get(), "", &info, AT_EMPTY_PATH) != 0) {
    return errno;
  }
  Result<FileId> replaced =
      target.ok() ? IdOf(target.value().get(), new_parent, new_name) : Result<FileId>(FileId::kNone);
  if (!replaced.ok()) {
    return replaced.error().code;
  }
  if (::renameat2(from.value().get(), name, to.value().get(), new_name, flags) != 0) {
    return errno;
  }
  if (source_id.value() == replaced.value()) {
    return ECANCELED;  // two names of one object: rename(2) leaves both
  }
  op.kind = OpKind::kRename;
  op.target = source_id.value();
  op.parent = parent;
  op.name = name;
  op.new_parent = new_parent;
  op.new_name = new_name;
  op.replaced = replaced.value();
  if (flags == RENAME_EXCHANGE) {
    op.flags = kOpExchange;
  } else if (op.replaced != FileId::kNone && (S_ISDIR(info.st_mode) || info.st_nlink == 1)) {
    const std::shared_ptr<Inode> inode = inodes_.Find(op.replaced);
    op.flags = inode != nullptr && inode->LoseLastEntry() ? kOpOrphaned : 0;
  }
  return 0;
}

int FileSystem::Rename(FileId parent, const char* name, FileId new_parent, const char* new_name,
                       unsigned flags) {
  if (flags != 0 && flags != RENAME_NOREPLACE && flags != RENAME_EXCHANGE) {
    return EINVAL;
  }
  int local = 0;
  const int error = replicator_.Change(
      [&](NamespaceOp& op) { return local = RenameLocally(parent, name, new_parent, new_name, flags, op); });
  if (local == ECANCELED) {
    return 0;
  }
  if (error != 0 && local == 0) {
    EntryChangeFailed(error, parent, name);
    EntryChangeFailed(error, new_parent, new_name);
  }
  return error;
}

}  // namespace pmirror::fs
