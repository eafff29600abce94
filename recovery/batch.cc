// SPDX-License-Identifier: BSD-3-Clause
// How captures lie over each other, and the form in which they travel. See batch.h.
#include "recovery/batch.h"

#include <linux/falloc.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>

#include "replication/crc32c.h"

namespace pmirror::recovery {
namespace {

constexpr uint32_t kMagic = 0x54414250;  // "PBAT"
constexpr uint32_t kVersion = 1;
constexpr uint64_t kPerhapsGone = 1;

// header | operation_count x (uint32_t length, bytes) | data_count x DataEntry | payload. Little-endian.
struct Header {
  uint32_t magic;
  uint32_t version;
  uint64_t number;
  uint64_t mount_number;
  uint64_t cut_at;
  uint64_t first_operation;
  uint64_t operation_count;
  uint64_t operations_bytes;
  uint64_t data_count;
  uint64_t payload_bytes;
  uint32_t reserved;
  uint32_t crc;  // of all of it, this field zero
};
static_assert(sizeof(Header) == 80);

struct DataEntry {
  uint64_t file;
  uint64_t offset;
  uint64_t length;
  uint64_t flags;
};
static_assert(sizeof(DataEntry) == 32);

template <typename T>
void AppendValue(std::vector<std::byte>& out, const T& value) {
  const auto bytes = std::as_bytes(std::span(&value, 1));
  out.insert(out.end(), bytes.begin(), bytes.end());
}

// What of a file's earlier bytes the operation erases.
Extent ErasedBy(const NamespaceOp& op) {
  if (op.kind == OpKind::kTruncate) {
    return {op.extent.offset, INT64_MAX - op.extent.offset};
  }
  const bool erases =
      op.kind == OpKind::kAllocate && (op.flags & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) != 0;
  return erases ? op.extent : Extent{};
}

}  // namespace

void BatchBuilder::Erase(Pieces& pieces, Extent extent) {
  auto it = pieces.upper_bound(extent.offset);
  if (it != pieces.begin()) {
    --it;
  }
  while (it != pieces.end() && it->first < extent.end()) {
    const uint64_t begin = it->first;
    Piece piece = it->second;
    if (piece.end <= extent.offset) {
      ++it;
      continue;
    }
    it = pieces.erase(it);
    bytes_ -= piece.end - begin;
    if (begin < extent.offset) {
      Put(pieces, {begin, extent.offset - begin}, piece);
    }
    if (piece.end > extent.end()) {
      Piece rest = piece;
      rest.at += extent.end() - begin;
      Put(pieces, {extent.end(), piece.end - extent.end()}, rest);
      it = pieces.find(extent.end());
    }
  }
}

// Requires: nothing lies there.
void BatchBuilder::Put(Pieces& pieces, Extent extent, const Piece& piece) {
  Piece put{.end = extent.end(), .bytes = piece.bytes, .at = piece.at};
  if (extent.length < piece.bytes->size() / 2) {  // a small rest does not keep a large payload in memory
    const auto begin = piece.bytes->begin() + static_cast<ptrdiff_t>(piece.at);
    put.bytes =
        std::make_shared<const std::vector<std::byte>>(begin, begin + static_cast<ptrdiff_t>(extent.length));
    put.at = 0;
  }
  pieces[extent.offset] = std::move(put);
  bytes_ += extent.length;
}

void BatchBuilder::EraseWhatItDoes(const NamespaceOp& op) {
  const Extent erased = ErasedBy(op);
  const auto it = files_.find(op.target);
  if (erased.empty() || it == files_.end()) {
    return;
  }
  File& file = it->second;
  Erase(file.pieces, erased);
  if (op.kind == OpKind::kTruncate) {
    file.reach = std::min(file.reach, op.extent.offset);
  }
  if (file.pieces.empty() && file.reach == 0) {
    files_.erase(it);
  }
}

void BatchBuilder::Lay(FileId file, std::span<const WireRange> ranges,
                       std::shared_ptr<const std::vector<std::byte>> payload) {
  auto& [pieces, reach] = files_[file];
  Piece piece{.end = 0, .bytes = std::move(payload), .at = 0};
  for (const WireRange& range : ranges) {
    const Extent extent{range.offset, range.length};
    Erase(pieces, extent);
    Put(pieces, extent, piece);
    piece.at += range.length;
    reach = std::max(reach, extent.end());
  }
}

void BatchBuilder::Append(uint64_t number, Operation encoded, const NamespaceOp& op) {
  first_operation_ = operations_.empty() ? number : first_operation_;
  operations_.push_back(std::move(encoded));
  EraseWhatItDoes(op);
  NoteWhoMayBeGone(op);
}

void BatchBuilder::NoteWhoMayBeGone(const NamespaceOp& op) {
  if (op.kind == OpKind::kForgetOrphan || op.kind == OpKind::kUnlink) {
    perhaps_gone_.insert(op.target);
  } else if (op.kind == OpKind::kRename && op.replaced != FileId::kNone) {
    perhaps_gone_.insert(op.replaced);
  }
}

void BatchBuilder::Restart(uint64_t first, std::vector<Operation> operations) {
  first_operation_ = first;
  operations_ = std::move(operations);
  for (const Operation& encoded : operations_) {
    if (const Result<NamespaceOp> op = DecodeNamespaceOp(*encoded); op.ok()) {
      NoteWhoMayBeGone(op.value());
    }
  }
}

void BatchBuilder::Lay(const BatchBuilder& later) {
  first_operation_ = operations_.empty() ? later.first_operation_ : first_operation_;
  for (const Operation& encoded : later.operations_) {
    operations_.push_back(encoded);
    if (const Result<NamespaceOp> op = DecodeNamespaceOp(*encoded); op.ok()) {
      EraseWhatItDoes(op.value());
    }
  }
  perhaps_gone_.insert(later.perhaps_gone_.begin(), later.perhaps_gone_.end());
  for (const auto& [id, file] : later.files_) {
    File& mine = files_[id];
    mine.reach = std::max(mine.reach, file.reach);
    for (const auto& [offset, piece] : file.pieces) {
      const Extent extent{offset, piece.end - offset};
      Erase(mine.pieces, extent);
      Put(mine.pieces, extent, piece);
    }
  }
}

std::vector<std::byte> BatchBuilder::Encode(const Identity& identity) const {
  Header header{.magic = kMagic,
                .version = kVersion,
                .number = identity.number,
                .mount_number = identity.mount_number,
                .cut_at = identity.cut_at,
                .first_operation = first_operation_,
                .operation_count = operations_.size(),
                .operations_bytes = 0,
                .data_count = 0,
                .payload_bytes = bytes_,
                .reserved = 0,
                .crc = 0};
  for (const Operation& operation : operations_) {
    header.operations_bytes += sizeof(uint32_t) + operation->size();
  }
  std::vector<DataEntry> entries;
  for (const auto& [id, file] : files_) {
    const uint64_t flags = perhaps_gone_.contains(id) ? kPerhapsGone : 0;
    for (const auto& [offset, piece] : file.pieces) {
      entries.push_back({.file = Raw(id), .offset = offset, .length = piece.end - offset, .flags = flags});
    }
    if (file.pieces.empty() || file.pieces.rbegin()->second.end < file.reach) {
      entries.push_back({.file = Raw(id), .offset = file.reach, .length = 0, .flags = flags});
    }
  }
  header.data_count = entries.size();
  std::vector<std::byte> out;
  out.reserve(sizeof header + header.operations_bytes + entries.size() * sizeof(DataEntry) + bytes_);
  AppendValue(out, header);
  for (const Operation& operation : operations_) {
    AppendValue(out, static_cast<uint32_t>(operation->size()));
    out.insert(out.end(), operation->begin(), operation->end());
  }
  const auto table = std::as_bytes(std::span(entries));
  out.insert(out.end(), table.begin(), table.end());
  for (const auto& [id, file] : files_) {
    for (const auto& [offset, piece] : file.pieces) {
      const auto begin = piece.bytes->begin() + static_cast<ptrdiff_t>(piece.at);
      out.insert(out.end(), begin, begin + static_cast<ptrdiff_t>(piece.end - offset));
    }
  }
  header.crc = Crc32c(0, out);
  std::memcpy(out.data(), &header, sizeof header);
  return out;
}

absl::StatusOr<BatchView> BatchView::Parse(std::span<const std::byte> bytes) {
  const auto damaged = [](const char* what) { return absl::DataLossError(what); };
  Header header{};
  if (bytes.size() < sizeof header) {
    return damaged("the batch is cut short");
  }
  std::memcpy(&header, bytes.data(), sizeof header);
  if (header.magic != kMagic || header.version != kVersion) {
    return damaged("no batch of this version");
  }
  const uint32_t crc = std::exchange(header.crc, 0);
  std::span<const std::byte> rest = bytes.subspan(sizeof header);
  if (Crc32c(Crc32c(0, std::as_bytes(std::span(&header, 1))), rest) != crc) {
    return damaged("the batch is cut short or damaged: its checksum is wrong");
  }
  BatchView view;
  view.identity_ = {.number = header.number, .mount_number = header.mount_number, .cut_at = header.cut_at};
  view.first_operation_ = header.first_operation;
  for (uint64_t i = 0; i < header.operation_count; ++i) {
    uint32_t length = 0;
    if (rest.size() < sizeof length) {
      return damaged("an operation of the batch is cut short");
    }
    std::memcpy(&length, rest.data(), sizeof length);
    rest = rest.subspan(sizeof length);
    if (rest.size() < length) {
      return damaged("an operation of the batch is cut short");
    }
    view.operations_.push_back(rest.first(length));
    rest = rest.subspan(length);
  }
  if (header.data_count > rest.size() / sizeof(DataEntry)) {
    return damaged("the batch's table of data is cut short");
  }
  std::span<const std::byte> payload = rest.subspan(header.data_count * sizeof(DataEntry));
  for (uint64_t i = 0; i < header.data_count; ++i) {
    DataEntry entry{};
    std::memcpy(&entry, rest.data() + i * sizeof entry, sizeof entry);
    if (entry.length > payload.size() || entry.offset > INT64_MAX - entry.length) {
      return damaged("a range of the batch is impossible");
    }
    view.data_.push_back({.file = FileId{entry.file},
                          .perhaps_gone = (entry.flags & kPerhapsGone) != 0,
                          .offset = entry.offset,
                          .bytes = payload.first(entry.length)});
    payload = payload.subspan(entry.length);
  }
  if (!payload.empty()) {
    return damaged("bytes are left over at the end of the batch");
  }
  return view;
}

}  // namespace pmirror::recovery
