// SPDX-License-Identifier: BSD-3-Clause
// One change of a volume's tree, as it travels in the payload of a frame of kind `namespace_op`, and its encoding.
//
// An operation names objects by id and entries by (parent id, name), never by path, so that it means the same on every copy whatever
// was renamed before. It records what the primary has already done, not what a program asked for: a replica applies it without
// deciding anything (no umask, no permission check, no "if exists").
//
// Used by the daemons only (it allocates). The table of kinds with the fields each uses is in docs/internals/data-protocol.md.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "replication/result.h"
#include "replication/types.h"

namespace pmirror {

enum class OpKind : uint8_t {
  kCreate =
      1,  // target, parent, name, mode (type bits and permissions), uid, gid, rdev, value (symlink target, else empty)
  kCreateOrphan,  // target, mode, uid, gid: an object without a name (O_TMPFILE)
  kLink,          // target, parent, name: another name; gives an orphan its first one
  kUnlink,  // target, parent, name; flags: kOpOrphaned when it was the last name and the primary holds the object open.
            // A resync parks objects so that only change their place, directories with their content too
  kRemoveDirectory,  // target, parent, name
  kRename,           // target, parent, name, new_parent, new_name, replaced (kNone when nothing was);
                     // flags: kOpExchange, kOpOrphaned (the replaced object is still open)
  kForgetOrphan,     // target: the last handle of an orphan is closed
  kSetMode,          // target, mode
  kSetOwner,  // target, uid, gid (UINT32_MAX: unchanged), mode (after the change: setuid bits may have been cleared)
  kSetTimes,     // target, atime, mtime
  kSetXattr,     // target, name (attribute), value
  kRemoveXattr,  // target, name (attribute)
  kTruncate,     // target, extent.offset (new size), generation
  kAllocate,     // target, extent, flags (fallocate mode bits), generation
};

// Values of NamespaceOp::flags; kAllocate uses fallocate(2)'s own bits instead.
constexpr uint32_t kOpExchange = 1;
constexpr uint32_t kOpOrphaned = 2;

// Nanoseconds are UTIME_OMIT (utimensat(2)) where a time stays as it is.
struct OpTime {
  int64_t seconds = 0;
  int64_t nanoseconds = 0;
  friend bool operator==(const OpTime&, const OpTime&) = default;
};

struct NamespaceOp {
  OpKind kind = OpKind::kCreate;
  uint32_t flags = 0;
  FileId target = FileId::kNone;
  FileId parent = FileId::kNone;
  FileId new_parent = FileId::kNone;
  FileId replaced = FileId::kNone;
  uint32_t mode = 0;
  uint32_t uid = 0;
  uint32_t gid = 0;
  uint64_t rdev = 0;
  OpTime atime;
  OpTime mtime;
  Extent extent;
  uint64_t generation = 0;  // size generation of `target` after the operation: 2 x operation number
  std::string name;
  std::string new_name;
  std::string value;
  friend bool operator==(const NamespaceOp&, const NamespaceOp&) = default;
};

// Appends the encoding of `op` to `out`.
void Encode(const NamespaceOp& op, std::vector<std::byte>& out);

// Decodes exactly `bytes`. EBADMSG when they are no well-formed operation: unknown kind, a length beyond the end, bytes left over, a name
// that is empty where one is needed, longer than kMaxNameBytes, ".", "..", or contains '/' or NUL (xattr names may contain '/').
Result<NamespaceOp> DecodeNamespaceOp(std::span<const std::byte> bytes);

const char* Name(OpKind kind);

}  // namespace pmirror
