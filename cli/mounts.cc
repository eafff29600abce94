// SPDX-License-Identifier: BSD-3-Clause
// Reading mountinfo.
#include "cli/mounts.h"

#include <fmt/format.h>
#include <sys/mount.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <sstream>

namespace pmirror::cli {
namespace {

constexpr char kMountType[] = "fuse.pmirror";

// Space, tab, newline and backslash are written as \ooo.
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

std::vector<MountEntry> MountsBelow(const std::filesystem::path& directory, const std::string& mountinfo) {
  const std::string prefix = directory.string() + "/";
  std::vector<MountEntry> found;
  std::istringstream table(mountinfo);
  for (std::string line; std::getline(table, line);) {
    std::istringstream words(line);
    std::string id, parent, device, root, point;
    words >> id >> parent >> device >> root >> point;
    point = Unescape(point);
    if (point == directory.string() || point.rfind(prefix, 0) == 0) {
      std::string word;
      while (words >> word && word != "-") {  // optional fields
      }
      words >> word;
      found.push_back({point, word});
    }
  }
  std::reverse(found.begin(), found.end());
  return found;
}

std::vector<MountEntry> MountsBelow(const std::filesystem::path& directory) {
  std::ifstream in("/proc/self/mountinfo", std::ios::binary);
  return MountsBelow(directory, {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()});
}

absl::Status DetachMountsBelow(const std::filesystem::path& directory) {
  for (const MountEntry& mount : MountsBelow(directory)) {
    if (mount.type != kMountType) {
      continue;
    }
    if (::umount2(mount.point.c_str(), MNT_DETACH) != 0 && errno != EINVAL) {  // EINVAL: gone meanwhile
      return absl::ErrnoToStatus(errno, fmt::format("cannot unmount {}", mount.point));
    }
  }
  return absl::OkStatus();
}

}  // namespace pmirror::cli
