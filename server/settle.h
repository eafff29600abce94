// SPDX-License-Identifier: BSD-3-Clause
// `pmirror settle`: makes plain files of a backing directory whose daemon does not run (promise P8), by applying what its undo log holds.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace pmirror::server {

// Answers what it did, in one sentence. `backing`: the directory. `record`: the file in the state directory that holds the copy's record
// ("NAME.copy"); empty: where the directory says that it is. Any number of times, also after a crash in its middle. kAlreadyExists: a daemon
// runs on that state directory; kFailedPrecondition: this is no backing directory, its record is not there, or there is no way back; kDataLoss:
// log or record are damaged. On an error other than of the disk nothing was changed.
absl::StatusOr<std::string> Settle(const std::string& backing, const std::string& record);

}  // namespace pmirror::server
