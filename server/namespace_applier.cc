// SPDX-License-Identifier: BSD-3-Clause
// Namespace operations on the backing tree. See namespace_applier.h.
#include "server/namespace_applier.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "recovery/inventory.h"

namespace pmirror::server {
namespace {

int Errno(int result) { return result == 0 ? 0 : errno; }

constexpr uint32_t kPermissions = 07777;

// Modes that can be repeated without harm; FUSE passes no others on.
bool KnownAllocateMode(uint32_t flags) {
  switch (flags) {
    case 0:
    case FALLOC_FL_KEEP_SIZE:
    case FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE:
    case FALLOC_FL_ZERO_RANGE:
    case FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE:
      return true;
    default:
      return false;
  }
}

timespec ToTimespec(const OpTime& time) {
  return {.tv_sec = time.seconds, .tv_nsec = static_cast<long>(time.nanoseconds)};
}

}  // namespace

NamespaceApplier::Applied NamespaceApplier::Apply(const NamespaceOp& op, uint64_t number) {
  if (op.kind == OpKind::kTruncate || op.kind == OpKind::kAllocate) {
    std::shared_ptr<BackingFile> file;
    const int error = ChangeSize(op, number, file);
    return {OutcomeOf(error), error == 0 ? std::move(file) : nullptr};
  }
  const int error = Dispatch(op);
  domain_.TreeChanged();
  return {OutcomeOf(error), nullptr};
}

int NamespaceApplier::Dispatch(const NamespaceOp& op) {
  switch (op.kind) {
    case OpKind::kCreate: {
      int error = 0;
      const int parent = Directory(op.parent, error);
      return parent < 0 ? error : Create(parent, op.name.c_str(), op);
    }
    case OpKind::kCreateOrphan:
      return Create(index_.orphans(), OrphanName(op.target).c_str(), op);
    case OpKind::kLink:
      return Link(op);
    case OpKind::kUnlink:
      return Unlink(op);
    case OpKind::kRemoveDirectory:
      return RemoveDirectory(op);
    case OpKind::kRename:
      return Rename(op);
    case OpKind::kForgetOrphan:
      return ForgetOrphan(op);
    case OpKind::kSetMode:
    case OpKind::kSetOwner:
    case OpKind::kSetTimes:
    case OpKind::kSetXattr:
    case OpKind::kRemoveXattr:
      return SetAttributes(op);
    case OpKind::kTruncate:
    case OpKind::kAllocate:
      break;  // ChangeSize
  }
  return EINVAL;
}

int NamespaceApplier::Create(int directory, const char* name, const NamespaceOp& op) {
  const Entry entry = LookUp(directory, name);
  if (entry.error != 0) {
    return entry.error;
  }
  if (!entry.exists) {
    return Make(directory, name, op);
  }
  const bool ours = entry.id == op.target;
  // A crash came before it got its id: then it has no content either.
  const bool unfinished = entry.id == FileId::kNone && (!S_ISREG(entry.mode) || entry.size == 0);
  if ((entry.mode & S_IFMT) != (op.mode & S_IFMT) || (!ours && !unfinished)) {
    return ESTALE;
  }
  return Complete(directory, name, op);
}

int NamespaceApplier::Make(int directory, const char* name, const NamespaceOp& op) {
  // Without permissions until it has its owner.
  int error = 0;
  if (S_ISDIR(op.mode)) {
    error = Errno(::mkdirat(directory, name, 0));
  } else if (S_ISLNK(op.mode)) {
    error = Errno(::symlinkat(op.value.c_str(), directory, name));
  } else {
    error = Errno(::mknodat(directory, name, op.mode & S_IFMT, op.rdev));
  }
  if (error == 0 && (error = Complete(directory, name, op)) != 0) {
    ::unlinkat(directory, name,
               S_ISDIR(op.mode) ? AT_REMOVEDIR : 0);  // a refused operation leaves nothing behind
  }
  return error;
}

int NamespaceApplier::Complete(int directory, const char* name, const NamespaceOp& op) {
  const uint64_t id = Raw(op.target);
  const std::string path = absl::StrCat(DescriptorPath(directory), "/", name);
  int error = Errno(::lsetxattr(path.c_str(), recovery::kIdXattr, &id, sizeof id, 0));
  if (error == 0) {
    error = Errno(::fchownat(directory, name, op.uid, op.gid, AT_SYMLINK_NOFOLLOW));
  }
  if (error == 0 && !S_ISLNK(op.mode)) {
    error = Errno(::fchmodat(directory, name, op.mode & kPermissions, 0));
  }
  return error == 0 ? index_.Insert(op.target, directory, name) : error;
}

int NamespaceApplier::Link(const NamespaceOp& op) {
  int error = 0;
  const int parent = Directory(op.parent, error);
  if (parent < 0) {
    return error;
  }
  const Entry entry = LookUp(parent, op.name.c_str());
  if (entry.error != 0 || entry.exists) {
    return entry.error != 0 || entry.id == op.target ? entry.error : ESTALE;
  }
  error = Errno(::renameat2(index_.orphans(), OrphanName(op.target).c_str(), parent, op.name.c_str(),
                            RENAME_NOREPLACE));
  if (error != ENOENT) {
    return error;
  }
  const Result<UniqueFd> object = index_.Open(op.target, O_PATH | O_NOFOLLOW);
  return object.ok() ? Errno(::linkat(object.value().get(), "", parent, op.name.c_str(), AT_EMPTY_PATH))
                     : object.error().code;
}

int NamespaceApplier::Unlink(const NamespaceOp& op) {
  int error = 0;
  const int parent = Directory(op.parent, error);
  if (parent < 0) {
    return error;
  }
  const Entry entry = LookUp(parent, op.name.c_str());
  if (entry.error != 0 || !entry.exists) {
    return entry.error;
  }
  if (entry.id != op.target) {
    return ESTALE;
  }
  if ((op.flags & kOpOrphaned) != 0) {
    return Errno(::renameat(parent, op.name.c_str(), index_.orphans(), OrphanName(op.target).c_str()));
  }
  error = entry.links == 1 ? Keep(parent, op.name.c_str(), entry) : 0;
  if (error == 0) {
    error = Errno(::unlinkat(parent, op.name.c_str(), 0));
  }
  if (error == 0 && entry.links == 1) {
    Forget(op.target);
  }
  return error;
}

int NamespaceApplier::RemoveDirectory(const NamespaceOp& op) {
  int error = 0;
  const int parent = Directory(op.parent, error);
  if (parent < 0) {
    return error;
  }
  const Entry entry = LookUp(parent, op.name.c_str());
  if (entry.error != 0 || !entry.exists) {
    return entry.error;
  }
  if (entry.id != op.target) {
    return ESTALE;
  }
  error = Errno(::unlinkat(parent, op.name.c_str(), AT_REMOVEDIR));
  if (error == 0) {
    Forget(op.target);
  }
  return error;
}

int NamespaceApplier::Rename(const NamespaceOp& op) {
  int error = 0;
  const int from = Directory(op.parent, error);
  const int to = from < 0 ? -1 : Directory(op.new_parent, error);
  if (to < 0) {
    return error;
  }
  if ((op.flags & kOpExchange) != 0) {
    return Exchange(from, to, op);
  }
  const Entry source = LookUp(from, op.name.c_str());
  const Entry target = LookUp(to, op.new_name.c_str());
  if (source.error != 0 || target.error != 0) {
    return source.error != 0 ? source.error : target.error;
  }
  if (!source.exists && target.id == op.target) {
    return 0;  // was done before
  }
  if (!source.exists || source.id != op.target || (target.exists && target.id != op.replaced)) {
    return ESTALE;
  }
  // A second name first: at no instant may the new name be missing, as it never was on the primary.
  const bool keep = (op.flags & kOpOrphaned) != 0 && target.exists && !S_ISDIR(target.mode);
  if (keep && ::linkat(to, op.new_name.c_str(), index_.orphans(), OrphanName(op.replaced).c_str(), 0) != 0 &&
      errno != EEXIST) {
    return errno;
  }
  const bool last = target.exists && !keep && (target.links == 1 || S_ISDIR(target.mode));
  error = last ? Keep(to, op.new_name.c_str(), target) : 0;
  if (error == 0) {
    error = Errno(::renameat(from, op.name.c_str(), to, op.new_name.c_str()));
  }
  if (error == 0 && last) {
    Forget(op.replaced);
  }
  return error;
}

int NamespaceApplier::Exchange(int from, int to, const NamespaceOp& op) {
  const Entry source = LookUp(from, op.name.c_str());
  const Entry target = LookUp(to, op.new_name.c_str());
  if (source.error != 0 || target.error != 0) {
    return source.error != 0 ? source.error : target.error;
  }
  if (source.exists && target.id == op.target) {
    return 0;  // was done before
  }
  if (source.id != op.target || !target.exists) {
    return ESTALE;
  }
  return Errno(::renameat2(from, op.name.c_str(), to, op.new_name.c_str(), RENAME_EXCHANGE));
}

int NamespaceApplier::ForgetOrphan(const NamespaceOp& op) {
  const std::string name = OrphanName(op.target);
  const Entry entry = LookUp(index_.orphans(), name.c_str());
  if (entry.error != 0 || !entry.exists) {
    return entry.error;
  }
  const bool last = entry.links == 1 || S_ISDIR(entry.mode);
  int error = last ? Keep(index_.orphans(), name.c_str(), entry) : 0;
  if (error == 0) {
    error = Errno(::unlinkat(index_.orphans(), name.c_str(), S_ISDIR(entry.mode) ? AT_REMOVEDIR : 0));
  }
  if (error == 0 && last) {
    Forget(op.target);
  }
  return error;
}

int NamespaceApplier::SetAttributes(const NamespaceOp& op) {
  const Result<UniqueFd> object = index_.Open(op.target, O_PATH | O_NOFOLLOW);
  if (!object.ok()) {
    return object.error().code;
  }
  const int fd = object.value().get();
  const std::string path = DescriptorPath(fd);
  switch (op.kind) {
    case OpKind::kSetMode:
      return Errno(::chmod(path.c_str(), op.mode & kPermissions));
    case OpKind::kSetOwner: {
      struct stat info {};
      const int error = Errno(::fchownat(fd, "", op.uid, op.gid, AT_EMPTY_PATH));
      if (error != 0 || ::fstat(fd, &info) != 0) {
        return error != 0 ? error : errno;
      }
      return S_ISLNK(info.st_mode) ? 0 : Errno(::chmod(path.c_str(), op.mode & kPermissions));
    }
    case OpKind::kSetTimes: {
      const timespec times[2] = {ToTimespec(op.atime), ToTimespec(op.mtime)};
      return Errno(::utimensat(fd, "", times, AT_EMPTY_PATH));
    }
    case OpKind::kSetXattr:
    case OpKind::kRemoveXattr: {
      if (absl::StartsWith(op.name, recovery::kOwnXattrPrefix)) {
        return EPERM;
      }
      if (op.kind == OpKind::kSetXattr) {
        return Errno(::setxattr(path.c_str(), op.name.c_str(), op.value.data(), op.value.size(), 0));
      }
      const int error = Errno(::removexattr(path.c_str(), op.name.c_str()));
      return error == ENODATA ? 0 : error;
    }
    default:
      return EINVAL;
  }
}

int NamespaceApplier::ChangeSize(const NamespaceOp& op, uint64_t number, std::shared_ptr<BackingFile>& file) {
  if (op.kind == OpKind::kAllocate && !KnownAllocateMode(op.flags)) {
    return EOPNOTSUPP;
  }
  file = files_.Get(op.target);
  if (file == nullptr) {
    return ENOENT;
  }
  const std::lock_guard lock(file->mutex);
  if (const int error = files_.EnsureOpen(file); error != 0) {
    return error;
  }
  const int fd = file->fd->get();
  const auto offset = static_cast<off_t>(op.extent.offset);
  int error = undo_ != nullptr ? undo_->BeforeSizeChange(*file, op) : 0;
  if (error != 0) {
    return error;
  }
  do {
    error = op.kind == OpKind::kTruncate ? Errno(::ftruncate(fd, offset))
                                         : Errno(::fallocate(fd, static_cast<int>(op.flags), offset,
                                                             static_cast<off_t>(op.extent.length)));
  } while (error == EINTR);
  struct stat info {};
  if (error != 0 || ::fstat(fd, &info) != 0) {
    return error != 0 ? error : errno;
  }
  file->size = static_cast<uint64_t>(info.st_size);
  file->allocated.Clear();
  file->order.SizeChanged(number);
  domain_.SizeChanged(*file);
  return 0;
}

int NamespaceApplier::Directory(FileId id, int& error) {
  const uint64_t before = std::exchange(last_directory_, Raw(id));
  if (const auto at = directories_.find(Raw(id)); at != directories_.end()) {
    return at->second.get();
  }
  Result<UniqueFd> fd = index_.Open(id, O_PATH | O_DIRECTORY);
  if (!fd.ok()) {
    error = fd.error().code;
    return -1;
  }
  if (directories_.size() >= kMaxDirectories) {
    auto victim = directories_.begin();
    directories_.erase(victim->first == before ? ++victim : victim);
  }
  return directories_.emplace(Raw(id), std::move(fd).value()).first->second.get();
}

NamespaceApplier::Entry NamespaceApplier::LookUp(int directory, const char* name) const {
  struct stat info {};
  if (::fstatat(directory, name, &info, AT_SYMLINK_NOFOLLOW) != 0) {
    return {.error = errno == ENOENT ? 0 : errno};
  }
  const Result<FileId> id = index_.IdOfEntry(directory, name);
  if (!id.ok()) {
    return {.error = id.error().code};
  }
  return {.error = 0,
          .exists = true,
          .id = id.value(),
          .mode = info.st_mode,
          .links = info.st_nlink - (info.st_nlink > 1 && undo_ != nullptr && S_ISREG(info.st_mode) &&
                                            undo_->Keeps(id.value(), info.st_ino)
                                        ? 1
                                        : 0),
          .size = static_cast<uint64_t>(info.st_size)};
}

int NamespaceApplier::Keep(int directory, const char* name, const Entry& entry) {
  return undo_ != nullptr && S_ISREG(entry.mode) ? undo_->BeforeLoss(directory, name, entry.id) : 0;
}

void NamespaceApplier::Forget(FileId id) {
  directories_.erase(Raw(id));
  index_.Erase(id);
  files_.Remove(id);
  if (undo_ != nullptr) {
    undo_->Lost(id);  // behind the last writer
  }
}

}  // namespace pmirror::server
