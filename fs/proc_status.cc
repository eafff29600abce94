// SPDX-License-Identifier: BSD-3-Clause
// Reads /proc/TID/status. See proc_status.h.
#include "fs/proc_status.h"

#include <fcntl.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>

#include "replication/unique_fd.h"

namespace pmirror::fs {
namespace {

// Empty when there is no such thread.
std::string ReadOf(pid_t tid, const char* entry) {
  char path[64];
  std::snprintf(path, sizeof(path), "/proc/%d/%s", tid, entry);
  UniqueFd fd(::open(path, O_RDONLY | O_CLOEXEC));
  std::string text;
  if (!fd.valid()) {
    return text;
  }
  char buffer[4096];
  for (ssize_t n = 0; (n = ::read(fd.get(), buffer, sizeof(buffer))) > 0;) {
    text.append(buffer, static_cast<size_t>(n));
  }
  return text;
}

// The rest of the line that starts with `field` ("Tgid:").
std::optional<std::string> Field(const std::string& status, std::string_view field) {
  const size_t start = status.find("\n" + std::string(field));
  if (start == std::string::npos) {
    return std::nullopt;
  }
  const size_t value = start + 1 + field.size();
  return status.substr(value, status.find('\n', value) - value);
}

bool HasPendingKill(const std::string& status, std::string_view field) {
  const std::optional<std::string> value = Field(status, field);
  constexpr uint64_t kKillBit = uint64_t{1} << (SIGKILL - 1);
  return value && (std::strtoull(value->c_str(), nullptr, 16) & kKillBit) != 0;
}

}  // namespace

pid_t ProcessOf(pid_t tid) {
  const std::optional<std::string> value = Field(ReadOf(tid, "status"), "Tgid:");
  return value ? static_cast<pid_t>(std::strtol(value->c_str(), nullptr, 10)) : 0;
}

bool IsDying(pid_t tid) {
  const std::string status = ReadOf(tid, "status");
  return status.empty() || HasPendingKill(status, "SigPnd:") || HasPendingKill(status, "ShdPnd:");
}

bool HasGroup(pid_t tid, gid_t gid) {
  const std::optional<std::string> value = Field(ReadOf(tid, "status"), "Groups:");
  if (!value) {
    return false;
  }
  const char* at = value->c_str();
  for (char* end = nullptr;; at = end) {
    const unsigned long group = std::strtoul(at, &end, 10);
    if (end == at) {
      return false;
    }
    if (group == gid) {
      return true;
    }
  }
}

std::string CommandOf(pid_t pid) {
  const std::string text = ReadOf(pid, "comm");
  const size_t length = text.find('\n');
  return length == 0 || length == std::string::npos ? "?" : text.substr(0, length);
}

}  // namespace pmirror::fs
