// SPDX-License-Identifier: BSD-3-Clause
// One object of a volume's tree as two copies are compared by it. Plain values.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "replication/namespace_op.h"
#include "replication/types.h"

namespace pmirror::recovery {

// How much of each object is collected. kCompare: what a comparison needs. kFull: also what it takes to make
// an equal object (TreeItem says which fields), and the orphans of the copy.
enum class InventoryDetail { kCompare, kFull };

// Names of xattrs with their values, in the order of names.
using Xattrs = std::vector<std::pair<std::string, std::string>>;

// Times are not compared: pages written back by the kernel change them on their own. A directory's size and
// link count are its file system's business and are 0 here.
struct TreeItem {
  // Relative to the volume's root, without a leading '/'; empty for the root. Any bytes but NUL. Of an
  // orphan, see below.
  std::string path;
  FileId id = FileId::kNone;  // kNone: the object carries no id, pmirror did not make it
  uint32_t mode = 0;          // type and permissions
  uint32_t uid = 0;
  uint32_t gid = 0;
  uint64_t size = 0;       // bytes, of a regular file
  uint64_t rdev = 0;       // of a device node
  std::string target;      // of a symlink
  uint32_t xattr_crc = 0;  // over names and values in the order of names, without pmirror's own
  uint64_t links = 0;      // names of the object

  // Of InventoryDetail::kFull only.
  Xattrs xattrs;  // without pmirror's own
  OpTime atime;
  OpTime mtime;
  // The object is kept without a name. A walk finds it in the backing directory, and `path` says where:
  // ".pmirror/orphans/<id in 16 hex digits>". It may be a directory, which a resync has parked there; its
  // content follows it, under paths that begin with its own, and is not marked. An orphan that a primary holds
  // by an open descriptor has the empty path.
  bool orphan = false;
};

// The root first, a directory before what it contains; orphans last.
using Inventory = std::vector<TreeItem>;

}  // namespace pmirror::recovery
