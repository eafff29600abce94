// SPDX-License-Identifier: BSD-3-Clause
// See give_ids.h.
#include "recovery/give_ids.h"

#include <endian.h>
#include <fmt/format.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "recovery/inventory.h"
#include "recovery/object_id.h"

namespace pmirror::recovery {
namespace {

constexpr uint64_t kNoMount = 0;
constexpr uint64_t kFirst = 1024;  // below it are the ids of what every volume has, as its root

}  // namespace

absl::StatusOr<uint64_t> GiveIds(int root_fd) {
  const absl::StatusOr<Inventory> inventory = TakeInventory(root_fd);
  if (!inventory.ok()) {
    return inventory.status();
  }
  uint64_t counter = kFirst;
  for (const TreeItem& item : *inventory) {
    if (MountOf(item.id) != kNoMount) {
      return absl::FailedPreconditionError(
          fmt::format("{} carries an id of another volume; copy the files without their trusted.* attributes",
                      item.path));
    }
    counter = std::max(counter, Raw(item.id));  // of an attempt that did not end
  }
  uint64_t given = 0;
  for (const TreeItem& item : *inventory) {
    if (item.id != FileId::kNone || item.path.empty()) {
      continue;
    }
    const uint64_t id = htole64(Raw(ObjectId(kNoMount, ++counter)));
    const std::string path = fmt::format("/proc/self/fd/{}/{}", root_fd, item.path);
    if (::lsetxattr(path.c_str(), kIdXattr, &id, sizeof(id), XATTR_CREATE) == 0) {
      ++given;
    } else if (errno != EEXIST) {  // another name of the same object
      return absl::ErrnoToStatus(errno, fmt::format("give an id to {}", item.path));
    }
  }
  if (::syncfs(root_fd) != 0) {
    return absl::ErrnoToStatus(errno, "make the ids durable");
  }
  return given;
}

}  // namespace pmirror::recovery
