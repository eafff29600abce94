// SPDX-License-Identifier: BSD-3-Clause
// The files of a sandbox: its directory, its state file and the lock of its commands, the directories of its
// nodes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cli/sandbox_plan.h"

namespace pmirror::cli {

// One command at a time on a sandbox: held until the end of the process or of the object.
class SandboxLock {
 public:
  // Waits for its turn. Requires: the directory exists.
  static absl::StatusOr<SandboxLock> Take(const std::filesystem::path& directory);
  SandboxLock(SandboxLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  ~SandboxLock();

 private:
  explicit SandboxLock(int fd) : fd_(fd) {}
  int fd_;
};

// The directory without '.', '..', symlinks and a slash at its end: what everything of the sandbox is named
// after.
std::filesystem::path Canonical(const std::filesystem::path& directory);

// DIR/sandbox.json.
std::filesystem::path StateFile(const std::filesystem::path& directory);
absl::Status SaveState(const Sandbox& sandbox);
// What it says. kNotFound when there is none.
absl::StatusOr<Sandbox> OpenSandbox(const std::filesystem::path& directory);

// Replaces the file as a whole.
absl::Status WriteFile(const std::filesystem::path& path, const std::string& text);

// Backing directories and mount points of every node.
absl::Status MakeDirectories(const Sandbox& sandbox);
// Removes the nodes' directories, and the sandbox's own when nothing else is in it. Refuses while anything is
// mounted in them.
absl::Status RemoveDirectories(const Sandbox& sandbox);

// A random one (version 4).
std::string NewUuid();

// Ports of the loopback interface that nobody has now.
absl::StatusOr<std::vector<uint16_t>> FreePorts(size_t count);

}  // namespace pmirror::cli
