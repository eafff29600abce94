// SPDX-License-Identifier: BSD-3-Clause
// The journal of a copy that trails (docs/internals/rpo.md): the batch that is being applied, durable before the first byte of a file changes, so
// that a crash in the middle is completed and never seen.
//
// One file of `.pmirror`, `batch`, replaced as a whole by the next one (temporary name, fsync, rename, fsync of the directory). Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "recovery/log_storage.h"

namespace pmirror::server {

class BatchJournal {
 public:
  // `backing`: the directory that holds `.pmirror`. `storage` must outlive the journal.
  BatchJournal(const std::string& backing, recovery::LogStorage& storage);

  // The batch that was stored last, with what is left of one that was not complete removed. Nothing: there is none. kDataLoss: it is damaged.
  absl::StatusOr<std::optional<std::vector<std::byte>>> Load();

  // Writes it, durably, under the temporary name.
  absl::Status Prepare(std::span<const std::byte> batch);
  // It takes the place of the last one, durably. Requires: Prepare succeeded, and all that the last one did is durable.
  absl::Status Commit();
  // There is none any more, durably. Requires: all that the last one did is durable.
  absl::Status Remove();

 private:
  const std::string path_;
  const std::string temporary_;
  recovery::LogStorage& storage_;
};

}  // namespace pmirror::server
