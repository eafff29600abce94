// SPDX-License-Identifier: BSD-3-Clause
// Mounts below a directory, as the kernel's table lists them: a mount whose daemon is dead cannot be asked.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace pmirror::cli {

struct MountEntry {
  std::string point;
  std::string type;  // of the file system
};

// Mounts at and below `directory`, the last mounted first.
std::vector<MountEntry> MountsBelow(const std::filesystem::path& directory);

// The same from the text of /proc/self/mountinfo.
std::vector<MountEntry> MountsBelow(const std::filesystem::path& directory, const std::string& mountinfo);

// Detaches (umount -l) pmirror's mounts there and leaves others alone: who still uses them gets errors and
// holds nobody up.
absl::Status DetachMountsBelow(const std::filesystem::path& directory);

}  // namespace pmirror::cli
