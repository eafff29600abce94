// SPDX-License-Identifier: BSD-3-Clause
// Finds programs that run the preload library and have backing files mapped although no daemon knows of them any more: what /proc says of their
// address spaces (docs/internals/programs.md, "Another daemon"). Needs root. No state.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "replication/unique_fd.h"

namespace pmirror::fs {

struct FoundMapping {
  uintptr_t address = 0;
  uint64_t length = 0;    // bytes
  uint64_t offset = 0;    // in the file, of `address`
  bool writable = false;  // mapped through a descriptor that was open for writing
  UniqueFd file;          // O_RDWR or O_RDONLY, as `writable` says
};

struct FoundProgram {
  pid_t pid = 0;
  uid_t uid = 0;
  UniqueFd process;  // a pidfd
  UniqueFd pagemap;
  UniqueFd tickets;                    // what it has mapped under the name of a ticket table; not looked into
  std::vector<FoundMapping> mappings;  // shared ones of regular files, not empty
};

// The name that the library gives its ticket table (interpose/runtime.cc).
constexpr char kTicketTableName[] = "pmirror-tickets";

// Programs that have a ticket table, and map a file on a device for which `wanted` says true. What ends while it is looked at may be left out.
std::vector<FoundProgram> FindPrograms(absl::FunctionRef<bool(dev_t)> wanted);

// The address space behind a page map is there still, and something may be mapped at `address` of it.
bool AddressSpaceLives(int pagemap, uintptr_t address);

}  // namespace pmirror::fs
