// SPDX-License-Identifier: BSD-3-Clause
// The journal of flush groups that are all or nothing on a replica (docs/internals/programs.md, "Flush groups"): what is about
// to be written to a file, durable before its first byte changes, so that a crash in the middle is completed.
//
// One file of `.pmirror`, `group`, written in place: it holds one whole record, or nothing that a checksum fits.
// ---
// For maintainers. Why a record may be laid over the file at the start: it is there only between Begin() and End(), all of
// which happens under the file's lock, so that nothing else has touched those bytes since.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "recovery/log_storage.h"
#include "replication/apply_order.h"
#include "replication/types.h"

namespace pmirror::server {

class GroupJournal {
 public:
  // `backing`: the directory that holds `.pmirror`. `durable`: false where the owner declared that nothing has to
  // survive a power cut; a crash of the daemon alone is covered all the same. `storage` must outlive the journal.
  GroupJournal(const std::string& backing, bool durable, recovery::LogStorage& storage);

  struct Record {
    FileId file = FileId::kNone;
    std::vector<ApplyPiece> pieces;  // payload offsets are those of `payload`
    std::vector<std::byte> payload;
  };
  // What a crash left. Nothing: there is none, or one that was not whole, before which no file has changed.
  absl::StatusOr<std::optional<Record>> Load();

  // One group at a time: held from Begin() to End(). After BackingFile::mutex.
  std::mutex& mutex() { return mutex_; }
  // The pieces of `payload` are about to be written to the file. Returns 0 or an errno, after which no record is there, but when stuck().
  int Begin(FileId file, std::span<const ApplyPiece> pieces, std::span<const std::byte> payload);
  // They are written, and durable; or the attempt was given up. Returns 0 or an errno: then the record may still be there, and
  // nothing may be written to the copy any more.
  int End();
  // A failed Begin could not take its record away again: nothing may be written to the copy any more. Under the mutex.
  bool stuck() const { return stuck_; }

 private:
  absl::Status Open();
  absl::Status Store(std::span<const std::byte> bytes);

  const std::string path_;
  const bool durable_;
  recovery::LogStorage& storage_;
  std::mutex mutex_;
  std::unique_ptr<recovery::LogFile> file_;  // guarded by mutex_; null until the first group
  std::vector<std::byte> bytes_;             // guarded by mutex_; for its memory
  bool stuck_ = false;                       // guarded by mutex_
};

}  // namespace pmirror::server
