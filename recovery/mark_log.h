// SPDX-License-Identifier: BSD-3-Clause
// The file of a mark map: its format, reading, appending, replacing. For mark_map.cc only; others use the map.
//
// Little-endian, in blocks of 4096 bytes; each block or run of blocks has a CRC32C over all of it (with the CRC itself as 0), padding included.
//
// | block | content |
// |---|---|
// | 0, 1 | acknowledgements: AckBlock. The newer of the valid ones names the last batch that is known to be durable |
// | 2 | HeadBlock, then per replica one byte of length and the name: whose marks, and of which mount |
// | 3 ... | batches, each in blocks of its own: BatchHeader, then records. The first (sequence 1) is everything that held when the file was made |
//
// A batch is appended, made durable with one fdatasync, and only then acknowledged to callers; the next is appended only after that. What was durable is
// never written again, but for one acknowledgement block at a time: a block that a power cut tears costs nothing that was acknowledged.
//
// ### A torn end or damage
// A batch that cannot be read is a torn end (dropped, no doubt) only when nothing shows that it was ever acknowledged. It is damage, when
//   - an acknowledgement names it or a later one: that block is written, not flushed, right after the batch became durable, and so reaches the disk
//     with the next batch, the close, or the kernel's writeback. It lies in another page than the batch, so that one bad page cannot take both;
//   - a batch with a later sequence follows: there is never more than one that is not durable;
//   - more bytes follow than one appended batch can have.
// What is left is a crash and damage to the last batch, both between the acknowledgement and the next writeback: two failures at once.
//
// ### After a failure
// After any failed write or sync nothing is appended to that file any more: the next batch writes everything that holds to a new file, whose
// pages the kernel has not yet given up on. For the same reason Open() of a map begins with a new file: what it read may have been only in the page cache.
//
// Used by one thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "recovery/log_storage.h"
#include "replication/types.h"

namespace pmirror::recovery {

struct MarkIdentity {
  Uuid volume{};
  uint64_t generation = 0;
  std::vector<std::string>
      replicas;  // names of nodes, at most kMaxReplicas, each of 1 to 255 bytes; the index is the replica's number
};

// What a map knows, as a value.
struct MarkState {
  struct Replica {
    bool all = false;
    uint64_t base_mount = 0;
  };
  MarkIdentity identity;
  uint64_t mount_number = 0;
  std::vector<Replica> replicas;                  // like identity.replicas
  std::vector<std::pair<FileId, uint8_t>> files;  // each once; bit i: marked for replica i
};

enum class MarkRecordKind : uint8_t {
  kMark = 1,   // value: the file
  kClear = 2,  // value: the file
  kAll = 3,
  kNotAll = 4,
  kBase = 5,  // value: the mount
};

// One change. Valid when the kind is known, replicas names only replicas of the head, and value is not 0 where it has a meaning and 0 where not.
struct MarkRecord {
  MarkRecordKind kind{};
  uint8_t replicas = 0;  // bit i: replica i of the head
  uint8_t zero[6] = {};
  uint64_t value = 0;
};
static_assert(sizeof(MarkRecord) == 16);

class MarkLog {
 public:
  static constexpr size_t kBlock = 4096;            // bytes
  static constexpr size_t kMaxAppended = 4096;      // records of one batch, except the first of a file
  static constexpr uint64_t kMaxFile = 1ULL << 30;  // bytes; no volume has so many files open

  // What the file at `path` says. kDataLoss: it is damaged or of another version (the message says how, without the path); kNotFound: there
  // is none; otherwise the storage's error.
  static absl::StatusOr<MarkState> Load(LogStorage& storage, const std::string& path);

  // Nothing is written before the first Replace.
  MarkLog(LogStorage& storage, std::string path) : storage_(storage), path_(std::move(path)) {}

  // Durable when it returns OK. After an error, and after some successes, a Replace has to come first. Requires: CanAppend.
  absl::Status Append(std::span<const MarkRecord> records);
  // The file says exactly `state`, durably, when it returns OK. Otherwise it is the old or the new one; where it is certainly the old one, CanAppend
  // is as it was.
  absl::Status Replace(const MarkState& state);
  // Makes the last acknowledgement durable.
  absl::Status Close();

  bool CanAppend(size_t records) const;
  // Whether a Replace has to come, or is worth it, before `records` more records.
  bool WantsReplace(size_t records) const;

 private:
  absl::StatusOr<std::unique_ptr<LogFile>> WriteNew(const std::string& path, const std::string& image);

  LogStorage& storage_;
  const std::string path_;
  std::unique_ptr<LogFile> file_;  // null: Replace has to come first
  uint64_t incarnation_ = 0;  // of the file: tells its batches from those of files that had the blocks before
  uint64_t sequence_ = 0;     // of the last durable batch
  uint64_t end_ = 0;          // bytes
  uint64_t replace_at_ = 0;   // bytes: from here on the file is much larger than it needs to be
};

}  // namespace pmirror::recovery
