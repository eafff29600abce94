// SPDX-License-Identifier: BSD-3-Clause
// To which volume a backing directory belongs: the file `volume` of its `.pmirror`, the uuid in one line. It belongs to one volume for ever.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "replication/types.h"

namespace pmirror::recovery {

// Writes the owner into a directory that has none, durably. kFailedPrecondition: it belongs to another volume; nothing was changed then.
// `own_directory`: descriptor of `.pmirror`. `path`: of the backing directory, for messages.
absl::Status ClaimBackingDirectory(int own_directory, const Uuid& volume, const std::string& path);

}  // namespace pmirror::recovery
