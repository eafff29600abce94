// SPDX-License-Identifier: BSD-3-Clause
// Merging two inventories by path.
#include "recovery/tree_compare.h"

#include <sys/stat.h>

#include <algorithm>
#include <map>
#include <set>
#include <string_view>
#include <utility>

namespace pmirror::recovery {
namespace {

using ByPath = std::map<std::string_view, const TreeItem*>;

ByPath Index(const Inventory& inventory) {
  ByPath index;
  for (const TreeItem& item : inventory) {
    if (!item.orphan) {
      index.emplace(item.path, &item);
    }
  }
  return index;
}

void CompareItems(const TreeItem& original, const TreeItem& copy, std::vector<Difference>& differences) {
  const auto note = [&](bool differs, What what) {
    if (differs) {
      differences.push_back({original.path, what, {}});
    }
  };
  // Objects of different types have nothing else to compare.
  if ((original.mode & S_IFMT) != (copy.mode & S_IFMT)) {
    return note(true, What::kType);
  }
  note(original.id != copy.id || original.id == FileId::kNone, What::kId);
  note(original.mode != copy.mode, What::kMode);
  note(original.uid != copy.uid || original.gid != copy.gid, What::kOwner);
  note(original.size != copy.size, What::kSize);
  note(original.xattr_crc != copy.xattr_crc, What::kXattr);
  note(original.target != copy.target, What::kTarget);
  note(original.rdev != copy.rdev, What::kDevice);
  note(original.links != copy.links, What::kLinks);
}

}  // namespace

const char* Name(What what) {
  switch (what) {
    case What::kMissing:
      return "missing";
    case What::kExtra:
      return "extra";
    case What::kId:
      return "id";
    case What::kType:
      return "type";
    case What::kMode:
      return "mode";
    case What::kOwner:
      return "owner";
    case What::kSize:
      return "size";
    case What::kXattr:
      return "xattr";
    case What::kTarget:
      return "target";
    case What::kDevice:
      return "device";
    case What::kLinks:
      return "links";
    case What::kData:
      return "data";
  }
  return "?";
}

std::vector<Difference> CompareTrees(const Inventory& original, const Inventory& copy) {
  const ByPath left = Index(original);
  const ByPath right = Index(copy);
  std::vector<Difference> differences;
  auto a = left.begin();
  auto b = right.begin();
  while (a != left.end() || b != right.end()) {
    if (b == right.end() || (a != left.end() && a->first < b->first)) {
      differences.push_back({a->second->path, What::kMissing, {}});
      ++a;
    } else if (a == left.end() || b->first < a->first) {
      differences.push_back({b->second->path, What::kExtra, {}});
      ++b;
    } else {
      CompareItems(*a->second, *b->second, differences);
      ++a;
      ++b;
    }
  }
  return differences;
}

std::vector<ComparableFile> ComparableFiles(const Inventory& original, const Inventory& copy) {
  std::map<FileId, uint64_t> sizes;  // of the copy
  for (const TreeItem& item : copy) {
    if (S_ISREG(item.mode) && item.id != FileId::kNone) {
      sizes.emplace(item.id, item.size);
    }
  }
  std::vector<ComparableFile> files;
  std::set<FileId> seen;
  for (const TreeItem& item : original) {
    const auto found = sizes.find(item.id);
    if (S_ISREG(item.mode) && found != sizes.end() && seen.insert(item.id).second) {
      files.push_back({item.id, item.path, std::min(item.size, found->second)});
    }
  }
  return files;
}

}  // namespace pmirror::recovery
