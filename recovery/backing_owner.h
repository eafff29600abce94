// SPDX-License-Identifier: BSD-3-Clause
// To which volume a backing directory belongs: the file `volume` of its `.pmirror`, the uuid in one line. It belongs to one volume for ever.
// And to one process at a time, which serves a copy from it or settles it.
#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "replication/types.h"

namespace pmirror::recovery {

// Writes the owner into a directory that has none, durably. kFailedPrecondition: it belongs to another volume; nothing was changed then.
// `own_directory`: descriptor of `.pmirror`. `path`: of the backing directory, for messages.
absl::Status ClaimBackingDirectory(int own_directory, const Uuid& volume, const std::string& path);

// Whether a backing directory holds nothing but pmirror's own.
absl::StatusOr<bool> IsEmptyBacking(const std::string& path);

// The directory belongs to nobody again, durably; nothing else of it changes. OK when it did not belong to anybody.
absl::Status DisownBackingDirectory(int own_directory, const std::string& path);

// The volume that a directory belongs to; none: it belongs to none, or that cannot be found out.
std::optional<Uuid> FindOwner(const std::string& path);

// Taken while `own_directory`, or a duplicate of it, is open. kAlreadyExists: another process has it.
absl::Status LockBackingDirectory(int own_directory, const std::string& path);
// Before that.
void UnlockBackingDirectory(int own_directory);

// Leaves in the directory where the record of its copy is (the symlink `record`), for who has nothing but the directory.
absl::Status NameCopyRecord(int own_directory, const std::string& record, const std::string& path);
// Empty: it never was a replica's.
absl::StatusOr<std::string> FindCopyRecord(int own_directory, const std::string& path);

}  // namespace pmirror::recovery
