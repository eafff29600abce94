// SPDX-License-Identifier: BSD-3-Clause
// What stands behind an open file or directory of the mount: one object a successful open, until its release.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "fs/inode.h"

namespace pmirror::fs {

// Immutable while open, so that reads and writes of many threads need no lock.
struct FileHandle {
  std::shared_ptr<Inode> inode;
  std::shared_ptr<OpenBacking> backing;
  int flags = 0;  // of open(2)
  InodeMode::Opened mode;
  bool announced = false;  // opened by a program with the preload library: not counted as a plain handle
  pid_t process = 0;       // that opened it, as it was counted
  UniqueFd
      private_fd;  // instead of backing->fd for reading, when the handle has flags of its own (O_NOATIME)

  int read_fd() const { return private_fd.valid() ? private_fd.get() : backing->fd.get(); }
  bool counted() const { return !announced && !mode.direct_io; }
};

// A directory stream over its own descriptor. Positions are the backing file system's own (d_off), so they
// stay valid while entries come and go.
class DirectoryHandle {
 public:
  DirectoryHandle(std::shared_ptr<Inode> directory, UniqueFd descriptor)
      : inode(std::move(directory)), fd(std::move(descriptor)), buffer_(kBufferBytes) {}

  struct Entry {
    const char* name;        // valid until the next call of Next or Seek
    unsigned char type;      // DT_*
    uint64_t next_position;  // where the stream goes on after this entry
  };

  // Held by the caller over Seek and Next; the kernel may read one stream from two threads.
  std::mutex mutex;
  // The next entry is the one at `position`: 0, or a next_position.
  int Seek(uint64_t position);
  // True and *entry; false at the end or on an error.
  bool Next(Entry* entry, int* error);
  // The entry that Next gave was not used: Next gives it again.
  void PutBack() {
    at_ = last_;
    position_ = last_position_;
  }

  const std::shared_ptr<Inode> inode;
  const UniqueFd fd;

 private:
  static constexpr size_t kBufferBytes = 32 * 1024;
  std::vector<char> buffer_;
  size_t at_ = 0;               // of the next record in the buffer
  size_t last_ = 0;             // of the record that Next gave
  size_t filled_ = 0;           // bytes of records in the buffer
  uint64_t position_ = 0;       // of the record at at_
  uint64_t last_position_ = 0;  // of the record at last_
};

}  // namespace pmirror::fs
