// SPDX-License-Identifier: BSD-3-Clause
// The record of a flush group and its file. See group_journal.h.
#include "server/group_journal.h"

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "recovery/inventory.h"
#include "replication/crc32c.h"
#include "replication/frame.h"

namespace pmirror::server {
namespace {

constexpr uint64_t kMagic = 0x3150524752494d50;  // "PMIRGRP1"

struct Header {
  uint64_t magic = kMagic;
  uint64_t file = 0;
  uint32_t piece_count = 0;  // WireRange each, then their bytes one after the other
  uint32_t payload_bytes = 0;
  uint32_t crc = 0;  // CRC32C of the whole record with this field 0
  uint32_t reserved = 0;
};
static_assert(sizeof(Header) == 32);

constexpr size_t kMostBytes = sizeof(Header) + size_t{2} * kMaxRanges * sizeof(WireRange) +
                              kMaxPayload;  // pieces: ranges, cut by newer ones

template <typename T>
void Append(std::vector<std::byte>& bytes, const T& value) {
  const auto part = std::as_bytes(std::span(&value, 1));
  bytes.insert(bytes.end(), part.begin(), part.end());
}

int ErrnoOf(const absl::Status& status) {
  return status.ok() ? 0 : absl::IsResourceExhausted(status) ? ENOSPC : EIO;
}

std::optional<GroupJournal::Record> Parse(std::span<const std::byte> bytes) {
  Header header;
  if (bytes.size() < sizeof header) {
    return std::nullopt;
  }
  std::memcpy(&header, bytes.data(), sizeof header);
  const uint64_t whole =
      sizeof header + uint64_t{header.piece_count} * sizeof(WireRange) + header.payload_bytes;
  if (header.magic != kMagic || whole > bytes.size()) {
    return std::nullopt;
  }
  Header zeroed = header;
  zeroed.crc = 0;
  const uint32_t crc =
      Crc32c(Crc32c(0, std::as_bytes(std::span(&zeroed, 1))), bytes.first(whole).subspan(sizeof header));
  if (crc != header.crc) {
    return std::nullopt;
  }
  GroupJournal::Record record;
  record.file = FileId{header.file};
  uint64_t payload_offset = 0;
  for (uint32_t i = 0; i < header.piece_count; ++i) {
    WireRange range;
    std::memcpy(&range, bytes.data() + sizeof header + i * sizeof range, sizeof range);
    record.pieces.push_back({range.offset, range.length, payload_offset});
    payload_offset += range.length;
  }
  const auto payload = bytes.first(whole).last(header.payload_bytes);
  record.payload.assign(payload.begin(), payload.end());
  return payload_offset == header.payload_bytes ? std::optional(std::move(record)) : std::nullopt;
}

}  // namespace

GroupJournal::GroupJournal(const std::string& backing, bool durable, recovery::LogStorage& storage)
    : path_(absl::StrCat(backing, "/", recovery::kOwnDirectory, "/group")),
      durable_(durable),
      storage_(storage) {}

absl::StatusOr<std::optional<GroupJournal::Record>> GroupJournal::Load() {
  const std::lock_guard lock(mutex_);
  absl::StatusOr<std::unique_ptr<recovery::LogFile>> file = storage_.Open(path_);
  if (absl::IsNotFound(file.status())) {
    return std::nullopt;
  }
  if (!file.ok()) {
    return file.status();
  }
  const absl::StatusOr<std::string> text = (*file)->Read(0, kMostBytes);
  if (!text.ok()) {
    return text.status();
  }
  file_ = *std::move(file);
  return Parse(std::as_bytes(std::span(*text)));
}

// Requires: the mutex is held.
absl::Status GroupJournal::Open() {
  if (file_ != nullptr) {
    return absl::OkStatus();
  }
  absl::StatusOr<std::unique_ptr<recovery::LogFile>> file = storage_.Open(path_);
  if (absl::IsNotFound(file.status())) {
    file = storage_.Create(path_);
    if (absl::Status status = file.ok() ? storage_.SyncDirectory(path_) : file.status(); !status.ok()) {
      return status;
    }
  }
  if (!file.ok()) {
    return file.status();
  }
  file_ = *std::move(file);
  return absl::OkStatus();
}

absl::Status GroupJournal::Store(std::span<const std::byte> bytes) {
  absl::Status status = file_->Write(0, bytes);
  return status.ok() && durable_ ? file_->Sync() : status;
}

int GroupJournal::Begin(FileId file, std::span<const ApplyPiece> pieces, std::span<const std::byte> payload) {
  if (absl::Status status = Open(); !status.ok()) {
    return ErrnoOf(status);
  }
  Header header;
  header.file = Raw(file);
  header.piece_count = static_cast<uint32_t>(pieces.size());
  bytes_.clear();
  Append(bytes_, header);
  for (const ApplyPiece& piece : pieces) {
    Append(bytes_, WireRange{piece.offset, piece.length});
  }
  for (const ApplyPiece& piece : pieces) {
    const auto part = payload.subspan(piece.payload_offset, piece.length);
    bytes_.insert(bytes_.end(), part.begin(), part.end());
    header.payload_bytes += static_cast<uint32_t>(piece.length);
  }
  std::memcpy(bytes_.data(), &header, sizeof header);
  header.crc = Crc32c(0, bytes_);
  std::memcpy(bytes_.data(), &header, sizeof header);
  if (absl::Status status = Store(bytes_); !status.ok()) {
    stuck_ = End() != 0;
    return stuck_ ? EIO : ErrnoOf(status);
  }
  return 0;
}

int GroupJournal::End() {
  const Header none{.magic = 0};
  absl::Status status = Store(std::as_bytes(std::span(&none, 1)));
  if (!status.ok()) {  // a sync that failed says nothing of a later one: by another file
    file_.reset();
    status = storage_.Remove(path_);
    status = status.ok() ? storage_.SyncDirectory(path_) : status;
  }
  return ErrnoOf(status);
}

}  // namespace pmirror::server
