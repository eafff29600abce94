// SPDX-License-Identifier: BSD-3-Clause
// Translation between libfuse's low-level operations and FileSystem. One function a request, all of one
// shape: unpack, call, reply.
#define FUSE_USE_VERSION 314
#include "fs/fuse_operations.h"

#include <fuse3/fuse_lowlevel.h>

#include <vector>

#include "fs/interruption.h"

namespace pmirror::fs {
namespace {

constexpr unsigned kMaxWriteBytes = 1024 * 1024;
constexpr unsigned kMaxBackground = 64;

FuseContext& ContextOf(fuse_req_t req) { return *static_cast<FuseContext*>(fuse_req_userdata(req)); }

bool Signalled(void* req) { return fuse_req_interrupted(static_cast<fuse_req_t>(req)) != 0; }

// A request under way on this thread.
class Request {
 public:
  explicit Request(fuse_req_t req)
      : context(ContextOf(req)),
        fs(context.file_system),
        interruption_(fuse_req_ctx(req)->pid, &Signalled, req),
        req_(req) {}

  Caller caller() const {
    const fuse_ctx* ctx = fuse_req_ctx(req_);
    return {.uid = ctx->uid, .gid = ctx->gid, .umask = ctx->umask, .pid = ctx->pid};
  }
  bool drops_privileges() const {
    const RawRequest* raw = RawRequest::Current();
    return raw != nullptr && raw->DropsPrivileges();
  }
  void Error(int code) { fuse_reply_err(req_, code); }

  FuseContext& context;
  FileSystem& fs;

 private:
  ScopedInterruption interruption_;
  fuse_req_t req_;
};

FileHandle& FileOf(const fuse_file_info* fi) { return *reinterpret_cast<FileHandle*>(fi->fh); }
DirectoryHandle& DirectoryOf(const fuse_file_info* fi) { return *reinterpret_cast<DirectoryHandle*>(fi->fh); }

double AttributeTimeout(FileSystem& fs, FileId id) {
  return fs.AttributesAreVolatile(id) ? 0 : kAttributeSeconds;
}

fuse_entry_param EntryParam(FileSystem& fs, const Entry& entry) {
  fuse_entry_param param{};
  param.ino = Raw(entry.inode->id());
  param.attr = entry.attributes;
  param.attr_timeout = AttributeTimeout(fs, entry.inode->id());
  param.entry_timeout = kEntrySeconds;
  return param;
}

void ReplyEntry(fuse_req_t req, Request& request, const Result<Entry>& entry) {
  if (!entry.ok()) {
    return request.Error(entry.error().code);
  }
  const fuse_entry_param param = EntryParam(request.fs, entry.value());
  if (fuse_reply_entry(req, &param) != 0) {
    request.fs.Forget(entry.value().inode->id(), 1);  // nobody received it
  }
}

void ReplyAttributes(fuse_req_t req, Request& request, FileId id, const Result<struct stat>& attributes) {
  if (!attributes.ok()) {
    return request.Error(attributes.error().code);
  }
  fuse_reply_attr(req, &attributes.value(), AttributeTimeout(request.fs, id));
}

void DescribeOpen(const FileHandle& file, fuse_file_info* fi) {
  fi->fh = reinterpret_cast<uint64_t>(&file);
  fi->direct_io = file.mode.direct_io ? 1 : 0;
  fi->keep_cache = file.mode.keep_cache ? 1 : 0;
}

// --- session ---

void Init(void* userdata, fuse_conn_info* conn) {
  const auto* context = static_cast<const FuseContext*>(userdata);
  // No write-back cache: a write has reached the replicas when it returns. No splicing: requests are looked
  // at (raw_request.h), and what was read is fixed before it is sent. No remote locks (file_system.h).
  // Killpriv comes as its second version, which libfuse does not know.
  const unsigned unwanted = FUSE_CAP_WRITEBACK_CACHE | FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE |
                            FUSE_CAP_SPLICE_MOVE | FUSE_CAP_POSIX_LOCKS | FUSE_CAP_FLOCK_LOCKS |
                            FUSE_CAP_AUTO_INVAL_DATA | FUSE_CAP_HANDLE_KILLPRIV | FUSE_CAP_EXPORT_SUPPORT |
                            FUSE_CAP_POSIX_ACL;
  const unsigned wanted = FUSE_CAP_ASYNC_READ | FUSE_CAP_ATOMIC_O_TRUNC | FUSE_CAP_DONT_MASK |
                          FUSE_CAP_READDIRPLUS | FUSE_CAP_READDIRPLUS_AUTO | FUSE_CAP_ASYNC_DIO |
                          FUSE_CAP_PARALLEL_DIROPS | FUSE_CAP_CACHE_SYMLINKS | FUSE_CAP_EXPLICIT_INVAL_DATA |
                          (context->has_acls ? FUSE_CAP_POSIX_ACL : 0U);
  conn->want = (conn->want & ~unwanted) | (conn->capable & wanted);
  conn->max_write = kMaxWriteBytes;
  conn->max_background = kMaxBackground;
  conn->congestion_threshold = kMaxBackground * 3 / 4;
  conn->time_gran = 1;
}

// --- names and inodes ---

void Lookup(fuse_req_t req, fuse_ino_t parent, const char* name) {
  Request request(req);
  ReplyEntry(req, request, request.fs.Lookup(FileId{parent}, name));
}

void Forget(fuse_req_t req, fuse_ino_t ino, uint64_t lookups) {
  ContextOf(req).file_system.Forget(FileId{ino}, lookups);
  fuse_reply_none(req);
}

void ForgetMulti(fuse_req_t req, size_t count, fuse_forget_data* forgets) {
  for (size_t i = 0; i < count; ++i) {
    ContextOf(req).file_system.Forget(FileId{forgets[i].ino}, forgets[i].nlookup);
  }
  fuse_reply_none(req);
}

void ReadLink(fuse_req_t req, fuse_ino_t ino) {
  Request request(req);
  const Result<std::string> value = request.fs.ReadLink(FileId{ino});
  value.ok() ? static_cast<void>(fuse_reply_readlink(req, value.value().c_str()))
             : request.Error(value.error().code);
}

void StatFs(fuse_req_t req, fuse_ino_t) {
  Request request(req);
  const Result<struct statvfs> statistics = request.fs.Statistics();
  statistics.ok() ? static_cast<void>(fuse_reply_statfs(req, &statistics.value()))
                  : request.Error(statistics.error().code);
}

void GetAttr(fuse_req_t req, fuse_ino_t ino, fuse_file_info*) {
  Request request(req);
  ReplyAttributes(req, request, FileId{ino}, request.fs.GetAttributes(FileId{ino}));
}

std::optional<timespec> TimeChange(int to_set, int set_bit, int now_bit, const timespec& value) {
  if ((to_set & now_bit) != 0) {
    return timespec{.tv_sec = 0, .tv_nsec = UTIME_NOW};
  }
  return (to_set & set_bit) != 0 ? std::optional(value) : std::nullopt;
}

void SetAttr(fuse_req_t req, fuse_ino_t ino, struct stat* attr, int to_set, fuse_file_info* fi) {
  Request request(req);
  AttributeChange change;
  if ((to_set & FUSE_SET_ATTR_MODE) != 0) {
    change.mode = attr->st_mode;
  }
  if ((to_set & FUSE_SET_ATTR_UID) != 0) {
    change.uid = attr->st_uid;
  }
  if ((to_set & FUSE_SET_ATTR_GID) != 0) {
    change.gid = attr->st_gid;
  }
  if ((to_set & FUSE_SET_ATTR_SIZE) != 0) {
    change.size = static_cast<uint64_t>(attr->st_size);
  }
  change.atime = TimeChange(to_set, FUSE_SET_ATTR_ATIME, FUSE_SET_ATTR_ATIME_NOW, attr->st_atim);
  change.mtime = TimeChange(to_set, FUSE_SET_ATTR_MTIME, FUSE_SET_ATTR_MTIME_NOW, attr->st_mtim);
  change.by_handle = fi != nullptr;
  change.drop_privileges = request.drops_privileges();
  ReplyAttributes(req, request, FileId{ino}, request.fs.SetAttributes(FileId{ino}, change, request.caller()));
}

// --- the tree ---

void MkNod(fuse_req_t req, fuse_ino_t parent, const char* name, mode_t mode, dev_t device) {
  Request request(req);
  ReplyEntry(req, request, request.fs.MakeNode(FileId{parent}, name, mode, device, request.caller()));
}

void MkDir(fuse_req_t req, fuse_ino_t parent, const char* name, mode_t mode) {
  Request request(req);
  ReplyEntry(req, request,
             request.fs.MakeNode(FileId{parent}, name, (mode & 07777) | S_IFDIR, 0, request.caller()));
}

void SymLink(fuse_req_t req, const char* value, fuse_ino_t parent, const char* name) {
  Request request(req);
  ReplyEntry(req, request, request.fs.MakeSymlink(FileId{parent}, name, value, request.caller()));
}

void Link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t new_parent, const char* new_name) {
  Request request(req);
  ReplyEntry(req, request, request.fs.Link(FileId{ino}, FileId{new_parent}, new_name));
}

void Unlink(fuse_req_t req, fuse_ino_t parent, const char* name) {
  Request request(req);
  request.Error(request.fs.Unlink(FileId{parent}, name));
}

void RmDir(fuse_req_t req, fuse_ino_t parent, const char* name) {
  Request request(req);
  request.Error(request.fs.RemoveDirectory(FileId{parent}, name));
}

void Rename(fuse_req_t req, fuse_ino_t parent, const char* name, fuse_ino_t new_parent, const char* new_name,
            unsigned flags) {
  Request request(req);
  request.Error(request.fs.Rename(FileId{parent}, name, FileId{new_parent}, new_name, flags));
}

// --- files ---

void Create(fuse_req_t req, fuse_ino_t parent, const char* name, mode_t mode, fuse_file_info* fi) {
  Request request(req);
  Result<CreatedFile> created = request.fs.Create(FileId{parent}, name, mode, fi->flags, request.caller());
  if (!created.ok()) {
    return request.Error(created.error().code);
  }
  const fuse_entry_param param = EntryParam(request.fs, created.value().entry);
  DescribeOpen(*created.value().handle, fi);
  fi->fh = request.context.Keep(std::move(created.value().handle));
  if (fuse_reply_create(req, &param, fi) != 0) {
    request.fs.Release(request.context.Take(fi->fh));
    request.fs.Forget(created.value().entry.inode->id(), 1);
  }
}

void Open(fuse_req_t req, fuse_ino_t ino, fuse_file_info* fi) {
  Request request(req);
  Result<std::unique_ptr<FileHandle>> file =
      request.fs.Open(FileId{ino}, fi->flags, request.caller(), request.drops_privileges());
  if (!file.ok()) {
    return request.Error(file.error().code);
  }
  DescribeOpen(*file.value(), fi);
  fi->fh = request.context.Keep(std::move(file).value());
  if (fuse_reply_open(req, fi) != 0) {
    request.fs.Release(request.context.Take(fi->fh));
  }
}

void Release(fuse_req_t req, fuse_ino_t, fuse_file_info* fi) {
  Request request(req);
  request.fs.Release(request.context.Take(fi->fh));
  request.Error(0);
}

void Read(fuse_req_t req, fuse_ino_t, size_t size, off_t offset, fuse_file_info* fi) {
  Request request(req);
  thread_local std::vector<char> buffer;
  if (buffer.size() < size) {
    buffer.resize(size);
  }
  const Result<size_t> n = request.fs.Read(FileOf(fi), {buffer.data(), size}, static_cast<uint64_t>(offset));
  n.ok() ? static_cast<void>(fuse_reply_buf(req, buffer.data(), n.value())) : request.Error(n.error().code);
}

void Write(fuse_req_t req, fuse_ino_t, const char* data, size_t size, off_t offset, fuse_file_info* fi) {
  Request request(req);
  const WriteOptions options{.flags = fi->flags,
                             .from_page_cache = fi->writepage != 0,
                             .drop_privileges = request.drops_privileges()};
  const Result<size_t> n =
      request.fs.Write(FileOf(fi), {data, size}, static_cast<uint64_t>(offset), options, request.caller());
  n.ok() ? static_cast<void>(fuse_reply_write(req, n.value())) : request.Error(n.error().code);
}

void FSync(fuse_req_t req, fuse_ino_t, int data_only, fuse_file_info* fi) {
  Request request(req);
  request.Error(request.fs.Sync(FileOf(fi), data_only != 0));
}

void FAllocate(fuse_req_t req, fuse_ino_t, int mode, off_t offset, off_t length, fuse_file_info* fi) {
  Request request(req);
  const Extent extent{.offset = static_cast<uint64_t>(offset), .length = static_cast<uint64_t>(length)};
  request.Error(request.fs.Allocate(FileOf(fi), mode, extent, request.caller()));
}

void LSeek(fuse_req_t req, fuse_ino_t, off_t offset, int whence, fuse_file_info* fi) {
  Request request(req);
  const Result<uint64_t> at = request.fs.Seek(FileOf(fi), static_cast<uint64_t>(offset), whence);
  at.ok() ? static_cast<void>(fuse_reply_lseek(req, static_cast<off_t>(at.value())))
          : request.Error(at.error().code);
}

void CopyFileRange(fuse_req_t req, fuse_ino_t, off_t from_offset, fuse_file_info* from, fuse_ino_t,
                   off_t to_offset, fuse_file_info* to, size_t length, int flags) {
  Request request(req);
  if (flags != 0) {
    return request.Error(EINVAL);
  }
  const Result<size_t> n = request.fs.CopyRange(FileOf(from), static_cast<uint64_t>(from_offset), FileOf(to),
                                                static_cast<uint64_t>(to_offset), length, request.caller());
  n.ok() ? static_cast<void>(fuse_reply_write(req, n.value())) : request.Error(n.error().code);
}

// --- directories ---

void OpenDir(fuse_req_t req, fuse_ino_t ino, fuse_file_info* fi) {
  Request request(req);
  Result<std::unique_ptr<DirectoryHandle>> opened = request.fs.OpenDirectory(FileId{ino});
  if (!opened.ok()) {
    return request.Error(opened.error().code);
  }
  DirectoryHandle* directory = opened.value().release();
  {
    std::lock_guard lock(request.context.mutex);
    request.context.directories.insert(directory);
  }
  fi->fh = reinterpret_cast<uint64_t>(directory);
  if (fuse_reply_open(req, fi) != 0) {
    std::lock_guard lock(request.context.mutex);
    request.context.directories.erase(directory);
    delete directory;
  }
}

void ReleaseDir(fuse_req_t req, fuse_ino_t, fuse_file_info* fi) {
  Request request(req);
  {
    std::lock_guard lock(request.context.mutex);
    request.context.directories.erase(&DirectoryOf(fi));
  }
  delete &DirectoryOf(fi);
  request.Error(0);
}

void ReadDir(fuse_req_t req, fuse_ino_t, size_t size, off_t offset, fuse_file_info* fi) {
  Request request(req);
  std::vector<char> buffer(size);
  size_t used = 0;
  const int error = request.fs.List(DirectoryOf(fi), static_cast<uint64_t>(offset), /*lookup=*/false,
                                    [&](const FileSystem::DirectoryEntry& entry) {
                                      struct stat attributes {};
                                      attributes.st_ino = entry.inode;
                                      attributes.st_mode = entry.type;
                                      const size_t needed = fuse_add_direntry(
                                          req, buffer.data() + used, size - used, entry.name, &attributes,
                                          static_cast<off_t>(entry.position));
                                      const bool fits = needed <= size - used;
                                      used += fits ? needed : 0;
                                      return fits;
                                    });
  error == 0 ? static_cast<void>(fuse_reply_buf(req, buffer.data(), used)) : request.Error(error);
}

void ReadDirPlus(fuse_req_t req, fuse_ino_t, size_t size, off_t offset, fuse_file_info* fi) {
  Request request(req);
  std::vector<char> buffer(size);
  std::vector<FileId> looked_up;
  size_t used = 0;
  const int error = request.fs.List(
      DirectoryOf(fi), static_cast<uint64_t>(offset), /*lookup=*/true,
      [&](const FileSystem::DirectoryEntry& entry) {
        fuse_entry_param param{};
        if (entry.entry != nullptr) {
          param = EntryParam(request.fs, *entry.entry);
        } else {  // no node: the kernel looks the entry up itself when it is used
          param.attr.st_ino = entry.inode;
          param.attr.st_mode = entry.type;
        }
        const size_t needed = fuse_add_direntry_plus(req, buffer.data() + used, size - used, entry.name,
                                                     &param, static_cast<off_t>(entry.position));
        const bool fits = needed <= size - used;
        used += fits ? needed : 0;
        if (fits && entry.entry != nullptr) {
          looked_up.push_back(entry.entry->inode->id());
        }
        return fits;
      });
  if ((error == 0 ? fuse_reply_buf(req, buffer.data(), used) : fuse_reply_err(req, error)) != 0 ||
      error != 0) {
    for (const FileId id : looked_up) {
      request.fs.Forget(id, 1);
    }
  }
}

void FSyncDir(fuse_req_t req, fuse_ino_t, int data_only, fuse_file_info* fi) {
  Request request(req);
  request.Error(request.fs.SyncDirectory(DirectoryOf(fi), data_only != 0));
}

// --- extended attributes ---

void SetXattr(fuse_req_t req, fuse_ino_t ino, const char* name, const char* value, size_t size, int flags) {
  Request request(req);
  request.Error(request.fs.SetXattr(FileId{ino}, name, {value, size}, flags, request.caller()));
}

void RemoveXattr(fuse_req_t req, fuse_ino_t ino, const char* name) {
  Request request(req);
  request.Error(request.fs.RemoveXattr(FileId{ino}, name));
}

void ReplyXattr(fuse_req_t req, Request& request, const Result<size_t>& n, const std::vector<char>& buffer) {
  if (!n.ok()) {
    request.Error(n.error().code);
  } else if (buffer.empty()) {
    fuse_reply_xattr(req, n.value());
  } else {
    fuse_reply_buf(req, buffer.data(), n.value());
  }
}

void GetXattr(fuse_req_t req, fuse_ino_t ino, const char* name, size_t size) {
  Request request(req);
  std::vector<char> buffer(size);
  ReplyXattr(req, request, request.fs.GetXattr(FileId{ino}, name, buffer), buffer);
}

void ListXattr(fuse_req_t req, fuse_ino_t ino, size_t size) {
  Request request(req);
  std::vector<char> buffer(size);
  ReplyXattr(req, request, request.fs.ListXattr(FileId{ino}, buffer, request.caller()), buffer);
}

fuse_lowlevel_ops MakeOperations() {
  fuse_lowlevel_ops ops{};
  ops.init = Init;
  ops.lookup = Lookup;
  ops.forget = Forget;
  ops.forget_multi = ForgetMulti;
  ops.readlink = ReadLink;
  ops.statfs = StatFs;
  ops.getattr = GetAttr;
  ops.setattr = SetAttr;
  ops.mknod = MkNod;
  ops.mkdir = MkDir;
  ops.symlink = SymLink;
  ops.link = Link;
  ops.unlink = Unlink;
  ops.rmdir = RmDir;
  ops.rename = Rename;
  ops.create = Create;
  ops.open = Open;
  ops.release = Release;
  ops.read = Read;
  ops.write = Write;
  ops.fsync = FSync;
  ops.fallocate = FAllocate;
  ops.lseek = LSeek;
  ops.copy_file_range = CopyFileRange;
  ops.opendir = OpenDir;
  ops.releasedir = ReleaseDir;
  ops.readdir = ReadDir;
  ops.readdirplus = ReadDirPlus;
  ops.fsyncdir = FSyncDir;
  ops.setxattr = SetXattr;
  ops.removexattr = RemoveXattr;
  ops.getxattr = GetXattr;
  ops.listxattr = ListXattr;
  return ops;
}

}  // namespace

uint64_t FuseContext::Keep(std::unique_ptr<FileHandle> file) {
  std::lock_guard lock(mutex);
  files.insert(file.get());
  return reinterpret_cast<uint64_t>(file.release());
}

std::unique_ptr<FileHandle> FuseContext::Take(uint64_t fh) {
  std::unique_ptr<FileHandle> file(reinterpret_cast<FileHandle*>(fh));
  std::lock_guard lock(mutex);
  files.erase(file.get());
  return file;
}

void FuseContext::ReleaseAll() {
  for (FileHandle* file : std::exchange(files, {})) {
    file_system.Release(std::unique_ptr<FileHandle>(file));
  }
  for (DirectoryHandle* directory : std::exchange(directories, {})) {
    delete directory;
  }
  file_system.ForgetAll();
}

const fuse_lowlevel_ops& FuseOperations() {
  static const fuse_lowlevel_ops ops = MakeOperations();
  return ops;
}

}  // namespace pmirror::fs
