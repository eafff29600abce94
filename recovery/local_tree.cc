// SPDX-License-Identifier: BSD-3-Clause
// Opening by id through remembered paths.
#include "recovery/local_tree.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <string_view>
#include <utility>

#include "recovery/inventory.h"

namespace pmirror::recovery {
namespace {

// Opens a path that may be longer than PATH_MAX, following no symlink on the way.
UniqueFd OpenPath(int root, std::string_view path) {
  UniqueFd directory;
  for (;;) {
    const int from = directory.valid() ? directory.get() : root;
    const size_t slash = path.find('/');
    const std::string name(path.substr(0, slash));
    if (slash == std::string_view::npos) {
      return UniqueFd(
          ::openat(from, name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOATIME | O_CLOEXEC));
    }
    UniqueFd next(::openat(from, name.c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!next.valid()) {
      return next;
    }
    directory = std::move(next);
    path.remove_prefix(slash + 1);
  }
}

}  // namespace

absl::StatusOr<Inventory> LocalTree::Inventory() {
  absl::StatusOr<recovery::Inventory> inventory = TakeInventory(root_.get(), detail_);
  if (inventory.ok()) {
    paths_.clear();
    for (const TreeItem& item : *inventory) {
      if (S_ISREG(item.mode) && item.id != FileId::kNone) {
        paths_.emplace(item.id, item.path);
      }
    }
  }
  return inventory;
}

UniqueFd LocalTree::OpenKnown(FileId file) const {
  const auto path = paths_.find(file);
  if (path == paths_.end()) {
    return {};
  }
  UniqueFd fd = OpenPath(root_.get(), path->second);
  return fd.valid() && IdOf(fd.get()) == file ? std::move(fd) : UniqueFd();
}

absl::StatusOr<UniqueFd> LocalTree::Open(FileId file) {
  UniqueFd fd = OpenKnown(file);
  if (!fd.valid()) {
    if (absl::StatusOr<recovery::Inventory> inventory = Inventory(); !inventory.ok()) {
      return inventory.status();
    }
    fd = OpenKnown(file);
  }
  if (!fd.valid()) {
    return absl::NotFoundError(fmt::format("no file of id {:#x}", Raw(file)));
  }
  return fd;
}

absl::StatusOr<BlockChecksums> LocalTree::Checksums(FileId file, Extent extent, uint32_t block) {
  const absl::StatusOr<UniqueFd> fd = Open(file);
  if (!fd.ok()) {
    return fd.status();
  }
  return ChecksumBlocks(fd->get(), extent, block);
}

}  // namespace pmirror::recovery
