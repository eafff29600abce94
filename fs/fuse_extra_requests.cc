// SPDX-License-Identifier: BSD-3-Clause
// The requests that libfuse 3.14 does not know (FUSE_TMPFILE, FUSE_SYNCFS), answered in the kernel's own
// words.
#include <sys/uio.h>

#include "fs/fuse_operations.h"

namespace pmirror::fs {
namespace {

void FillAttributes(const struct stat& from, fuse_attr& to) {
  to.ino = from.st_ino;
  to.size = static_cast<uint64_t>(from.st_size);
  to.blocks = static_cast<uint64_t>(from.st_blocks);
  to.atime = static_cast<uint64_t>(from.st_atim.tv_sec);
  to.mtime = static_cast<uint64_t>(from.st_mtim.tv_sec);
  to.ctime = static_cast<uint64_t>(from.st_ctim.tv_sec);
  to.atimensec = static_cast<uint32_t>(from.st_atim.tv_nsec);
  to.mtimensec = static_cast<uint32_t>(from.st_mtim.tv_nsec);
  to.ctimensec = static_cast<uint32_t>(from.st_ctim.tv_nsec);
  to.mode = from.st_mode;
  to.nlink = static_cast<uint32_t>(from.st_nlink);
  to.uid = from.st_uid;
  to.gid = from.st_gid;
  to.blksize = static_cast<uint32_t>(from.st_blksize);
}

bool ReplyRaw(int device, const RawRequest& request, int error, std::span<char> body) {
  fuse_out_header header{};
  header.unique = request.header().unique;
  header.error = -error;
  header.len = static_cast<uint32_t>(sizeof(header) + body.size());
  iovec parts[2] = {{.iov_base = &header, .iov_len = sizeof(header)},
                    {.iov_base = body.data(), .iov_len = body.size()}};
  return ::writev(device, parts, body.empty() ? 1 : 2) >= 0;
}

void AnswerTmpFile(FuseContext& context, const RawRequest& request, int device) {
  const std::optional<fuse_create_in> in = request.Creation();
  if (!in) {
    ReplyRaw(device, request, EINVAL, {});
    return;
  }
  Result<CreatedFile> created = context.file_system.CreateUnnamed(
      FileId{request.header().nodeid}, in->mode, static_cast<int>(in->flags), request.caller());
  if (!created.ok()) {
    ReplyRaw(device, request, created.error().code, {});
    return;
  }
  const Entry& entry = created.value().entry;
  struct {
    fuse_entry_out entry{};
    fuse_open_out open{};
  } out;
  out.entry.nodeid = Raw(entry.inode->id());
  out.entry.entry_valid = static_cast<uint64_t>(kEntrySeconds);
  out.entry.attr_valid = static_cast<uint64_t>(kAttributeSeconds);
  FillAttributes(entry.attributes, out.entry.attr);
  const InodeMode::Opened mode = created.value().handle->mode;
  out.open.open_flags = (mode.direct_io ? FOPEN_DIRECT_IO : 0) | (mode.keep_cache ? FOPEN_KEEP_CACHE : 0);
  out.open.fh = context.Keep(std::move(created.value().handle));
  if (!ReplyRaw(device, request, 0, {reinterpret_cast<char*>(&out), sizeof(out)})) {
    context.file_system.Release(context.Take(out.open.fh));
    context.file_system.Forget(entry.inode->id(), 1);
  }
}

}  // namespace

bool AnswerBeyondLibfuse(FuseContext& context, const RawRequest& request, int device) {
  if (request.opcode() == FUSE_TMPFILE) {
    AnswerTmpFile(context, request, device);
    return true;
  }
  if (request.opcode() == FUSE_SYNCFS) {
    ReplyRaw(device, request, context.file_system.SyncVolume(), {});
    return true;
  }
  return false;
}

}  // namespace pmirror::fs
