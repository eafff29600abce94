// SPDX-License-Identifier: BSD-3-Clause
// The little of a file system that durable logs of this project need, so that a test can put a storage in its
// place that forgets what was not flushed (tests/unit/recovery/forgetful_storage.h; trap 18).
//
// What a log may rely on after a power cut is only what this says: bytes (and the size that makes them
// readable) written to a file before a Sync() of it that returned OK; names (created, renamed, removed) changed
// before a SyncDirectory() that returned OK. Of everything else any part may be there or not, in any order.
// After a Sync() that failed nothing is known about what it should have covered, and a later Sync() that returns
// OK says nothing about it either: the kernel may have given up the pages. Write them again, to another file.
//
// A storage is thread-safe; a file is used by one thread at a time. Errors carry the path and the errno's words; a
// full disk or quota is kResourceExhausted, a missing file kNotFound.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace pmirror::recovery {

// An open file. Closing it (the destructor) makes nothing durable.
class LogFile {
 public:
  virtual ~LogFile() = default;
  virtual absl::StatusOr<uint64_t> Size() = 0;  // in bytes
  // The bytes from `offset`, in bytes; fewer than `length` only at the end of the file. kDataLoss: the medium
  // cannot read them.
  virtual absl::StatusOr<std::string> Read(uint64_t offset, size_t length) = 0;
  // All of `bytes`, or an error, after which any part of them may be there. Writing behind the end makes the file
  // longer; what was between reads as zeros.
  virtual absl::Status Write(uint64_t offset, std::span<const std::byte> bytes) = 0;
  virtual absl::Status Truncate(uint64_t size) = 0;
  virtual absl::Status Sync() = 0;
};

class LogStorage {
 public:
  // The machine's file systems. Lives for ever.
  static LogStorage& Real();

  virtual ~LogStorage() = default;
  // An existing file, for reading and writing.
  virtual absl::StatusOr<std::unique_ptr<LogFile>> Open(const std::string& path) = 0;
  // An empty file in place of what has the name, for its owner only.
  virtual absl::StatusOr<std::unique_ptr<LogFile>> Create(const std::string& path) = 0;
  virtual absl::Status Rename(const std::string& from, const std::string& to) = 0;
  virtual absl::Status Remove(const std::string& path) = 0;  // OK when there is none
  // The names in the directory that holds `path`.
  virtual absl::Status SyncDirectory(const std::string& path) = 0;
};

}  // namespace pmirror::recovery
