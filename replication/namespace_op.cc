// SPDX-License-Identifier: BSD-3-Clause
// The encoding of a namespace operation: one fixed block, then the three strings one after the other.
#include "replication/namespace_op.h"

#include <sys/stat.h>

#include <cstring>
#include <string_view>
#include <type_traits>

namespace pmirror {
namespace {

struct WireOp {
  uint8_t kind;  // OpKind
  uint8_t reserved[3];
  uint32_t flags;
  uint64_t target;
  uint64_t parent;
  uint64_t new_parent;
  uint64_t replaced;
  uint32_t mode;
  uint32_t uid;
  uint32_t gid;
  uint32_t reserved2;
  uint64_t rdev;
  int64_t atime_seconds;
  int64_t atime_nanoseconds;
  int64_t mtime_seconds;
  int64_t mtime_nanoseconds;
  uint64_t offset;
  uint64_t length;
  uint64_t generation;
  uint16_t name_length;
  uint16_t new_name_length;
  uint32_t value_length;
};
static_assert(sizeof(WireOp) == 128 && std::has_unique_object_representations_v<WireOp>);

constexpr size_t kMaxValue = 65536;         // XATTR_SIZE_MAX of Linux
constexpr size_t kMaxSymlinkTarget = 4095;  // PATH_MAX without the NUL

constexpr Error kMalformed{EBADMSG, "decode a namespace operation"};

bool IsEntryName(std::string_view name) {
  return !name.empty() && name.size() <= kMaxNameBytes && name != "." && name != ".." &&
         name.find('/') == std::string_view::npos && name.find('\0') == std::string_view::npos;
}

bool IsAttributeName(std::string_view name) {
  return !name.empty() && name.size() <= kMaxNameBytes && name.find('\0') == std::string_view::npos;
}

bool IsSymlinkTarget(std::string_view target) {
  return !target.empty() && target.size() <= kMaxSymlinkTarget && target.find('\0') == std::string_view::npos;
}

// What each kind needs of its names and its value; strings a kind does not use are empty.
bool StringsFit(const NamespaceOp& op) {
  switch (op.kind) {
    case OpKind::kCreate:
      return IsEntryName(op.name) && op.new_name.empty() &&
             (S_ISLNK(op.mode) ? IsSymlinkTarget(op.value) : op.value.empty());
    case OpKind::kLink:
    case OpKind::kUnlink:
    case OpKind::kRemoveDirectory:
      return IsEntryName(op.name) && op.new_name.empty() && op.value.empty();
    case OpKind::kRename:
      return IsEntryName(op.name) && IsEntryName(op.new_name) && op.value.empty();
    case OpKind::kSetXattr:
      return IsAttributeName(op.name) && op.new_name.empty();
    case OpKind::kRemoveXattr:
      return IsAttributeName(op.name) && op.new_name.empty() && op.value.empty();
    case OpKind::kCreateOrphan:
    case OpKind::kForgetOrphan:
    case OpKind::kSetMode:
    case OpKind::kSetOwner:
    case OpKind::kSetTimes:
    case OpKind::kTruncate:
    case OpKind::kAllocate:
      return op.name.empty() && op.new_name.empty() && op.value.empty();
  }
  return false;
}

bool KnownKind(uint8_t kind) {
  return kind >= static_cast<uint8_t>(OpKind::kCreate) && kind <= static_cast<uint8_t>(OpKind::kAllocate);
}

bool FixedPartFits(const WireOp& wire) {
  const uint64_t limit = INT64_MAX;
  return KnownKind(wire.kind) && wire.reserved[0] == 0 && wire.reserved[1] == 0 && wire.reserved[2] == 0 &&
         wire.reserved2 == 0 && wire.target != 0 && wire.value_length <= kMaxValue && wire.offset <= limit &&
         wire.length <= limit - wire.offset;
}

void Append(std::vector<std::byte>& out, const void* bytes, size_t count) {
  const auto* from = static_cast<const std::byte*>(bytes);
  out.insert(out.end(), from, from + count);
}

}  // namespace

void Encode(const NamespaceOp& op, std::vector<std::byte>& out) {
  WireOp wire{};
  wire.kind = static_cast<uint8_t>(op.kind);
  wire.flags = op.flags;
  wire.target = Raw(op.target);
  wire.parent = Raw(op.parent);
  wire.new_parent = Raw(op.new_parent);
  wire.replaced = Raw(op.replaced);
  wire.mode = op.mode;
  wire.uid = op.uid;
  wire.gid = op.gid;
  wire.rdev = op.rdev;
  wire.atime_seconds = op.atime.seconds;
  wire.atime_nanoseconds = op.atime.nanoseconds;
  wire.mtime_seconds = op.mtime.seconds;
  wire.mtime_nanoseconds = op.mtime.nanoseconds;
  wire.offset = op.extent.offset;
  wire.length = op.extent.length;
  wire.generation = op.generation;
  wire.name_length = static_cast<uint16_t>(op.name.size());
  wire.new_name_length = static_cast<uint16_t>(op.new_name.size());
  wire.value_length = static_cast<uint32_t>(op.value.size());
  out.reserve(out.size() + sizeof wire + op.name.size() + op.new_name.size() + op.value.size());
  Append(out, &wire, sizeof wire);
  Append(out, op.name.data(), op.name.size());
  Append(out, op.new_name.data(), op.new_name.size());
  Append(out, op.value.data(), op.value.size());
}

Result<NamespaceOp> DecodeNamespaceOp(std::span<const std::byte> bytes) {
  WireOp wire;
  if (bytes.size() < sizeof wire) {
    return kMalformed;
  }
  std::memcpy(&wire, bytes.data(), sizeof wire);
  const size_t strings = size_t{wire.name_length} + wire.new_name_length + wire.value_length;
  if (!FixedPartFits(wire) || bytes.size() - sizeof wire != strings) {
    return kMalformed;
  }
  const char* text = reinterpret_cast<const char*>(bytes.data()) + sizeof wire;
  NamespaceOp op;
  op.kind = static_cast<OpKind>(wire.kind);
  op.flags = wire.flags;
  op.target = FileId{wire.target};
  op.parent = FileId{wire.parent};
  op.new_parent = FileId{wire.new_parent};
  op.replaced = FileId{wire.replaced};
  op.mode = wire.mode;
  op.uid = wire.uid;
  op.gid = wire.gid;
  op.rdev = wire.rdev;
  op.atime = {wire.atime_seconds, wire.atime_nanoseconds};
  op.mtime = {wire.mtime_seconds, wire.mtime_nanoseconds};
  op.extent = {wire.offset, wire.length};
  op.generation = wire.generation;
  op.name.assign(text, wire.name_length);
  op.new_name.assign(text + wire.name_length, wire.new_name_length);
  op.value.assign(text + wire.name_length + wire.new_name_length, wire.value_length);
  if (!StringsFit(op)) {
    return kMalformed;
  }
  return op;
}

const char* Name(OpKind kind) {
  switch (kind) {
    case OpKind::kCreate:
      return "create";
    case OpKind::kCreateOrphan:
      return "create_orphan";
    case OpKind::kLink:
      return "link";
    case OpKind::kUnlink:
      return "unlink";
    case OpKind::kRemoveDirectory:
      return "remove_directory";
    case OpKind::kRename:
      return "rename";
    case OpKind::kForgetOrphan:
      return "forget_orphan";
    case OpKind::kSetMode:
      return "set_mode";
    case OpKind::kSetOwner:
      return "set_owner";
    case OpKind::kSetTimes:
      return "set_times";
    case OpKind::kSetXattr:
      return "set_xattr";
    case OpKind::kRemoveXattr:
      return "remove_xattr";
    case OpKind::kTruncate:
      return "truncate";
    case OpKind::kAllocate:
      return "allocate";
  }
  return "unknown";
}

}  // namespace pmirror
