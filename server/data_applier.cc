// SPDX-License-Identifier: BSD-3-Clause
// The way of a data image into its file. See data_applier.h.
#include "server/data_applier.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "recovery/block_checksums.h"
#include "replication/crc32c.h"

namespace pmirror::server {
namespace {

constexpr uint64_t kLargestFile = INT64_MAX;

// Gives [begin, end) storage without changing what can be seen of the file. Returns 0 or an errno.
int Allocate(int fd, uint64_t begin, uint64_t end) {
  while (::fallocate(fd, FALLOC_FL_KEEP_SIZE, static_cast<off_t>(begin), static_cast<off_t>(end - begin)) !=
         0) {
    if (errno != EINTR) {
      return errno;
    }
  }
  return 0;
}

// The CRC of what the file has of `range`. Returns 0 or an errno.
int ReadBack(int fd, const WireRange& range, uint32_t& crc) {
  constexpr size_t kChunk = 64 << 10;
  thread_local std::vector<std::byte> buffer(kChunk);
  // Only a hint: on a file system that keeps its bytes in memory it changes nothing.
  ::posix_fadvise(fd, static_cast<off_t>(range.offset / kPageSize * kPageSize),
                  static_cast<off_t>(range.length + range.offset % kPageSize), POSIX_FADV_DONTNEED);
  crc = 0;
  for (uint64_t done = 0; done < range.length;) {
    const ssize_t got = ::pread(fd, buffer.data(), std::min<uint64_t>(kChunk, range.length - done),
                                static_cast<off_t>(range.offset + done));
    if (got < 0 && errno == EINTR) {
      continue;
    }
    if (got <= 0) {
      return got == 0 ? 0 : errno;
    }
    crc = Crc32c(crc, std::span(buffer).first(static_cast<size_t>(got)));
    done += static_cast<uint64_t>(got);
  }
  return 0;
}

}  // namespace

DataApplier::Applied DataApplier::Apply(const FrameHeader& header, std::span<const WireRange> ranges,
                                        std::span<const std::byte> payload, uint64_t applied_operation) {
  std::shared_ptr<BackingFile> file = files_.Get(FileId{header.file});
  if (file == nullptr) {
    return {.outcome = Refusal{RefusalCode::kNoSuchFile}, .file = nullptr};
  }
  thread_local std::vector<ApplyPiece> pieces;  // for its memory
  pieces.clear();
  {
    const std::lock_guard lock(file->mutex);
    if (const int error = broken(); error != 0) {
      return {.outcome = Refusal{RefusalCode::kIoError, error}, .file = nullptr};
    }
    if (const int error = files_.EnsureOpen(file); error != 0) {
      return {.outcome = OutcomeOf(error), .file = nullptr};
    }
    switch (file->order.Judge(header.size_generation, applied_operation)) {
      case ApplyOrder::Verdict::kApply:
        break;
      case ApplyOrder::Verdict::kWaitForOperation:
        return {.outcome = kDone, .wait = Wait::kForOperation, .file = nullptr};
      case ApplyOrder::Verdict::kRecapture:
        return {.outcome = Refusal{RefusalCode::kRecapture}, .file = nullptr};
    }
    if (!file->order.Plan(header.order, ranges, pieces)) {
      return {.outcome = Refusal{RefusalCode::kRecapture}, .file = nullptr};
    }
    int error = Prepare(*file, pieces);
    if (error == 0) {
      // While an undo log is active the way back is that log's, and the copy a mixture.
      const bool group = (header.flags & kFlagGroup) != 0 && groups_ != nullptr && !pieces.empty() &&
                         (undo_ == nullptr || !undo_->active());
      error = group ? WriteGroup(*file, pieces, payload) : domain_.Write(*file, pieces, payload);
    }
    if (error != 0) {
      return {.outcome = OutcomeOf(error), .file = nullptr};
    }
    file->order.Record(header.order, ranges);
  }
  if (const int error = files_.Trim(); error != 0) {
    return {.outcome = OutcomeOf(error), .file = nullptr};
  }
  return {.outcome = kDone, .file = std::move(file)};
}

Outcome DataApplier::Lay(const std::shared_ptr<BackingFile>& file, uint64_t offset,
                         std::span<const std::byte> bytes) {
  const std::lock_guard lock(file->mutex);
  if (const int error = files_.EnsureOpen(file); error != 0) {
    return OutcomeOf(error);
  }
  if (bytes.empty()) {
    if (file->size >= offset) {
      return kDone;
    }
    if (::ftruncate(file->fd->get(), static_cast<off_t>(offset)) != 0) {
      return OutcomeOf(errno);
    }
    file->size = offset;
    domain_.SizeChanged(*file);
    return kDone;
  }
  const ApplyPiece piece{.offset = offset, .length = bytes.size(), .payload_offset = 0};
  const int error = Prepare(*file, {&piece, 1});
  return OutcomeOf(error != 0 ? error : domain_.Write(*file, {&piece, 1}, bytes));
}

Outcome DataApplier::Verify(FileId id, std::span<const WireRange> ranges, VerifiedBody& verified) {
  std::shared_ptr<BackingFile> file = files_.Get(id);
  if (file == nullptr) {
    return Refusal{RefusalCode::kNoSuchFile};
  }
  {
    const std::lock_guard lock(file->mutex);
    if (const int error = files_.EnsureOpen(file); error != 0) {
      return OutcomeOf(error);
    }
    for (size_t i = 0; i < ranges.size(); ++i) {
      if (const int error = ReadBack(file->fd->get(), ranges[i], verified.crc[i]); error != 0) {
        return Refusal{RefusalCode::kIoError, error};
      }
    }
    verified.order = file->order.Newest(ranges);
  }
  return OutcomeOf(files_.Trim());
}

Outcome DataApplier::Confirm(const FrameHeader& header, const WireRange& range,
                             std::span<const BlockSum16> sums, uint64_t applied_operation,
                             ConfirmedBody& confirmed, std::shared_ptr<BackingFile>& file) {
  file = files_.Get(FileId{header.file});
  if (file == nullptr) {
    return Refusal{RefusalCode::kNoSuchFile};
  }
  {
    const std::lock_guard lock(file->mutex);
    const int error = broken() != 0 ? broken() : files_.EnsureOpen(file);
    if (error != 0) {
      return OutcomeOf(error);
    }
    std::vector<ApplyPiece> unused;
    if (file->order.Judge(header.size_generation, applied_operation) != ApplyOrder::Verdict::kApply ||
        !file->order.Plan(header.order, {&range, 1}, unused)) {
      return Refusal{RefusalCode::kRecapture};
    }
    const absl::StatusOr<recovery::BlockChecksums> here =
        recovery::ChecksumBlocks(file->fd->get(), {range.offset, range.length}, kConfirmBlock);
    if (!here.ok()) {
      return Refusal{RefusalCode::kIoError, EIO};
    }
    // A block that the file's end cuts is no whole one, and what is beyond it none at all.
    const uint64_t whole = here->size < range.offset ? 0 : (here->size - range.offset) / kConfirmBlock;
    std::vector<WireRange> equal;
    for (size_t i = 0; i < std::min<uint64_t>({sums.size(), here->sums.size(), whole}); ++i) {
      if (sums[i] == BlockSum16{here->sums[i].low, here->sums[i].high}) {
        confirmed.equal[i / 64] |= uint64_t{1} << (i % 64);
        equal.push_back({range.offset + i * kConfirmBlock, kConfirmBlock});
      }
    }
    file->order.Record(header.order, equal);
  }
  return OutcomeOf(files_.Trim());
}

// Under the file's lock to the end: a record of the journal must be gone before anything newer is applied.
int DataApplier::WriteGroup(BackingFile& file, std::span<const ApplyPiece> pieces,
                            std::span<const std::byte> payload) {
  const std::lock_guard lock(groups_->mutex());
  if (const int error = groups_->Begin(file.id, pieces, payload); error != 0) {
    if (groups_->stuck()) {
      broken_.store(error, std::memory_order_release);
    }
    return error;
  }
  int error = domain_.Write(file, pieces, payload);
  if (error == 0) {
    error = domain_.PersistHeld(file);
  }
  const int ended = groups_->End();
  // Part of it may be there, or the record: the copy is of no use before it is opened again.
  error = error != 0 ? error : ended;
  if (error != 0) {
    broken_.store(error, std::memory_order_release);
  }
  return error;
}

// Storage first: a frame that is refused needs no undo.
int DataApplier::Prepare(BackingFile& file, std::span<const ApplyPiece> pieces) {
  int error = Reserve(file, pieces);
  if (undo_ == nullptr) {
    return error;
  }
  if (error == ENOSPC) {  // a resync that cannot go on for the sake of its undo would be no use
    bool made = false;
    if (const int refused = undo_->MakeRoom(made); refused != 0 || !made) {
      return refused != 0 ? refused : error;
    }
    error = Reserve(file, pieces);
  }
  return error != 0 ? error : undo_->BeforeWrite(file, pieces);
}

int DataApplier::Reserve(BackingFile& file, std::span<const ApplyPiece> pieces) {
  for (const ApplyPiece& piece : pieces) {
    const uint64_t begin = piece.offset / kPageSize * kPageSize;
    const uint64_t piece_end = piece.offset + piece.length;
    const uint64_t end = std::min((piece_end + kPageSize - 1) / kPageSize * kPageSize, kLargestFile);
    if (file.allocated.Contains(begin, end)) {
      continue;
    }
    int error = Allocate(file.fd->get(), begin, end);
    if (error == EFBIG) {  // perhaps only for the sake of the whole page
      error = Allocate(file.fd->get(), begin, piece_end);
    }
    if (error == EOPNOTSUPP && domain_.kind() != Domain::kPmem) {
      return 0;
    }
    if (error != 0) {
      return error;
    }
    file.allocated.Add(begin, end);
  }
  return 0;
}

}  // namespace pmirror::server
