// SPDX-License-Identifier: BSD-3-Clause
// Printing errors and notes.
#include "cli/outcome.h"

#include <fmt/format.h>

#include <cstdio>

namespace pmirror::cli {

std::string_view Sentence(const absl::Status& status) {
  return {status.message().data(), status.message().size()};
}

int Fail(std::string_view sentence) {
  fmt::print(stderr, "pmirror: {}\n", sentence);
  return kFailed;
}

int Fail(const absl::Status& status) { return Fail(Sentence(status)); }

void Note(std::string_view sentence) { fmt::print(stderr, "pmirror: note: {}\n", sentence); }

}  // namespace pmirror::cli
