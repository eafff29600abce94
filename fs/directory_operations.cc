// SPDX-License-Identifier: BSD-3-Clause
// Operations of FileSystem that list directories.
#include <dirent.h>
#include <unistd.h>

#include <cstring>

#include "fs/file_system.h"

namespace pmirror::fs {
namespace {

bool IsDot(const char* name) { return std::strcmp(name, ".") == 0; }
bool IsDotDot(const char* name) { return std::strcmp(name, "..") == 0; }

}  // namespace

Result<std::unique_ptr<DirectoryHandle>> FileSystem::OpenDirectory(FileId id) {
  Result<std::shared_ptr<Inode>> inode = Known(id);
  if (!inode.ok()) {
    return inode.error();
  }
  Result<Inode::Path> path = inode.value()->OpenPath();
  if (!path.ok()) {
    return path.error();
  }
  Result<UniqueFd> fd = root_.Reopen(path.value().get(), O_RDONLY | O_DIRECTORY);
  if (!fd.ok()) {
    return fd.error();
  }
  return std::make_unique<DirectoryHandle>(std::move(inode).value(), std::move(fd).value());
}

int FileSystem::ListEntry(DirectoryHandle& directory, const DirectoryHandle::Entry& found, bool lookup,
                          Take take, bool* taken) {
  *taken = true;  // an entry that has gone meanwhile is passed over
  const FileId self = directory.inode->id();
  if (self == FileId::kRoot && std::strcmp(found.name, kPrivateDirectory) == 0) {
    return 0;
  }
  DirectoryEntry entry{.name = found.name,
                       .inode = 0,
                       .type = static_cast<mode_t>(DTTOIF(found.type)),
                       .position = found.next_position,
                       .entry = nullptr};
  if (IsDot(found.name) || (self == FileId::kRoot && IsDotDot(found.name))) {
    entry.inode = Raw(self);
    *taken = take(entry);
    return 0;
  }
  if (!lookup || IsDotDot(found.name)) {
    Result<FileId> id = root_.GetEntryId(directory.fd.get(), found.name);
    if (id.ok() && id.value() == FileId::kNone) {
      Result<UniqueFd> object = root_.OpenEntry(directory.fd.get(), found.name);
      id = object.ok() ? IdOf(object.value().get(), self, found.name) : Result<FileId>(object.error());
    }
    if (!id.ok()) {
      return id.error().code == ENOENT ? 0 : id.error().code;
    }
    entry.inode = Raw(id.value());
    *taken = take(entry);
    return 0;
  }
  Result<Entry> looked_up = Lookup(self, found.name);
  if (!looked_up.ok()) {
    return looked_up.error().code == ENOENT ? 0 : looked_up.error().code;
  }
  entry.entry = &looked_up.value();
  entry.inode = looked_up.value().attributes.st_ino;
  *taken = take(entry);
  if (!*taken) {
    Forget(looked_up.value().inode->id(), 1);
  }
  return 0;
}

int FileSystem::List(DirectoryHandle& directory, uint64_t position, bool lookup, Take take) {
  std::lock_guard lock(directory.mutex);
  if (const int error = directory.Seek(position); error != 0) {
    return error;
  }
  DirectoryHandle::Entry found{};
  int error = 0;
  bool any = false;
  while (directory.Next(&found, &error)) {
    bool taken = false;
    error = ListEntry(directory, found, lookup, take, &taken);
    if (error != 0 || !taken) {
      directory.PutBack();
      return any ? 0 : error;  // an error comes back when its entry is the first of a listing
    }
    any = true;
  }
  return error;
}

int FileSystem::SyncDirectory(DirectoryHandle& directory, bool data_only) {
  return replicator_.SyncTree([&] {
    const int fd = directory.fd.get();
    return (data_only ? ::fdatasync(fd) : ::fsync(fd)) == 0 ? 0 : errno;
  });
}

}  // namespace pmirror::fs
