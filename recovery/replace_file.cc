// SPDX-License-Identifier: BSD-3-Clause
// See replace_file.h.
#include "recovery/replace_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "replication/unique_fd.h"

namespace pmirror::recovery {
namespace {

int WriteAll(int fd, std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const ssize_t written = ::write(fd, text.data() + at, text.size() - at);
    if (written < 0 && errno != EINTR) {
      return errno;
    }
    at += written > 0 ? static_cast<size_t>(written) : 0;
  }
  return 0;
}

std::string DirectoryOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash + 1);
}

bool SyncDirectoryOf(const std::string& path) {
  const UniqueFd directory(::open(DirectoryOf(path).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  return directory.valid() && ::fsync(directory.get()) == 0;
}

}  // namespace

absl::Status ReplaceFile(const std::string& path, std::string_view text, const char* what) {
  const auto failed = [&](const char* doing) {
    return absl::ErrnoToStatus(errno, absl::StrCat(doing, " ", what, " ", path));
  };
  const std::string temporary = path + ".new";
  const UniqueFd fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!fd.valid()) {
    return failed("make");
  }
  if (const int error = WriteAll(fd.get(), text); error != 0) {
    return absl::ErrnoToStatus(error, absl::StrCat("write ", what, " ", path));
  }
  if (::fsync(fd.get()) != 0 || ::rename(temporary.c_str(), path.c_str()) != 0) {
    return failed("replace");
  }
  return SyncDirectoryOf(path) ? absl::OkStatus() : failed("make durable");
}

absl::Status RemoveFile(const std::string& path) {
  const bool there = ::unlink(path.c_str()) == 0;
  return (there && SyncDirectoryOf(path)) || (!there && errno == ENOENT)
             ? absl::OkStatus()
             : absl::ErrnoToStatus(errno, absl::StrCat("remove ", path));
}

}  // namespace pmirror::recovery
