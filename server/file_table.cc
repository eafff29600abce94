// SPDX-License-Identifier: BSD-3-Clause
// The table of written files. See file_table.h.
#include "server/file_table.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <utility>
#include <vector>

namespace pmirror::server {

std::shared_ptr<BackingFile> FileTable::Get(FileId id) {
  const std::lock_guard lock(mutex_);
  if (const auto at = files_.find(Raw(id)); at != files_.end()) {
    return at->second;
  }
  if (!index_.Contains(id)) {
    return nullptr;
  }
  return files_.emplace(Raw(id), std::make_shared<BackingFile>(id)).first->second;
}

int FileTable::EnsureOpen(const std::shared_ptr<BackingFile>& file) {
  if (file->removed) {
    return ENOENT;
  }
  if (file->fd != nullptr) {
    return 0;
  }
  // Look first: to open a fifo or a device would do something.
  Result<UniqueFd> path = index_.Open(file->id, O_PATH | O_NOFOLLOW);
  if (!path.ok()) {
    return path.error().code;
  }
  struct stat info {};
  if (::fstat(path.value().get(), &info) != 0) {
    return errno;
  }
  if (!S_ISREG(info.st_mode)) {
    return EISDIR;
  }
  UniqueFd fd(::open(DescriptorPath(path.value().get()).c_str(), O_RDWR | O_CLOEXEC));
  if (!fd.valid()) {
    return errno;
  }
  file->size = static_cast<uint64_t>(info.st_size);
  file->fd = std::make_shared<const UniqueFd>(std::move(fd));
  const std::lock_guard lock(mutex_);
  open_.push_back(file);
  return 0;
}

void FileTable::Remove(FileId id) {
  std::shared_ptr<BackingFile> file;
  {
    const std::lock_guard lock(mutex_);
    const auto at = files_.find(Raw(id));
    if (at == files_.end()) {
      return;
    }
    file = std::move(at->second);
    files_.erase(at);
  }
  const std::lock_guard lock(file->mutex);
  file->removed = true;
  file->mapping.Unmap();
  file->fd.reset();
}

void FileTable::ForgetOrders() {
  std::vector<std::shared_ptr<BackingFile>> files;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, file] : files_) {
      files.push_back(file);
    }
  }
  for (const std::shared_ptr<BackingFile>& file : files) {
    const std::lock_guard lock(file->mutex);
    file->order = ApplyOrder();
  }
}

int FileTable::Trim() {
  for (;;) {
    std::shared_ptr<BackingFile> victim;
    {
      const std::lock_guard lock(mutex_);
      if (open_.size() <= max_open_) {
        return 0;
      }
      victim = std::move(open_.front());
      open_.pop_front();
    }
    const int error = domain_.Persist({&victim, 1}, false);
    const std::lock_guard lock(victim->mutex);
    if (victim->fd == nullptr) {
      continue;  // removed
    }
    if (error != 0 || victim->sync.pending()) {
      const std::lock_guard table_lock(mutex_);
      open_.push_back(std::move(victim));
      return error;  // in use; another time
    }
    victim->mapping.Unmap();
    victim->fd.reset();
    victim->order.Compact();
  }
}

}  // namespace pmirror::server
