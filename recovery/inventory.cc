// SPDX-License-Identifier: BSD-3-Clause
// Depth-first walk in the order of names, by descriptors: paths may be longer than PATH_MAX, and a symlink is
// never followed.
#include "recovery/inventory.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "replication/crc32c.h"
#include "replication/unique_fd.h"

namespace pmirror::recovery {
namespace {

// A directory that the walk is in.
struct Level {
  UniqueFd directory;
  std::string path;
  std::vector<std::string> names;  // those still to visit, the next one last
};

absl::Status Failed(const char* doing, const std::string& path) {
  return absl::ErrnoToStatus(errno, fmt::format("cannot {} '{}' of the backing directory", doing, path));
}

// A path that reaches `name` in `directory` whatever its type is, for the calls that know no descriptor of a
// symlink or device.
std::string ProcPath(int directory, const std::string& name) {
  return name.empty() ? fmt::format("/proc/self/fd/{}/.", directory)
                      : fmt::format("/proc/self/fd/{}/{}", directory, name);
}

// Runs a call that fills a buffer (listxattr and its kind) until the buffer is large enough. Nothing: the
// call failed, errno is set.
template <typename Call>
std::optional<std::string> Filled(Call call) {
  std::string buffer(256, '\0');
  for (;;) {
    const ssize_t length = call(buffer.data(), buffer.size());
    if (length >= 0) {
      buffer.resize(static_cast<size_t>(length));
      return buffer;
    }
    if (errno != ERANGE) {
      return std::nullopt;
    }
    buffer.resize(buffer.size() * 4);
  }
}

std::span<const std::byte> Bytes(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

std::vector<std::string> SplitNames(const std::string& list) {
  std::vector<std::string> names;
  for (size_t at = 0; at < list.size(); at += names.back().size() + 1) {
    names.emplace_back(list.c_str() + at);
  }
  std::sort(names.begin(), names.end());
  return names;
}

// Reads the xattrs of an object: its id, the CRC of what programs see, and that itself when it is asked for.
// False: errno is set.
bool ReadXattrs(const std::string& object, InventoryDetail detail, TreeItem& item) {
  const auto list = Filled([&](char* to, size_t size) { return ::llistxattr(object.c_str(), to, size); });
  if (!list) {
    return errno == ENOTSUP;
  }
  uint32_t crc = 0;
  for (const std::string& name : SplitNames(*list)) {
    auto value =
        Filled([&](char* to, size_t size) { return ::lgetxattr(object.c_str(), name.c_str(), to, size); });
    if (!value) {
      if (errno == ENODATA) {
        continue;  // removed meanwhile
      }
      return false;
    }
    if (name == kIdXattr && value->size() == sizeof(uint64_t)) {
      std::memcpy(&item.id, value->data(), sizeof(uint64_t));
    }
    if (name.rfind(kOwnXattrPrefix, 0) == 0) {
      continue;
    }
    const uint64_t length = value->size();  // so that no two lists look alike
    crc = Crc32c(crc, Bytes(std::string_view(name.c_str(), name.size() + 1)));
    crc = Crc32c(crc, std::as_bytes(std::span(&length, 1)));
    crc = Crc32c(crc, Bytes(*value));
    if (detail == InventoryDetail::kFull) {
      item.xattrs.emplace_back(name, *std::move(value));
    }
  }
  item.xattr_crc = crc;
  return true;
}

OpTime ToOpTime(const timespec& time) { return {.seconds = time.tv_sec, .nanoseconds = time.tv_nsec}; }

// Describes `name` in `directory` (the directory itself when empty). False: errno is set.
bool Describe(int directory, const std::string& name, InventoryDetail detail, TreeItem& item) {
  struct stat attributes {};
  if (::fstatat(directory, name.c_str(), &attributes, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) != 0) {
    return false;
  }
  item.mode = attributes.st_mode;
  item.uid = attributes.st_uid;
  item.gid = attributes.st_gid;
  item.size = S_ISREG(attributes.st_mode) ? static_cast<uint64_t>(attributes.st_size) : 0;
  item.rdev = S_ISCHR(attributes.st_mode) || S_ISBLK(attributes.st_mode) ? attributes.st_rdev : 0;
  item.links = S_ISDIR(attributes.st_mode) ? 0 : attributes.st_nlink;
  if (S_ISLNK(attributes.st_mode)) {
    item.target.resize(PATH_MAX);
    const ssize_t length = ::readlinkat(directory, name.c_str(), item.target.data(), item.target.size());
    if (length < 0) {
      return false;
    }
    item.target.resize(static_cast<size_t>(length));
  }
  if (detail == InventoryDetail::kFull) {
    item.atime = ToOpTime(attributes.st_atim);
    item.mtime = ToOpTime(attributes.st_mtim);
  }
  return ReadXattrs(ProcPath(directory, name), detail, item);
}

absl::StatusOr<Level> Enter(UniqueFd directory, std::string path) {
  const int copy = ::fcntl(directory.get(), F_DUPFD_CLOEXEC, 0);
  std::unique_ptr<DIR, int (*)(DIR*)> stream(copy >= 0 ? ::fdopendir(copy) : nullptr, &::closedir);
  if (!stream) {
    return Failed("read the directory", path);
  }
  ::rewinddir(stream.get());  // the copy shares its position with the caller's descriptor
  Level level{std::move(directory), std::move(path), {}};
  errno = 0;
  while (const dirent* entry = ::readdir(stream.get())) {
    const std::string_view name = entry->d_name;
    if (name != "." && name != ".." && !(level.path.empty() && name == kOwnDirectory)) {
      level.names.emplace_back(name);
    }
  }
  if (errno != 0) {
    return Failed("read the directory", level.path);
  }
  std::sort(level.names.rbegin(), level.names.rend());
  return level;
}

// Appends what is below `directory`, whose path is `path`.
absl::Status Walk(UniqueFd directory, std::string path, InventoryDetail detail, Inventory& inventory) {
  std::vector<Level> levels;
  absl::StatusOr<Level> top = Enter(std::move(directory), std::move(path));
  if (!top.ok()) {
    return top.status();
  }
  levels.push_back(*std::move(top));
  while (!levels.empty()) {
    Level& level = levels.back();
    if (level.names.empty()) {
      levels.pop_back();
      continue;
    }
    const std::string name = std::move(level.names.back());
    level.names.pop_back();
    TreeItem item;
    item.path = level.path.empty() ? name : fmt::format("{}/{}", level.path, name);
    item.orphan = level.path == kOrphansPath;
    if (!Describe(level.directory.get(), name, detail, item)) {
      if (errno == ENOENT) {
        continue;
      }
      return Failed("read", item.path);
    }
    inventory.push_back(item);
    if (!S_ISDIR(item.mode)) {
      continue;
    }
    UniqueFd inner(
        ::openat(level.directory.get(), name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!inner.valid()) {
      if (errno == ENOENT || errno == ENOTDIR) {
        continue;
      }
      return Failed("open", item.path);
    }
    absl::StatusOr<Level> next = Enter(std::move(inner), item.path);
    if (!next.ok()) {
      return next.status();
    }
    levels.push_back(*std::move(next));
  }
  return absl::OkStatus();
}

}  // namespace

FileId IdOf(int fd) {
  FileId id = FileId::kNone;
  return ::fgetxattr(fd, kIdXattr, &id, sizeof(id)) == sizeof(id) ? id : FileId::kNone;
}

absl::StatusOr<Inventory> TakeInventory(int root_fd, InventoryDetail detail) {
  Inventory inventory(1);
  UniqueFd root(::openat(root_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!root.valid() || !Describe(root.get(), "", detail, inventory.front())) {
    return Failed("read", "");
  }
  inventory.front().id = FileId::kRoot;  // by its place, whatever it carries
  absl::Status status = Walk(std::move(root), "", detail, inventory);
  if (status.ok() && detail == InventoryDetail::kFull) {
    UniqueFd orphans(::openat(root_fd, kOrphansPath, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (orphans.valid()) {
      status = Walk(std::move(orphans), kOrphansPath, detail, inventory);
    } else if (errno != ENOENT) {
      status = Failed("open", kOrphansPath);
    }
  }
  if (!status.ok()) {
    return status;
  }
  return inventory;
}

}  // namespace pmirror::recovery
