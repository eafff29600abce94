// SPDX-License-Identifier: BSD-3-Clause
// One object of a volume's tree as two copies are compared by it. Plain values.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "replication/types.h"

namespace pmirror::recovery {

// Times are not compared: pages written back by the kernel change them on their own. A directory's size and
// link count are its file system's business and are 0 here.
struct TreeItem {
  std::string
      path;  // relative to the volume's root, without a leading '/'; empty for the root. Any bytes but NUL
  FileId id = FileId::kNone;  // kNone: the object carries no id, pmirror did not make it
  uint32_t mode = 0;          // type and permissions
  uint32_t uid = 0;
  uint32_t gid = 0;
  uint64_t size = 0;       // bytes, of a regular file
  uint64_t rdev = 0;       // of a device node
  std::string target;      // of a symlink
  uint32_t xattr_crc = 0;  // over names and values in the order of names, without pmirror's own
  uint64_t links = 0;      // names of the object
};

// The root first, a directory before what it contains.
using Inventory = std::vector<TreeItem>;

}  // namespace pmirror::recovery
