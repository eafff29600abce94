// SPDX-License-Identifier: BSD-3-Clause
// See log.h. The file's descriptor is one of ours (own_descriptors.h): programs that close everything do not
// close it.
#include "interpose/log.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "interpose/own_descriptors.h"

namespace pmirror::interpose {
namespace {

constexpr const char* kLevelNames[] = {"silent", "error", "warning", "info", "debug"};

std::atomic<int> g_level{0};

}  // namespace

void OpenLog() {
  const char* level = ::secure_getenv("PMIRROR_LOG_LEVEL");
  const char* file = ::secure_getenv("PMIRROR_LOG_FILE");
  int chosen = file != nullptr ? static_cast<int>(LogLevel::kWarning) : 0;
  for (int i = 0; level != nullptr && i <= static_cast<int>(LogLevel::kDebug); ++i) {
    chosen = std::strcmp(level, kLevelNames[i]) == 0 ? i : chosen;
  }
  if (file != nullptr) {
    const int fd = static_cast<int>(
        ::syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666));
    if (fd < 0) {
      return;
    }
    own_descriptors().Adopt(UniqueFd(fd), OwnKind::kLog);
  }
  g_level.store(chosen, std::memory_order_relaxed);
}

bool LogEnabled(LogLevel level) { return static_cast<int>(level) <= g_level.load(std::memory_order_relaxed); }

LogLine::LogLine(LogLevel level) : enabled_(LogEnabled(level)), saved_errno_(errno) {
  if (enabled_) {
    Append("pmirror[");
    AppendNumber(static_cast<uint64_t>(::syscall(SYS_getpid)));
    Append("] ");
    Append(kLevelNames[static_cast<int>(level)]);
    Append(": ");
  }
}

LogLine::~LogLine() {
  if (enabled_) {
    line_[used_++] = '\n';  // Append leaves room for it
    const int fd = own_descriptors().Single(OwnKind::kLog);
    [[maybe_unused]] const long written =
        ::syscall(SYS_write, fd >= 0 ? fd : STDERR_FILENO, line_.data(), used_);
  }
  errno = saved_errno_;
}

LogLine& LogLine::Text(const char* text) {
  if (enabled_) {
    Append(text);
  }
  return *this;
}

LogLine& LogLine::Field(const char* name, uint64_t value) {
  if (enabled_) {
    Append(" ");
    Append(name);
    Append("=");
    AppendNumber(value);
  }
  return *this;
}

LogLine& LogLine::Field(const char* name, const char* value) {
  if (enabled_) {
    Append(" ");
    Append(name);
    Append("=");
    Append(value);
  }
  return *this;
}

void LogLine::Append(const char* text) {
  while (*text != '\0' && used_ < line_.size() - 1) {
    line_[used_++] = *text++;
  }
}

void LogLine::AppendNumber(uint64_t value) {
  char digits[24];
  size_t at = sizeof(digits) - 1;
  digits[at] = '\0';
  do {
    digits[--at] = static_cast<char>('0' + value % 10);
    value /= 10;
  } while (value != 0);
  Append(&digits[at]);
}

}  // namespace pmirror::interpose
