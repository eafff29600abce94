// SPDX-License-Identifier: BSD-3-Clause
// See local_listener.h.
#include "fs/local_listener.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace pmirror::fs {
namespace {

constexpr int kBacklog = 1024;

UniqueFd Socket() { return UniqueFd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)); }

// Makes room at the path.
absl::Status RemoveStale(const std::string& path, const sockaddr_un& address) {
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0) {
    return errno == ENOENT ? absl::OkStatus() : absl::ErrnoToStatus(errno, absl::StrCat("look at ", path));
  }
  if (!S_ISSOCK(info.st_mode)) {
    return absl::AlreadyExistsError(
        absl::StrCat(path, " is there and is no socket: remove it or name another path"));
  }
  const UniqueFd probe = Socket();
  if (::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0 ||
      errno != ECONNREFUSED) {
    return absl::AlreadyExistsError(
        absl::StrCat("somebody listens at ", path, ": stop the other daemon or name another path"));
  }
  return ::unlink(path.c_str()) == 0
             ? absl::OkStatus()
             : absl::ErrnoToStatus(errno, absl::StrCat("remove the old socket ", path));
}

}  // namespace

absl::StatusOr<LocalListener> LocalListener::Open(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the path of a socket has 1 to ", sizeof(address.sun_path) - 1, " bytes: ", path));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  const std::filesystem::path parent = std::filesystem::path(path).parent_path();
  std::error_code ignored;
  if (!parent.empty() && !std::filesystem::is_directory(parent, ignored)) {
    return absl::FailedPreconditionError(
        absl::StrCat("the directory of the socket is not there: make ", parent.string()));
  }
  if (absl::Status stale = RemoveStale(path, address); !stale.ok()) {
    return stale;
  }
  LocalListener listener(Socket(), path);
  if (!listener.socket_.valid() ||
      ::bind(listener.fd(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    const int error = errno;
    listener.path_.clear();  // not ours
    return absl::ErrnoToStatus(error, absl::StrCat("make the socket ", path));
  }
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("look at the socket ", path));
  }
  listener.device_ = info.st_dev;
  listener.inode_ = info.st_ino;
  if (::chmod(path.c_str(), 0666) != 0 || ::listen(listener.fd(), kBacklog) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("listen at ", path));
  }
  return listener;
}

LocalListener::~LocalListener() {
  struct stat info {};
  if (socket_.valid() && ::lstat(path_.c_str(), &info) == 0 && info.st_dev == device_ &&
      info.st_ino == inode_) {
    ::unlink(path_.c_str());
  }
}

}  // namespace pmirror::fs
