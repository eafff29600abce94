// SPDX-License-Identifier: BSD-3-Clause
// How a command of pmirror ends: exit 0 done, 1 refused or failed, 2 wrong usage; one sentence on standard
// error when not 0.
#pragma once

#include <string_view>

#include "absl/status/status.h"

namespace pmirror::cli {

constexpr int kDone = 0;
constexpr int kFailed = 1;
constexpr int kWrongUsage = 2;

// Prints "pmirror: SENTENCE" on standard error; returns kFailed.
int Fail(std::string_view sentence);
int Fail(const absl::Status& status);

// A note on standard error that changes no exit code.
void Note(std::string_view sentence);

// The sentence of a status.
std::string_view Sentence(const absl::Status& status);

}  // namespace pmirror::cli
