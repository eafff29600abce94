// SPDX-License-Identifier: BSD-3-Clause
// What the replica remembers of one regular file of its backing directory while a primary writes it.
//
// One object a file and mount: it holds the order numbers, so it outlives its descriptor, which is closed
// when too many are open. Threads: `mutex` guards what is named so; a data frame is applied under it, so that
// files do not wait for each other. Lock order: the volume's namespace lock, then one BackingFile::mutex,
// then nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

#include "replication/apply_order.h"
#include "replication/types.h"
#include "replication/unique_fd.h"
#include "server/group_sync.h"

namespace pmirror::server {

// Ranges of a file that are known to have storage. Bounded: when it is full it forgets, which costs a system
// call later.
class AllocatedRanges {
 public:
  static constexpr size_t kMaxRanges = 1024;
  bool Contains(uint64_t begin, uint64_t end) const;
  void Add(uint64_t begin, uint64_t end);
  void Clear() { ranges_.clear(); }

 private:
  std::map<uint64_t, uint64_t> ranges_;  // begin -> end, disjoint and not touching
};

// A mapping of a whole file, with room to grow.
class FileMapping {
 public:
  FileMapping() = default;
  ~FileMapping() { Unmap(); }
  FileMapping(const FileMapping&) = delete;
  FileMapping& operator=(const FileMapping&) = delete;

  // Maps at least [0, end) when it is not mapped yet. Returns 0 or an errno.
  int Cover(int fd, uint64_t end);
  void Unmap();
  std::byte* base() const { return base_; }
  bool is_pmem() const { return is_pmem_; }  // a CPU cache flush makes a store durable

 private:
  std::byte* base_ = nullptr;
  uint64_t length_ = 0;
  bool is_pmem_ = false;
};

struct BackingFile {
  explicit BackingFile(FileId file_id) : id(file_id) {}

  const FileId id;
  GroupSync sync;  // of the file's bytes and size

  std::mutex mutex;
  // Guarded by mutex:
  std::shared_ptr<const UniqueFd> fd;  // read-write; null while closed. Copy it to use it without the lock
  uint64_t size = 0;                   // bytes; valid while fd is open
  ApplyOrder order;
  AllocatedRanges allocated;
  FileMapping mapping;   // of fd, pmem domain only
  bool removed = false;  // the object is gone
};

}  // namespace pmirror::server
