// SPDX-License-Identifier: BSD-3-Clause
// What a replica knows about its copy of a volume, in a file of the state directory that survives crashes.
//
// The file is text with a checksum, replaced as a whole (temporary file, fsync, rename, fsync of the
// directory): after a crash it is the old or the new one. What is not exactly as written is refused
// (kDataLoss, naming the file and the line), never guessed at.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "replication/types.h"

namespace pmirror::recovery {

struct VolumeRecord {
  Uuid volume{};
  uint64_t generation = 0;    // of the data history; 0: an empty copy that never took part
  Epoch epoch{};              // highest that was seen
  uint64_t mount_number = 0;  // of the primary mount whose operations were applied last
  uint64_t operation = 0;     // highest operation of that mount that was durable when the record was written
  bool clean = true;          // the primary left cleanly and everything was durable
  bool resyncing = false;     // the files are a mixture, on their way from one consistency point to another
  // While resyncing: id of the undo log that leads back to the last consistency point; 0: there is no way back.
  uint64_t undo = 0;
  // The copy was taken back there: only a resync may follow, whatever the other fields say.
  bool rolled_back = false;
  // The copy is changed by whole batches only, and is what the last complete one left: also after a crash (docs/internals/rpo.md).
  bool trailing = false;
  std::string
      boot;  // of the machine when it was written: after a restart of it, what was not durable may be gone
  friend bool operator==(const VolumeRecord&, const VolumeRecord&) = default;
};

// Empty when there is no such file.
absl::StatusOr<std::optional<VolumeRecord>> LoadVolumeRecord(const std::string& path);

// Durable when it returns OK; otherwise the file is as it was.
absl::Status StoreVolumeRecord(const std::string& path, const VolumeRecord& record);

// The kernel's identity of this boot.
std::string BootId();

std::string UuidText(const Uuid& uuid);
std::optional<Uuid> ParseUuid(const std::string& text);

}  // namespace pmirror::recovery
