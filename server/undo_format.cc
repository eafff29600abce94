// SPDX-License-Identifier: BSD-3-Clause
// See undo_format.h.
#include "server/undo_format.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"

namespace pmirror::server {
namespace {

using recovery::TreeItem;

class Writer {
 public:
  template <typename Number>
  Writer& Put(Number number) {
    static_assert(std::is_integral_v<Number>);
    const auto bytes = std::as_bytes(std::span(&number, 1));
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
    return *this;
  }
  Writer& Text(const std::string& text) {
    Put(static_cast<uint32_t>(text.size()));
    const auto bytes = std::as_bytes(std::span(text));
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
    return *this;
  }
  std::vector<std::byte> Take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

// Once something was not there, everything that follows is 0 or empty, and good() is false.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : rest_(bytes) {}

  template <typename Number>
  Number Get() {
    Number number{};
    const std::span<const std::byte> bytes = Bytes(sizeof number);
    if (good_) {
      std::memcpy(&number, bytes.data(), sizeof number);
    }
    return number;
  }
  std::string Text() {
    const std::span<const std::byte> bytes = Bytes(Get<uint32_t>());
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }
  std::span<const std::byte> Rest() { return std::exchange(rest_, {}); }
  bool good() const { return good_; }
  bool all() const { return good_ && rest_.empty(); }

 private:
  std::span<const std::byte> Bytes(size_t length) {
    good_ = good_ && length <= rest_.size();
    if (!good_) {
      return {};
    }
    const std::span<const std::byte> bytes = rest_.first(length);
    rest_ = rest_.subspan(length);
    return bytes;
  }

  std::span<const std::byte> rest_;
  bool good_ = true;
};

OpTime GetTime(Reader& reader) {
  OpTime time;
  time.seconds = reader.Get<int64_t>();
  time.nanoseconds = reader.Get<int64_t>();
  return time;
}

}  // namespace

std::vector<std::byte> EncodePoint(const UndoPoint& point) {
  const recovery::VolumeRecord& record = point.record;
  Writer writer;
  return writer.Text(recovery::UuidText(record.volume))
      .Put(record.generation)
      .Put(Raw(record.epoch))
      .Put(record.mount_number)
      .Put(record.operation)
      .Put(static_cast<uint8_t>(record.clean))
      .Text(record.boot)
      .Take();
}

std::optional<UndoPoint> DecodePoint(std::span<const std::byte> payload) {
  Reader reader(payload);
  UndoPoint point;
  const std::optional<Uuid> volume = recovery::ParseUuid(reader.Text());
  point.record.generation = reader.Get<uint64_t>();
  point.record.epoch = Epoch{reader.Get<uint64_t>()};
  point.record.mount_number = reader.Get<uint64_t>();
  point.record.operation = reader.Get<uint64_t>();
  point.record.clean = reader.Get<uint8_t>() != 0;
  point.record.boot = reader.Text();
  if (!volume || !reader.all()) {
    return std::nullopt;
  }
  point.record.volume = *volume;
  return point;
}

std::vector<std::byte> EncodeItem(const TreeItem& item) {
  Writer writer;
  writer.Text(item.path).Put(Raw(item.id)).Put(item.mode).Put(item.uid).Put(item.gid);
  writer.Put(item.size).Put(item.rdev).Text(item.target).Put(item.xattr_crc).Put(item.links);
  writer.Put(item.atime.seconds).Put(item.atime.nanoseconds);
  writer.Put(item.mtime.seconds).Put(item.mtime.nanoseconds);
  writer.Put(static_cast<uint8_t>(item.orphan)).Put(static_cast<uint32_t>(item.xattrs.size()));
  for (const auto& [name, value] : item.xattrs) {
    writer.Text(name).Text(value);
  }
  return writer.Take();
}

std::optional<TreeItem> DecodeItem(std::span<const std::byte> payload) {
  Reader reader(payload);
  TreeItem item;
  item.path = reader.Text();
  item.id = FileId{reader.Get<uint64_t>()};
  item.mode = reader.Get<uint32_t>();
  item.uid = reader.Get<uint32_t>();
  item.gid = reader.Get<uint32_t>();
  item.size = reader.Get<uint64_t>();
  item.rdev = reader.Get<uint64_t>();
  item.target = reader.Text();
  item.xattr_crc = reader.Get<uint32_t>();
  item.links = reader.Get<uint64_t>();
  item.atime = GetTime(reader);
  item.mtime = GetTime(reader);
  item.orphan = reader.Get<uint8_t>() != 0;
  for (auto count = reader.Get<uint32_t>(); count > 0 && reader.good(); --count) {
    std::string name = reader.Text();
    item.xattrs.emplace_back(std::move(name), reader.Text());
  }
  return reader.all() ? std::optional(std::move(item)) : std::nullopt;
}

std::vector<std::byte> EncodeTreeEnd(uint64_t items) { return Writer().Put(items).Take(); }

std::optional<uint64_t> DecodeTreeEnd(std::span<const std::byte> payload) {
  Reader reader(payload);
  const auto items = reader.Get<uint64_t>();
  return reader.all() ? std::optional(items) : std::nullopt;
}

std::vector<std::byte> EncodeBytesHead(FileId file, const Extent& extent, bool hole) {
  return Writer().Put(Raw(file)).Put(extent.offset).Put(extent.length).Put(static_cast<uint8_t>(hole)).Take();
}

std::optional<UndoBytes> DecodeBytes(std::span<const std::byte> payload) {
  Reader reader(payload);
  UndoBytes bytes;
  bytes.file = FileId{reader.Get<uint64_t>()};
  bytes.extent.offset = reader.Get<uint64_t>();
  bytes.extent.length = reader.Get<uint64_t>();
  bytes.hole = reader.Get<uint8_t>() != 0;
  if (!reader.good()) {
    return std::nullopt;
  }
  bytes.bytes = reader.Rest();
  const bool fits = bytes.bytes.size() == (bytes.hole ? 0 : bytes.extent.length) &&
                    bytes.extent.length <= INT64_MAX - std::min<uint64_t>(bytes.extent.offset, INT64_MAX);
  return fits ? std::optional(bytes) : std::nullopt;
}

absl::Status UndoContents::Add(uint32_t kind, std::span<const std::byte> payload,
                               absl::FunctionRef<absl::Status(const UndoBytes&)> on_bytes) {
  const auto malformed = [&] {
    return absl::InvalidArgumentError(
        absl::StrCat("a record of kind ", kind, " is malformed or out of place"));
  };
  switch (static_cast<UndoKind>(kind)) {
    case UndoKind::kPoint: {
      std::optional<UndoPoint> decoded = DecodePoint(payload);
      if (!decoded || has_point_) {
        return malformed();
      }
      point = *std::move(decoded);
      has_point_ = true;
      return absl::OkStatus();
    }
    case UndoKind::kItem: {
      std::optional<TreeItem> item = DecodeItem(payload);
      if (!item || !has_point_ || complete_) {
        return malformed();
      }
      tree.push_back(*std::move(item));
      return absl::OkStatus();
    }
    case UndoKind::kTreeEnd:
      complete_ = has_point_ && !complete_ && DecodeTreeEnd(payload) == tree.size();
      return complete_ ? absl::OkStatus() : malformed();
    case UndoKind::kBytes: {
      const std::optional<UndoBytes> bytes = DecodeBytes(payload);
      return bytes && complete_ ? on_bytes(*bytes) : malformed();
    }
  }
  return malformed();
}

}  // namespace pmirror::server
