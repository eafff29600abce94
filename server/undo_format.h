// SPDX-License-Identifier: BSD-3-Clause
// What the records of an undo log say (undo_log_file.h frames them): where the way back leads, the tree that was there, and bytes of files.
// Little-endian, without padding; texts are a u32 of length and their bytes. Pure.
//
// | kind | payload |
// |---|---|
// | kPoint, first and once | UndoPoint |
// | kItem, then, one an object of the tree | TreeItem |
// | kTreeEnd, then, once | u64: how many items |
// | kBytes, any number | u64 file, u64 offset, u64 length, u8 hole; the old bytes when it is none |
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "recovery/tree_item.h"
#include "recovery/volume_record.h"

namespace pmirror::server {

enum class UndoKind : uint32_t { kPoint = 1, kItem = 2, kTreeEnd = 3, kBytes = 4 };

// The consistency point that the log leads back to.
struct UndoPoint {
  // Of the copy when the resync began; `operation` is what had been applied, and is durable.
  recovery::VolumeRecord record;
  friend bool operator==(const UndoPoint&, const UndoPoint&) = default;
};

struct UndoBytes {
  FileId file{};
  Extent extent;
  bool hole = false;
  std::span<const std::byte> bytes;  // empty for a hole; points into what was decoded
};

std::vector<std::byte> EncodePoint(const UndoPoint& point);
std::optional<UndoPoint> DecodePoint(std::span<const std::byte> payload);

std::vector<std::byte> EncodeItem(const recovery::TreeItem& item);
std::optional<recovery::TreeItem> DecodeItem(std::span<const std::byte> payload);

std::vector<std::byte> EncodeTreeEnd(uint64_t items);
std::optional<uint64_t> DecodeTreeEnd(std::span<const std::byte> payload);

// What stands in front of the bytes.
std::vector<std::byte> EncodeBytesHead(FileId file, const Extent& extent, bool hole);
std::optional<UndoBytes> DecodeBytes(std::span<const std::byte> payload);

// What a log says, record by record.
class UndoContents {
 public:
  UndoPoint point;
  recovery::Inventory tree;

  // kInvalidArgument: malformed, or out of place; what `on_bytes` answers.
  absl::Status Add(uint32_t kind, std::span<const std::byte> payload,
                   absl::FunctionRef<absl::Status(const UndoBytes&)> on_bytes);
  bool complete() const { return complete_; }  // all but bytes was there

 private:
  bool has_point_ = false;
  bool complete_ = false;
};

}  // namespace pmirror::server
