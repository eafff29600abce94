// SPDX-License-Identifier: BSD-3-Clause
// Reading, writing and removing what a sandbox has on disk.
#include "cli/sandbox_files.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <system_error>

#include "cli/mounts.h"
#include "cli/outcome.h"

namespace pmirror::cli {

namespace stdfs = std::filesystem;

absl::StatusOr<SandboxLock> SandboxLock::Take(const stdfs::path& directory) {
  const int fd = ::open((directory / ".lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) {
    return absl::ErrnoToStatus(errno, fmt::format("cannot use {}", directory.string()));
  }
  SandboxLock lock(fd);
  if (::flock(fd, LOCK_EX) != 0) {
    return absl::ErrnoToStatus(errno, fmt::format("cannot lock {}", directory.string()));
  }
  return lock;
}

SandboxLock::~SandboxLock() {
  if (fd_ >= 0) {
    ::close(fd_);
  }
}

// The directory without '.', '..', symlinks and a slash at its end: what everything is named after.
stdfs::path Canonical(const stdfs::path& directory) {
  std::error_code error;
  const stdfs::path canonical = stdfs::weakly_canonical(stdfs::absolute(directory), error);
  return canonical.has_filename() ? canonical : canonical.parent_path();
}

stdfs::path StateFile(const stdfs::path& directory) { return directory / "sandbox.json"; }

absl::Status SaveState(const Sandbox& sandbox) {
  return WriteFile(StateFile(sandbox.options.directory), Save(sandbox));
}

absl::StatusOr<Sandbox> OpenSandbox(const stdfs::path& directory) {
  const stdfs::path file = StateFile(Canonical(directory));
  std::ifstream in(file, std::ios::binary);
  if (!in.is_open()) {
    return absl::NotFoundError(fmt::format("there is no sandbox in {}; make one: pmirror sandbox up {}",
                                           directory.string(), directory.string()));
  }
  absl::StatusOr<Sandbox> sandbox =
      Restore({std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()});
  if (!sandbox.ok()) {
    return absl::DataLossError(fmt::format("{} {}", file.string(), Sentence(sandbox.status())));
  }
  return sandbox;
}

absl::Status WriteFile(const stdfs::path& path, const std::string& text) {
  const stdfs::path fresh = path.string() + ".new";
  std::ofstream out(fresh, std::ios::binary | std::ios::trunc);
  out << text;
  out.close();
  if (!out || ::rename(fresh.c_str(), path.c_str()) != 0) {
    return absl::ErrnoToStatus(errno, fmt::format("cannot write {}", path.string()));
  }
  return absl::OkStatus();
}

absl::Status MakeDirectories(const Sandbox& sandbox) {
  for (const SandboxNode& node : sandbox.nodes) {
    for (const SandboxVolume& volume : sandbox.volumes) {
      for (const stdfs::path& path : {sandbox.Backing(node, volume), sandbox.Mount(node, volume)}) {
        std::error_code error;
        stdfs::create_directories(path, error);
        if (error) {
          return absl::InternalError(fmt::format("cannot make {}: {}", path.string(), error.message()));
        }
      }
    }
  }
  return absl::OkStatus();
}

absl::Status RemoveDirectories(const Sandbox& sandbox) {
  const stdfs::path& directory = sandbox.options.directory;
  std::vector<stdfs::path> paths;
  for (const SandboxNode& node : sandbox.nodes) {
    paths.push_back(node.directory);
  }
  if (!sandbox.BackingRoot().empty()) {
    paths.push_back(sandbox.BackingRoot());
  }
  for (const stdfs::path& path : paths) {
    // Never remove what somebody has mounted there.
    if (!MountsBelow(path).empty()) {
      return absl::FailedPreconditionError(
          fmt::format("something is mounted below {}; unmount it first", path.string()));
    }
    std::error_code error;
    stdfs::remove_all(path, error);
    if (error) {
      return absl::InternalError(fmt::format("cannot remove {}: {}", path.string(), error.message()));
    }
  }
  std::error_code ignored;
  stdfs::remove(directory / ".lock", ignored);
  stdfs::remove(directory, ignored);  // when nothing else is in it
  return absl::OkStatus();
}

std::string NewUuid() {
  std::array<unsigned char, 16> b{};
  if (::getrandom(b.data(), b.size(), 0) != static_cast<ssize_t>(b.size())) {
    std::abort();  // the kernel never refuses 16 bytes
  }
  b[6] = static_cast<unsigned char>((b[6] & 0x0f) | 0x40);  // version 4, RFC 4122
  b[8] = static_cast<unsigned char>((b[8] & 0x3f) | 0x80);
  std::string text;
  for (size_t i = 0; i < b.size(); ++i) {
    text += fmt::format("{}{:02x}", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", b[i]);
  }
  return text;
}

absl::StatusOr<std::vector<uint16_t>> FreePorts(size_t count) {
  std::vector<int> sockets;
  std::vector<uint16_t> ports;
  while (ports.size() < count) {
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockets.push_back(fd);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof(address);
    if (fd < 0 || ::bind(fd, reinterpret_cast<sockaddr*>(&address), length) != 0 ||
        ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) {
      break;
    }
    ports.push_back(ntohs(address.sin_port));
  }
  std::for_each(sockets.begin(), sockets.end(), &::close);
  if (ports.size() < count) {
    return absl::ErrnoToStatus(errno, "cannot find free ports");
  }
  return ports;
}

}  // namespace pmirror::cli
