// SPDX-License-Identifier: BSD-3-Clause
// Locks, mounts and directories of the host.
#include "server/host.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <system_error>

namespace pmirror::server {
namespace {

constexpr int kMaxStackedMounts = 64;
constexpr char kMountType[] = "fuse.pmirror";

// mountinfo writes space, tab, newline and backslash as \ooo.
std::string Unescape(const std::string& text) {
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      plain += static_cast<char>(std::strtol(text.substr(i + 1, 3).c_str(), nullptr, 8));
      i += 3;
    } else {
      plain += text[i];
    }
  }
  return plain;
}

}  // namespace

std::string MountTypeAt(const std::filesystem::path& mount_point, const std::string& mountinfo) {
  std::istringstream table(mountinfo);
  std::string type;
  for (std::string line; std::getline(table, line);) {
    std::istringstream words(line);
    std::string id, parent, device, root, point, word;
    words >> id >> parent >> device >> root >> point;
    while (words >> word && word != "-") {  // optional fields
    }
    if (words >> word && Unescape(point) == mount_point.string()) {
      type = word;
    }
  }
  return type;
}

absl::StatusOr<UniqueFd> LockStateDirectory(const std::filesystem::path& directory) {
  std::error_code error;
  std::filesystem::create_directories(directory.parent_path(), error);
  if (::mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST) {
    return absl::ErrnoToStatus(errno, fmt::format("cannot make the state directory {}", directory.string()));
  }
  const std::filesystem::path file = directory / "lock";
  UniqueFd lock(::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!lock.valid()) {
    return absl::ErrnoToStatus(errno, fmt::format("cannot open {}", file.string()));
  }
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) {
      return absl::ErrnoToStatus(errno, fmt::format("cannot lock {}", file.string()));
    }
    char holder[32] = {};
    const ssize_t length = ::pread(lock.get(), holder, sizeof(holder) - 1, 0);
    return absl::AlreadyExistsError(
        fmt::format("a pmirrord (pid {}) is already running on the state directory {}",
                    length > 0 ? std::atol(holder) : 0, directory.string()));
  }
  const std::string pid = fmt::format("{}\n", ::getpid());
  if (::ftruncate(lock.get(), 0) != 0 || ::pwrite(lock.get(), pid.data(), pid.size(), 0) < 0) {
    return absl::ErrnoToStatus(errno, fmt::format("cannot write {}", file.string()));
  }
  return lock;
}

absl::StatusOr<int> DetachStaleMounts(const std::filesystem::path& mount_point) {
  // Asks the kernel's table, because a path whose daemon is dead cannot be asked.
  const auto stale = [&mount_point] {
    std::ifstream table("/proc/self/mountinfo", std::ios::binary);
    return MountTypeAt(mount_point, {std::istreambuf_iterator<char>(table),
                                     std::istreambuf_iterator<char>()}) == kMountType;
  };
  int detached = 0;
  while (stale()) {
    if (detached == kMaxStackedMounts || ::umount2(mount_point.c_str(), MNT_DETACH) != 0) {
      return absl::ErrnoToStatus(errno,
                                 fmt::format("cannot detach the dead mount at {}", mount_point.string()));
    }
    ++detached;
  }
  return detached;
}

absl::Status MakeDirectories(const std::vector<std::filesystem::path>& paths) {
  for (const std::filesystem::path& path : paths) {
    std::error_code error;
    std::filesystem::create_directories(path, error);
    if (error) {
      return absl::ErrnoToStatus(error.value(), fmt::format("cannot make {}", path.string()));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckDirectory(const std::filesystem::path& path, const char* what) {
  struct stat attributes {};
  if (::stat(path.c_str(), &attributes) != 0) {
    return absl::ErrnoToStatus(errno, fmt::format("the {} {} cannot be used", what, path.string()));
  }
  if (!S_ISDIR(attributes.st_mode)) {
    return absl::FailedPreconditionError(fmt::format("the {} {} is no directory", what, path.string()));
  }
  return absl::OkStatus();
}

}  // namespace pmirror::server
