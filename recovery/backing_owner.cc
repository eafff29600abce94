// SPDX-License-Identifier: BSD-3-Clause
// See backing_owner.h.
#include "recovery/backing_owner.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "recovery/volume_record.h"
#include "replication/unique_fd.h"

namespace pmirror::recovery {
namespace {

constexpr char kOwnerFile[] = "volume";

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

}  // namespace pmirror::recovery
