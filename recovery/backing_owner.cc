// SPDX-License-Identifier: BSD-3-Clause
// See backing_owner.h.
#include "recovery/backing_owner.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "recovery/inventory.h"
#include "recovery/volume_record.h"
#include "replication/unique_fd.h"

namespace pmirror::recovery {
namespace {

constexpr char kOwnerFile[] = "volume";
constexpr char kRecordLink[] = "record";

}  // namespace

absl::Status ClaimBackingDirectory(int own_directory, const Uuid& volume, const std::string& path) {
  const std::string expected = UuidText(volume) + "\n";
  std::string found(64, '\0');
  const UniqueFd existing(::openat(own_directory, kOwnerFile, O_RDONLY | O_CLOEXEC));
  const ssize_t length = existing.valid() ? ::read(existing.get(), found.data(), found.size()) : 0;
  if (length < 0 || (!existing.valid() && errno != ENOENT)) {
    return absl::ErrnoToStatus(errno, absl::StrCat("read ", path, "/.pmirror/", kOwnerFile));
  }
  found.resize(static_cast<size_t>(length));
  if (found == expected || found + "\n" == expected) {
    return absl::OkStatus();
  }
  if (!found.empty()) {
    return absl::FailedPreconditionError(absl::StrCat("backing directory ", path, " belongs to volume ",
                                                      found, ", configured is ", expected,
                                                      "; choose another directory"));
  }
  const UniqueFd made(::openat(own_directory, kOwnerFile, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  if (!made.valid() ||
      ::write(made.get(), expected.data(), expected.size()) != static_cast<ssize_t>(expected.size()) ||
      ::fsync(made.get()) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("write ", path, "/.pmirror/", kOwnerFile));
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> IsEmptyBacking(const std::string& path) {
  std::error_code error;
  bool empty = true;
  for (auto entry = std::filesystem::directory_iterator(path, error);
       !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    empty = empty && entry->path().filename() == kOwnDirectory;
  }
  return error ? absl::ErrnoToStatus(error.value(), absl::StrCat("cannot read the backing directory ", path))
               : absl::StatusOr<bool>(empty);
}

absl::Status DisownBackingDirectory(int own_directory, const std::string& path) {
  for (const char* file : {kRecordLink, kOwnerFile}) {
    if (::unlinkat(own_directory, file, 0) != 0 && errno != ENOENT) {
      return absl::ErrnoToStatus(errno, absl::StrCat("remove ", path, "/.pmirror/", file));
    }
  }
  return ::fsync(own_directory) == 0
             ? absl::OkStatus()
             : absl::ErrnoToStatus(errno, absl::StrCat("make durable ", path, "/.pmirror"));
}

std::optional<Uuid> FindOwner(const std::string& path) {
  std::ifstream file(path + "/.pmirror/" + kOwnerFile);
  std::string line;
  return std::getline(file, line) ? ParseUuid(line) : std::nullopt;
}

absl::Status LockBackingDirectory(int own_directory, const std::string& path) {
  if (::flock(own_directory, LOCK_EX | LOCK_NB) == 0) {
    return absl::OkStatus();
  }
  return errno == EWOULDBLOCK
             ? absl::AlreadyExistsError(absl::StrCat("another pmirrord serves backing directory ", path))
             : absl::ErrnoToStatus(errno, absl::StrCat("lock ", path, "/.pmirror"));
}

void UnlockBackingDirectory(int own_directory) { ::flock(own_directory, LOCK_UN); }

absl::Status NameCopyRecord(int own_directory, const std::string& record, const std::string& path) {
  const std::string target = std::filesystem::absolute(record).lexically_normal().string();
  const absl::StatusOr<std::string> found = FindCopyRecord(own_directory, path);
  if (!found.ok() || *found == target) {
    return found.status();
  }
  const std::string temporary = absl::StrCat(kRecordLink, ".new");
  if ((::unlinkat(own_directory, temporary.c_str(), 0) != 0 && errno != ENOENT) ||
      ::symlinkat(target.c_str(), own_directory, temporary.c_str()) != 0 ||
      ::renameat(own_directory, temporary.c_str(), own_directory, kRecordLink) != 0 ||
      ::fsync(own_directory) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("make ", path, "/.pmirror/", kRecordLink));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> FindCopyRecord(int own_directory, const std::string& path) {
  std::string target(PATH_MAX, '\0');
  const ssize_t length = ::readlinkat(own_directory, kRecordLink, target.data(), target.size());
  if (length < 0 && errno != ENOENT) {
    return absl::ErrnoToStatus(errno, absl::StrCat("read ", path, "/.pmirror/", kRecordLink));
  }
  target.resize(length < 0 ? 0 : static_cast<size_t>(length));
  return target;
}

}  // namespace pmirror::recovery
