// SPDX-License-Identifier: BSD-3-Clause
// What one program has mapped of the volumes' files, as it told the daemon. A value: no locks, no system calls but those of a lease's end.
//
// Invariants: mappings do not overlap; addresses, lengths and offsets are page aligned; each holds its file's lease.
#pragma once

#include <sys/types.h>

#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "fs/file_system.h"
#include "replication/tracker.h"
#include "replication/types.h"
#include "replication/unique_fd.h"

namespace pmirror::fs {

// A file among those of all volumes.
struct FileKey {
  size_t volume = 0;  // index in the hello reply
  FileId id = FileId::kNone;
  friend auto operator<=>(const FileKey&,
                          const FileKey&) =
      default;  // NOLINT(modernize-use-nullptr): of the compiler's own code
};

// A program's hold on a backing file, shared by what it has mapped of it. Its end may wait for a replica (DirectLease): not under a lock.
struct LeasedFile {
  LeasedFile(DirectLease lease_taken, bool may_write)
      : lease(std::move(lease_taken)), writable(may_write), descriptor(lease.TakeDescriptor()) {}

  DirectLease lease;
  const bool writable;
  const UniqueFd descriptor;  // what the program was given
};

struct ClientMapping {
  uintptr_t address = 0;
  uint64_t length = 0;    // bytes
  uint64_t offset = 0;    // in the file, of `address`
  bool writable = false;  // stores are possible, now or after mprotect
  Tracking tracking = Tracking::kNone;
  FileKey key;
  std::shared_ptr<LeasedFile> file;

  uintptr_t end() const { return address + length; }
  Extent extent() const { return {offset, length}; }
  // The part of it in [start, past). Requires: they overlap.
  ClientMapping Clip(uintptr_t start, uintptr_t past) const;
};

class ClientMappings {
 public:
  // Requires: nothing is mapped there.
  void Add(ClientMapping mapping);
  // Copies of what is mapped in [start, past), cut to it, ascending.
  std::vector<ClientMapping> Within(uintptr_t start, uintptr_t past) const;
  // Removes all that is mapped in [start, past), cutting what sticks out; hands back what it removed.
  std::vector<ClientMapping> Remove(uintptr_t start, uintptr_t past);
  std::vector<ClientMapping> RemoveAll() { return Remove(0, UINTPTR_MAX); }

  // Addresses of the mappings of a file, and of those of it that can be stored to.
  const std::set<uintptr_t>& Of(const FileKey& key) const;
  const ClientMapping& at(uintptr_t address) const { return by_address_.at(address); }
  bool MapsWritable(const FileKey& key) const;
  bool MapsAnyOf(size_t volume) const;
  // Files of which something is mapped.
  std::vector<FileKey> Files() const;
  size_t size() const { return by_address_.size(); }

 private:
  std::map<uintptr_t, ClientMapping> by_address_;
  std::map<FileKey, std::set<uintptr_t>> by_file_;
};

}  // namespace pmirror::fs
