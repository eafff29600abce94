// SPDX-License-Identifier: BSD-3-Clause
// Reading of a directory stream. See handles.h.
#include "fs/handles.h"

#include <dirent.h>
#include <unistd.h>

#include <cerrno>

namespace pmirror::fs {

int DirectoryHandle::Seek(uint64_t position) {
  // Position 0 is also a rewind: what was added since must show, so the buffer is not reused.
  if (position != 0 && position == position_) {
    return 0;
  }
  if (::lseek(fd.get(), static_cast<off_t>(position), SEEK_SET) < 0) {
    return errno;
  }
  at_ = last_ = filled_ = 0;
  position_ = last_position_ = position;
  return 0;
}

bool DirectoryHandle::Next(Entry* entry, int* error) {
  *error = 0;
  if (at_ == filled_) {
    const ssize_t n = ::getdents64(fd.get(), buffer_.data(), buffer_.size());
    if (n <= 0) {
      // ENOENT: the directory has been removed; an empty stream is what every file system shows then.
      *error = n < 0 && errno != ENOENT ? errno : 0;
      return false;
    }
    at_ = 0;
    filled_ = static_cast<size_t>(n);
  }
  const auto* record = reinterpret_cast<const dirent64*>(buffer_.data() + at_);
  last_ = at_;
  last_position_ = position_;
  at_ += record->d_reclen;
  position_ = static_cast<uint64_t>(record->d_off);
  *entry = {.name = record->d_name, .type = record->d_type, .next_position = position_};
  return true;
}

}  // namespace pmirror::fs
