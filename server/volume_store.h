// SPDX-License-Identifier: BSD-3-Clause
// What was decided about volumes while daemons ran, in the state directory: `volumes/NUMBER-NAME.toml` is a volume that was made or taken over then,
// `volumes/NAME.members.toml` who holds a copy of a volume, wherever that is configured. Plain functions; one writer at a time.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/config.h"

namespace pmirror::server {

// Completes what the configuration file says; volumes follow in the order in which they were made, by which running programs know them. Members that were
// decided later win over the file; volumes of which this node holds nothing any more stay in `config` (HoldsCopy). kInvalidArgument and others name the
// file.
absl::Status LoadStored(Config& config);

// Durable when they return OK; the old or the new after an error.
absl::Status StoreVolume(const Config& config, const VolumeConfig& volume);
absl::Status StoreMembers(const Config& config, const VolumeConfig& volume);
// Whether the volume was made while daemons ran: the configuration file says nothing of it.
absl::StatusOr<bool> IsStored(const Config& config, const VolumeConfig& volume);
// Of such a one: it is unknown from here on, durably when it returns OK.
absl::Status ForgetVolume(const Config& config, const VolumeConfig& volume);

// Whether the node has a copy of it, or stands ready for one.
bool HoldsCopy(const Config& config, const VolumeConfig& volume);

// The [[volume]] section that AddVolume reads.
std::string ToToml(const VolumeConfig& volume);

}  // namespace pmirror::server
