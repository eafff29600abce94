// SPDX-License-Identifier: BSD-3-Clause
// What the daemon does to and asks of its host before it serves: the state directory and its lock, stale
// mounts, limits.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "replication/unique_fd.h"

namespace pmirror::server {

// Makes the directory (mode 0700) when it is not there and takes its lock: held while the descriptor is open,
// given back by the kernel however the process ends. kAlreadyExists names the process that holds it.
absl::StatusOr<UniqueFd> LockStateDirectory(const std::filesystem::path& directory);

// The type of the topmost mount exactly at `mount_point`, from the text of /proc/self/mountinfo; empty when
// there is none.
std::string MountTypeAt(const std::filesystem::path& mount_point, const std::string& mountinfo);

// Detaches mounts of pmirror at `mount_point` that an earlier daemon left behind (programs on them get
// ENOTCONN). Answers how many there were. Requires: the state directory is locked, so that no living daemon
// of this configuration serves them.
absl::StatusOr<int> DetachStaleMounts(const std::filesystem::path& mount_point);

// Makes those that are missing, with the directories above them.
absl::Status MakeDirectories(const std::vector<std::filesystem::path>& paths);

// Nothing, or why `path` cannot be a volume's backing directory or mount point.
absl::Status CheckDirectory(const std::filesystem::path& path, const char* what);

}  // namespace pmirror::server
