// SPDX-License-Identifier: BSD-3-Clause
// Finds the objects of a replica's backing directory by id, whatever their names are: FileId -> file handle
// (name_to_handle_at(2)). Built by a walk at start, kept up to date by the namespace applier.
//
// Thread-safe. Descriptors that are handed out belong to the caller. Needs CAP_DAC_READ_SEARCH and
// CAP_SYS_ADMIN (trusted xattrs).
// ---
// For maintainers: a handle survives renames and needs no open descriptor; it costs about 100 bytes an
// object. Other file systems mounted inside the tree are not entered (their objects have no handle here) and
// are reported like objects without an id.
#pragma once

#include <cstdint>
#include <memory>
#include <shared_mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/statusor.h"
#include "replication/result.h"
#include "replication/types.h"
#include "replication/unique_fd.h"

namespace pmirror::server {

// Attribute of own_directory(): the high-water mark of operations (replica_volume.h). Two u64, little-endian: mount number, operation.
constexpr char kOperationXattr[] = "trusted.pmirror.operation";

class BackingIndex {
 public:
  // Opens `directory`, gives its root the id 1 and makes `.pmirror/orphans` when they are missing, and walks
  // it. Fails, naming the path and the remedy, when the directory cannot serve: no trusted xattrs, no file
  // handles, two objects with one id.
  static absl::StatusOr<std::unique_ptr<BackingIndex>> Build(const std::string& directory);

  // The object, opened with `flags` (O_CLOEXEC is added; O_PATH | O_NOFOLLOW to look at an object of any
  // type). ENOENT: not here. Requires: no O_CREAT.
  Result<UniqueFd> Open(FileId id, int flags) const;
  bool Contains(FileId id) const;

  // The id of the entry itself (a symlink is not followed); kNone when it has none. ENOENT: no such entry.
  Result<FileId> IdOfEntry(int directory, const char* name) const;

  // The entry carries the id `id` now. Returns 0 or an errno.
  int Insert(FileId id, int directory, const char* name);
  // The object is gone, or will never be asked for again.
  void Erase(FileId id);

  int root() const { return root_.get(); }
  int own_directory() const { return own_.get(); }  // .pmirror
  int orphans() const { return orphans_.get(); }    // .pmirror/orphans: entries are ids in 16 hex digits
  size_t size() const;                              // objects, the root not counted
  // Paths of objects that carry no id: nobody can reach them through pmirror. At most kMaxReported, and how
  // many there are.
  const std::vector<std::string>& without_id() const { return without_id_; }
  size_t without_id_count() const { return without_id_count_; }
  static constexpr size_t kMaxReported = 100;

 private:
  class Walk;
  BackingIndex() = default;
  absl::Status Prepare(const std::string& directory);
  Result<std::string> HandleOf(int directory, const char* name) const;
  Result<UniqueFd> OpenHandle(const std::string& packed, int flags) const;

  UniqueFd root_;
  UniqueFd own_;
  UniqueFd orphans_;
  std::vector<std::string> without_id_;
  size_t without_id_count_ = 0;
  mutable std::shared_mutex mutex_;
  std::unordered_map<uint64_t, std::string>
      handles_;  // guarded by mutex_; type (4 bytes), then the handle's bytes
};

// Name of an orphan's entry.
std::string OrphanName(FileId id);

// "/proc/self/fd/N": leads to the object of a descriptor, also an O_PATH one, for calls that take only paths.
std::string DescriptorPath(int fd);

}  // namespace pmirror::server
