// SPDX-License-Identifier: BSD-3-Clause
// Compares what two copies say of their trees. Pure.
#pragma once

#include <string>
#include <vector>

#include "recovery/tree_item.h"
#include "replication/types.h"

namespace pmirror::recovery {

enum class What {
  kMissing,
  kExtra,
  kId,
  kType,
  kMode,
  kOwner,
  kSize,
  kXattr,
  kTarget,
  kDevice,
  kLinks,
  kData
};

// "missing", "extra", ...: the word operators and programs see.
const char* Name(What what);

// One way in which the copy differs from the original.
struct Difference {
  std::string path;
  What what{};
  Extent extent;  // kData only
  friend bool operator==(const Difference&, const Difference&) = default;
};

// In the order of paths. Files of equal size that may still differ in data are not in it: that is
// ComparableFiles' business. Both inventories' paths must be unique; orphans are not compared.
std::vector<Difference> CompareTrees(const Inventory& original, const Inventory& copy);

// The regular files that both have under one id, each id once, with the smaller of the two sizes.
struct ComparableFile {
  FileId id{};
  std::string path;
  uint64_t size = 0;
};
std::vector<ComparableFile> ComparableFiles(const Inventory& original, const Inventory& copy);

}  // namespace pmirror::recovery
