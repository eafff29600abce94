// SPDX-License-Identifier: BSD-3-Clause
// Batches of undo records. See undo_log_file.h.
#include "server/undo_log_file.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "replication/crc32c.h"

namespace pmirror::server {
namespace {

using recovery::LogFile;
using recovery::LogStorage;

constexpr size_t kBlock = UndoLogFile::kBlock;
constexpr uint64_t kFirstBatch = 2 * kBlock;
constexpr size_t kWriteAt = size_t{4} << 20;  // first records: written when so many bytes are collected

template <typename Header>
std::span<const std::byte> BytesOf(const Header& header) {
  return std::as_bytes(std::span(&header, 1));
}

// CRC of a block or batch whose header is `header` and whose other bytes are `rest`.
template <typename Header>
uint32_t CrcOf(Header header, std::span<const std::byte> rest) {
  header.crc = 0;
  return Crc32c(Crc32c(0, BytesOf(header)), rest);
}

template <typename Header>
Header HeaderOf(std::span<const std::byte> bytes) {
  Header header;
  std::memcpy(&header, bytes.data(), sizeof header);
  return header;
}

uint64_t Blocks(uint64_t bytes) { return (bytes + kBlock - 1) / kBlock * kBlock; }

std::span<const std::byte> AsBytes(const std::string& text) { return std::as_bytes(std::span(text)); }

std::string Temporary(const std::string& path) { return path + ".new"; }

}  // namespace

// One pass over a log.
struct UndoLogFile::Scan {
  LogFile& file;
  const std::string& path;
  uint64_t size = 0;
  uint64_t id = 0;
  uint64_t acknowledged = 0;
  uint64_t end = kFirstBatch;  // behind the last good batch
  uint64_t last_begin = 0;     // of it; 0: there is none
  uint64_t sequence = 0;       // of it

  absl::Status Damaged(const std::string& what) const {
    return absl::DataLossError(
        absl::StrCat("undo log ", path, " is damaged: ", what,
                     "; the copy cannot be taken back to its last consistency point, only "
                     "a resync makes it whole"));
  }

  absl::Status Begin() {
    const absl::StatusOr<uint64_t> length = file.Size();
    if (!length.ok()) {
      return length.status();
    }
    size = *length;
    for (uint64_t block = 0; block < 2; ++block) {
      const absl::StatusOr<std::string> bytes = file.Read(block * kBlock, kBlock);
      if (!bytes.ok()) {
        return bytes.status();
      }
      if (bytes->size() != kBlock) {
        continue;
      }
      const auto ack = HeaderOf<UndoAckBlock>(AsBytes(*bytes));
      if (ack.magic == UndoAckBlock::kMagic && ack.crc == CrcOf(ack, AsBytes(*bytes).subspan(sizeof ack)) &&
          ack.sequence > acknowledged) {
        id = ack.log;
        acknowledged = ack.sequence;
      }
    }
    return id != 0 ? absl::OkStatus() : Damaged("neither of its first blocks can be read");
  }

  // The records of the batch at `at`; empty: there is no good one.
  absl::StatusOr<std::string> Batch(uint64_t at, uint64_t& found) {
    const absl::StatusOr<std::string> head = file.Read(at, sizeof(UndoBatchHeader));
    if (!head.ok() || head->size() != sizeof(UndoBatchHeader)) {
      return head.ok() ? std::string() : head;
    }
    const auto header = HeaderOf<UndoBatchHeader>(AsBytes(*head));
    if (header.magic != UndoBatchHeader::kMagic || header.log != id || header.length == 0 ||
        header.length > size || at + Blocks(sizeof header + header.length) > size) {
      return std::string();
    }
    absl::StatusOr<std::string> rest =
        file.Read(at + sizeof header, Blocks(sizeof header + header.length) - sizeof header);
    if (!rest.ok() || header.crc != CrcOf(header, AsBytes(*rest))) {
      return rest.ok() ? std::string() : rest;
    }
    rest->resize(header.length);
    found = header.sequence;
    return rest;
  }

  absl::Status Visit(const std::string& records, UndoLogFile::Visit visit) const {
    for (size_t at = 0; at < records.size();) {
      UndoRecordHeader header;
      if (records.size() - at < sizeof header) {
        return Damaged("a record is cut");
      }
      std::memcpy(&header, records.data() + at, sizeof header);
      at += sizeof header;
      if (records.size() - at < header.length) {
        return Damaged("a record is cut");
      }
      if (absl::Status status = visit(header.kind, AsBytes(records).subspan(at, header.length));
          !status.ok()) {
        return status.code() == absl::StatusCode::kInvalidArgument ? Damaged(std::string(status.message()))
                                                                   : status;
      }
      at += header.length;
    }
    return absl::OkStatus();
  }

  absl::Status Run(UndoLogFile::Visit visit) {
    if (absl::Status status = Begin(); !status.ok()) {
      return status;
    }
    for (;;) {
      uint64_t found = 0;
      const absl::StatusOr<std::string> records = Batch(end, found);
      if (!records.ok()) {
        return records.status();
      }
      if (records->empty() || found != sequence + 1) {
        break;
      }
      if (absl::Status status = Visit(*records, visit); !status.ok()) {
        return status;
      }
      last_begin = std::exchange(end, end + Blocks(sizeof(UndoBatchHeader) + records->size()));
      sequence = found;
    }
    return JudgeEnd();
  }

  // Whether what follows the last good batch was never promised.
  absl::Status JudgeEnd() {
    if (acknowledged > sequence) {
      return Damaged(absl::StrCat("batch ", sequence + 1, " of ", acknowledged, " cannot be read"));
    }
    for (uint64_t at = end; at < size; at += kBlock) {
      uint64_t found = 0;
      const absl::StatusOr<std::string> records = Batch(at, found);
      if (!records.ok()) {
        return records.status();
      }
      if (!records->empty() && found > sequence + 1) {
        return Damaged(
            absl::StrCat("batch ", sequence + 1, " cannot be read, and batch ", found, " follows"));
      }
    }
    return absl::OkStatus();
  }
};

void UndoLogFile::ResetPending() { pending_.assign(sizeof(UndoBatchHeader), std::byte{}); }

absl::StatusOr<std::unique_ptr<UndoLogFile>> UndoLogFile::Create(LogStorage& storage, std::string path,
                                                                 uint64_t id) {
  absl::StatusOr<std::unique_ptr<LogFile>> file = storage.Create(Temporary(path));
  if (!file.ok()) {
    return file.status();
  }
  std::unique_ptr<UndoLogFile> log(new UndoLogFile(storage, std::move(path), id));
  log->file_ = *std::move(file);
  return log;
}

absl::Status UndoLogFile::Write(uint32_t kind, std::span<const std::byte> payload) {
  AddRecord(pending_, kind, payload);
  if (pending_.size() < kWriteAt) {
    return absl::OkStatus();
  }
  std::vector<std::byte> batch = std::move(pending_);
  ResetPending();
  return WriteBatch(next_++, std::move(batch));
}

absl::Status UndoLogFile::Publish() {
  absl::Status status;
  if (pending_.size() > sizeof(UndoBatchHeader)) {
    status = WriteBatch(next_++, std::move(pending_));
    ResetPending();
  }
  durable_ = next_ - 1;
  // Here the acknowledgement is durable before the log has its name: it carries the id.
  if (!status.ok() || !(status = Acknowledge(0, durable_)).ok() ||
      !(status = Acknowledge(1, durable_)).ok() || !(status = file_->Sync()).ok() ||
      !(status = storage_.Rename(Temporary(path_), path_)).ok()) {
    storage_.Remove(Temporary(path_)).IgnoreError();
    return status;
  }
  return storage_.SyncDirectory(path_);
}

absl::StatusOr<uint64_t> UndoLogFile::Read(LogStorage& storage, const std::string& path, Visit visit) {
  const absl::StatusOr<std::unique_ptr<LogFile>> file = storage.Open(path);
  if (!file.ok()) {
    return file.status();
  }
  Scan scan{.file = **file, .path = path};
  const absl::Status status = scan.Run(visit);
  return status.ok() ? absl::StatusOr<uint64_t>(scan.id) : status;
}

absl::StatusOr<std::unique_ptr<UndoLogFile>> UndoLogFile::Open(LogStorage& storage, std::string path,
                                                               Visit visit) {
  absl::StatusOr<std::unique_ptr<LogFile>> file = storage.Open(path);
  if (!file.ok()) {
    return file.status();
  }
  Scan scan{.file = **file, .path = path};
  if (absl::Status status = scan.Run(visit); !status.ok()) {
    return status;
  }
  // The last batch may have been read from pages that no sync could write: they are made dirty again.
  if (scan.last_begin != 0) {
    const absl::StatusOr<std::string> last = (*file)->Read(scan.last_begin, scan.end - scan.last_begin);
    if (!last.ok()) {
      return last.status();
    }
    if (absl::Status status = (*file)->Write(scan.last_begin, AsBytes(*last)); !status.ok()) {
      return status;
    }
  }
  absl::Status status = (*file)->Truncate(scan.end);
  if (!status.ok() || !(status = (*file)->Sync()).ok()) {
    return status;
  }
  std::unique_ptr<UndoLogFile> log(new UndoLogFile(storage, std::move(path), scan.id));
  log->file_ = *std::move(file);
  log->end_ = scan.end;
  log->next_ = scan.sequence + 1;
  log->durable_ = scan.sequence;
  status = log->Acknowledge(scan.sequence % 2, scan.sequence);
  return status.ok() ? absl::StatusOr<std::unique_ptr<UndoLogFile>>(std::move(log)) : status;
}

absl::Status UndoLogFile::Append(std::span<const std::byte> records) {
  std::unique_lock lock(mutex_);
  pending_.insert(pending_.end(), records.begin(), records.end());
  const uint64_t mine = next_;
  while (failure_.ok() && durable_ < mine) {
    if (writing_) {
      written_.wait(lock);  // for a disk, as every barrier does
      continue;
    }
    writing_ = true;
    const uint64_t sequence = next_++;
    std::vector<std::byte> batch = std::move(pending_);
    ResetPending();
    lock.unlock();
    absl::Status status = WriteBatch(sequence, std::move(batch));
    if (status.ok()) {
      status = file_->Sync();
    }
    if (status.ok()) {
      status = Acknowledge(sequence % 2, sequence);  // not over the last one
    }
    lock.lock();
    writing_ = false;
    failure_ = status;
    durable_ = status.ok() ? sequence : durable_;
    written_.notify_all();
  }
  return durable_ >= mine ? absl::OkStatus() : failure_;
}

void UndoLogFile::AddRecord(std::vector<std::byte>& records, uint32_t kind, std::span<const std::byte> head,
                            std::span<const std::byte> rest) {
  const UndoRecordHeader header{.kind = kind, .length = static_cast<uint32_t>(head.size() + rest.size())};
  const auto add = [&](std::span<const std::byte> bytes) {
    records.insert(records.end(), bytes.begin(), bytes.end());
  };
  add(BytesOf(header));
  add(head);
  add(rest);
}

// `batch`: records behind room for the header.
absl::Status UndoLogFile::WriteBatch(uint64_t sequence, std::vector<std::byte> batch) {
  UndoBatchHeader header{.log = id_, .sequence = sequence, .length = batch.size() - sizeof(UndoBatchHeader)};
  batch.resize(Blocks(batch.size()));
  header.crc = CrcOf(header, std::span(batch).subspan(sizeof header));
  std::memcpy(batch.data(), &header, sizeof header);
  const absl::Status status = file_->Write(end_, batch);
  end_ += batch.size();
  return status;
}

absl::Status UndoLogFile::Acknowledge(uint64_t at, uint64_t sequence) {
  std::vector<std::byte> block(kBlock);
  UndoAckBlock ack{.log = id_, .sequence = sequence};
  ack.crc = CrcOf(ack, std::span(block).subspan(sizeof ack));
  std::memcpy(block.data(), &ack, sizeof ack);
  return file_->Write(at * kBlock, block);
}

}  // namespace pmirror::server
