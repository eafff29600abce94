// SPDX-License-Identifier: BSD-3-Clause
// The file of an undo log: records that are durable when they are promised, in batches that callers share. What the records mean is
// undo_format.h's business.
//
// Little-endian, in blocks of 4096 bytes; each block 0 and 1 and each batch has a CRC32C over all of it (with the CRC itself as 0), padding included.
//
// | block | content |
// |---|---|
// | 0, 1 | acknowledgements: AckBlock. The newer of the valid ones names the last batch that is known to be durable |
// | 2 ... | batches, each in blocks of its own: BatchHeader, then records: RecordHeader, payload |
//
// A log is named only when it is complete (Publish). Then a batch is appended, made durable with one fdatasync, and only then promised; the
// next is written only after that. What was durable is never written again, but for one acknowledgement block at a time.
//
// A batch that cannot be read is a torn end (what it was for never happened) only when nothing shows that it was ever promised. It is
// damage, when an acknowledgement names it or a later one, or when a later batch of this log follows. What is left is a power cut and
// damage to the last batch, both before the acknowledgement reached the disk with the next batch: two failures at once.
//
// Thread-safe. After a failure nothing more can be appended: the kernel may have given up the pages.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "recovery/log_storage.h"

namespace pmirror::server {

struct UndoAckBlock {
  static constexpr uint64_t kMagic = 0x314b43414f444e55;  // "UNDOACK1"
  uint64_t magic = kMagic;
  uint32_t crc = 0;
  uint32_t zero = 0;
  uint64_t log = 0;       // id
  uint64_t sequence = 0;  // of the batch
};
static_assert(sizeof(UndoAckBlock) == 32);

struct UndoBatchHeader {
  static constexpr uint64_t kMagic = 0x3142544144444e55;  // "UNDDATB1"
  uint64_t magic = kMagic;
  uint32_t crc = 0;
  uint32_t zero = 0;
  uint64_t log = 0;       // id: blocks may hold what a removed file had
  uint64_t sequence = 0;  // from 1, without gaps
  uint64_t length = 0;    // of the records behind this header, in bytes
};
static_assert(sizeof(UndoBatchHeader) == 40);

struct UndoRecordHeader {
  uint32_t kind = 0;
  uint32_t length = 0;  // of the payload behind it, in bytes
};
static_assert(sizeof(UndoRecordHeader) == 8);

class UndoLogFile {
 public:
  static constexpr size_t kBlock = 4096;
  using Visit = absl::FunctionRef<absl::Status(uint32_t kind, std::span<const std::byte> payload)>;

  // A new log. It is not at `path` before Publish. `id` is not 0. `storage` must outlive it.
  static absl::StatusOr<std::unique_ptr<UndoLogFile>> Create(recovery::LogStorage& storage, std::string path,
                                                             uint64_t id);
  // A new log's first records, before Publish only. Nothing is durable yet.
  absl::Status Write(uint32_t kind, std::span<const std::byte> payload);
  // The log is at its path, durably.
  absl::Status Publish();

  // Hands every record to `visit` in order, and changes nothing. Answers the log's id. kNotFound: no log; kDataLoss: it is damaged, naming
  // it; what `visit` answers.
  static absl::StatusOr<uint64_t> Read(recovery::LogStorage& storage, const std::string& path, Visit visit);
  // The same, and takes a torn end away, so that it can be appended to. Everything that was handed over is durable.
  static absl::StatusOr<std::unique_ptr<UndoLogFile>> Open(recovery::LogStorage& storage, std::string path,
                                                           Visit visit);

  // `records`: as AddRecord makes them. Durable when it returns OK.
  absl::Status Append(std::span<const std::byte> records);
  static void AddRecord(std::vector<std::byte>& records, uint32_t kind, std::span<const std::byte> head,
                        std::span<const std::byte> rest = {});

  uint64_t id() const { return id_; }

 private:
  struct Scan;
  UndoLogFile(recovery::LogStorage& storage, std::string path, uint64_t id)
      : storage_(storage), path_(std::move(path)), id_(id) {
    ResetPending();
  }
  void ResetPending();
  absl::Status WriteBatch(uint64_t sequence, std::vector<std::byte> batch);
  absl::Status Acknowledge(uint64_t at, uint64_t sequence);  // `at`: block 0 or 1

  recovery::LogStorage& storage_;
  const std::string path_;
  const uint64_t id_;
  std::unique_ptr<recovery::LogFile> file_;  // used by who has set writing_
  uint64_t end_ = 2 * kBlock;                // likewise: where the next batch goes

  std::mutex mutex_;
  std::condition_variable written_;
  // Guarded by mutex_:
  std::vector<std::byte> pending_;  // the next batch, with room for its header
  uint64_t next_ = 1;               // its sequence
  uint64_t durable_ = 0;            // the last one that is
  bool writing_ = false;
  absl::Status failure_;
};

}  // namespace pmirror::server
