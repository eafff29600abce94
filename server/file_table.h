// SPDX-License-Identifier: BSD-3-Clause
// The files of a replica that were written since the mount began, with a bounded number of open descriptors.
//
// Thread-safe. Lock order: BackingFile::mutex before the table's own.
#pragma once

#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "replication/types.h"
#include "server/backing_file.h"
#include "server/backing_index.h"
#include "server/persistence.h"

namespace pmirror::server {

class FileTable {
 public:
  static constexpr size_t kMaxOpen = 512;

  // Both must outlive the table.
  FileTable(const BackingIndex& index, PersistenceDomain& domain, size_t max_open = kMaxOpen)
      : index_(index), domain_(domain), max_open_(max_open) {}

  // The file's entry, made when there is none; null when the index has no such object.
  std::shared_ptr<BackingFile> Get(FileId id);

  // Opens the file when it is not open. Returns 0 or an errno: ENOENT (gone), EISDIR (no regular file).
  // Requires: file->mutex is held.
  int EnsureOpen(const std::shared_ptr<BackingFile>& file);

  // The object is gone. Requires: its mutex is not held by the caller.
  void Remove(FileId id);

  // A new mount: order numbers begin anew.
  void ForgetOrders();

  // Closes descriptors above the bound, after making durable what was written through them. Returns 0 or an
  // errno of that. Requires: no BackingFile::mutex is held.
  int Trim();

 private:
  const BackingIndex& index_;
  PersistenceDomain& domain_;
  const size_t max_open_;
  std::mutex mutex_;
  std::unordered_map<uint64_t, std::shared_ptr<BackingFile>> files_;  // guarded by mutex_
  std::deque<std::shared_ptr<BackingFile>> open_;                     // guarded by mutex_; oldest first
};

}  // namespace pmirror::server
