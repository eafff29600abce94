// SPDX-License-Identifier: BSD-3-Clause
// Small files that must be there as a whole, the old one or the new one, whatever happens.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace pmirror::recovery {

// The file says exactly `text`, durably (rename(2) over it, and fsync of the directory), when it returns OK; mode 0600. After an error, which
// names `what` and the path, it is the old one or the new one. "PATH.new" is used beside it. Requires: one writer of a path at a time.
absl::Status ReplaceFile(const std::string& path, std::string_view text, const char* what);

// The file is not there any more, durably, when it returns OK; it need not have been. The error names the path.
absl::Status RemoveFile(const std::string& path);

}  // namespace pmirror::recovery
