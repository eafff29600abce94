// SPDX-License-Identifier: BSD-3-Clause
// The index of a backing directory. See backing_index.h.
#include "server/backing_index.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cstring>
#include <mutex>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "fmt/format.h"
#include "recovery/inventory.h"

namespace pmirror::server {
namespace {

constexpr char kOrphansDirectory[] = "orphans";

absl::Status Failed(int error, const std::string& what) { return absl::ErrnoToStatus(error, what); }

// `get` is lgetxattr for an entry (which is not followed) and getxattr for DescriptorPath (which must be).
Result<FileId> ReadId(const std::string& path, decltype(&::getxattr) get) {
  uint64_t raw = 0;
  const ssize_t length = get(path.c_str(), recovery::kIdXattr, &raw, sizeof raw);
  if (length == sizeof raw) {
    return FileId{raw};
  }
  if (length >= 0 || errno == ENODATA || errno == ERANGE) {
    return FileId::kNone;
  }
  return Error::FromErrno("read an object's id");
}

UniqueFd OpenDirectory(int parent, const char* name) {
  return UniqueFd(::openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NOATIME | O_CLOEXEC));
}

}  // namespace

std::string OrphanName(FileId id) { return fmt::format("{:016x}", Raw(id)); }

std::string DescriptorPath(int fd) { return absl::StrCat("/proc/self/fd/", fd); }

// Enters every directory of the tree once, by handle, so that one descriptor is enough however deep the tree
// is.
class BackingIndex::Walk {
 public:
  Walk(BackingIndex& index, dev_t device) : index_(index), device_(device) {}

  absl::Status From(UniqueFd directory, const std::string& path) {
    absl::Status status = Directory(std::move(directory), path);
    while (status.ok() && !waiting_.empty()) {
      const auto [handle, next] = std::move(waiting_.back());
      waiting_.pop_back();
      Result<UniqueFd> fd = index_.OpenHandle(handle, O_RDONLY | O_DIRECTORY | O_NOATIME);
      status = fd.ok() ? Directory(std::move(fd).value(), next)
                       : Failed(fd.error().code, absl::StrCat("open directory ", next));
    }
    return status;
  }

 private:
  absl::Status Directory(UniqueFd directory, const std::string& path) {
    struct Closer {
      void operator()(DIR* stream) const { ::closedir(stream); }
    };
    const std::unique_ptr<DIR, Closer> stream(::fdopendir(directory.get()));
    if (stream == nullptr) {
      return Failed(errno, absl::StrCat("read directory ", path));
    }
    const int fd = directory.Release();  // owned by the stream now
    for (;;) {
      errno = 0;
      const dirent* const entry = ::readdir(stream.get());
      if (entry == nullptr) {
        return errno == 0 ? absl::OkStatus() : Failed(errno, absl::StrCat("read directory ", path));
      }
      const std::string name = entry->d_name;
      if (name == "." || name == ".." || (path.empty() && name == recovery::kOwnDirectory)) {
        continue;
      }
      if (absl::Status status = Entry(fd, name, absl::StrCat(path, path.empty() ? "" : "/", name));
          !status.ok()) {
        return status;
      }
    }
  }

  absl::Status Entry(int directory, const std::string& name, const std::string& path) {
    struct stat info {};
    if (::fstatat(directory, name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) {
      return Failed(errno, absl::StrCat("look at ", path));
    }
    if (info.st_dev != device_) {
      Report(path + " (another file system is mounted there)");
      return absl::OkStatus();
    }
    Result<std::string> handle = index_.HandleOf(directory, name.c_str());
    if (!handle.ok()) {
      return Failed(handle.error().code, absl::StrCat("take the file handle of ", path));
    }
    absl::Status status = Identify(directory, name, path, handle.value());
    if (status.ok() && S_ISDIR(info.st_mode)) {
      waiting_.emplace_back(std::move(handle).value(), path);
    }
    return status;
  }

  absl::Status Identify(int directory, const std::string& name, const std::string& path,
                        const std::string& handle) {
    const Result<FileId> id = index_.IdOfEntry(directory, name.c_str());
    if (!id.ok()) {
      return Failed(id.error().code, absl::StrCat("read the id of ", path));
    }
    if (id.value() == FileId::kNone) {
      Report(path);
      return absl::OkStatus();
    }
    const auto [at, fresh] = index_.handles_.emplace(Raw(id.value()), handle);
    if (!fresh && at->second != handle) {  // equal: another name of the same object
      return absl::DataLossError(absl::StrCat("two objects carry the id ", Raw(id.value()), ", one is ", path,
                                              ": a copy was made behind pmirror's back; remove the copy, or "
                                              "its attribute ",
                                              recovery::kIdXattr));
    }
    return absl::OkStatus();
  }

  void Report(const std::string& path) {
    if (++index_.without_id_count_ <= kMaxReported) {
      index_.without_id_.push_back(path);
    }
  }

  BackingIndex& index_;
  const dev_t device_;
  std::vector<std::pair<std::string, std::string>> waiting_;  // directories to enter: handle and path
};

absl::StatusOr<std::unique_ptr<BackingIndex>> BackingIndex::Build(const std::string& directory) {
  std::unique_ptr<BackingIndex> index(new BackingIndex);
  if (absl::Status status = index->Prepare(directory); !status.ok()) {
    return status;
  }
  struct stat info {};
  if (::fstat(index->root(), &info) != 0) {
    return Failed(errno, absl::StrCat("look at ", directory));
  }
  Walk walk(*index, info.st_dev);
  for (const char* const start : {".", ".pmirror/orphans"}) {
    UniqueFd fd = OpenDirectory(index->root(), start);
    if (!fd.valid()) {
      return Failed(errno, absl::StrCat("open ", directory, "/", start));
    }
    const std::string path = start[1] == '\0' ? "" : start;
    if (absl::Status status = walk.From(std::move(fd), path); !status.ok()) {
      return absl::Status(status.code(),
                          absl::StrCat("backing directory ", directory, ": ", status.message()));
    }
  }
  return index;
}

absl::Status BackingIndex::Prepare(const std::string& directory) {
  root_ = OpenDirectory(AT_FDCWD, directory.c_str());
  if (!root_.valid()) {
    return Failed(errno, absl::StrCat("open backing directory ", directory));
  }
  const Result<FileId> id = ReadId(DescriptorPath(root()), &::getxattr);
  if (!id.ok()) {
    return Failed(id.error().code, absl::StrCat("read the id of backing directory ", directory,
                                                ": needs root and a file system with trusted.* attributes"));
  }
  if (id.value() != FileId::kRoot && id.value() != FileId::kNone) {
    return absl::FailedPreconditionError(absl::StrCat("backing directory ", directory, " is object ",
                                                      Raw(id.value()),
                                                      " of a volume and not the root of one"));
  }
  const uint64_t root_id = Raw(FileId::kRoot);
  if (id.value() == FileId::kNone &&
      ::fsetxattr(root(), recovery::kIdXattr, &root_id, sizeof root_id, 0) != 0) {
    return Failed(errno, absl::StrCat("store an id in backing directory ", directory,
                                      ": needs root and a file system with trusted.* attributes"));
  }
  if ((::mkdirat(root(), recovery::kOwnDirectory, 0700) != 0 && errno != EEXIST) ||
      !(own_ = OpenDirectory(root(), recovery::kOwnDirectory)).valid() ||
      (::mkdirat(own_.get(), kOrphansDirectory, 0700) != 0 && errno != EEXIST) ||
      !(orphans_ = OpenDirectory(own_.get(), kOrphansDirectory)).valid()) {
    return Failed(errno, absl::StrCat("make ", directory, "/.pmirror/orphans"));
  }
  const Result<std::string> handle = HandleOf(root(), "");
  if (!handle.ok()) {
    return Failed(handle.error().code,
                  absl::StrCat("take a file handle in backing directory ", directory,
                               ": choose a file system that has them (ext4, xfs, tmpfs)"));
  }
  handles_.emplace(Raw(FileId::kRoot), handle.value());
  const Result<UniqueFd> proof = Open(FileId::kRoot, O_PATH);
  if (!proof.ok()) {
    return Failed(proof.error().code, absl::StrCat("open a file handle in backing directory ", directory,
                                                   ": needs CAP_DAC_READ_SEARCH"));
  }
  return absl::OkStatus();
}

Result<std::string> BackingIndex::HandleOf(int directory, const char* name) const {
  alignas(file_handle) char storage[sizeof(file_handle) + MAX_HANDLE_SZ] = {};
  auto* const handle = reinterpret_cast<file_handle*>(storage);
  handle->handle_bytes = MAX_HANDLE_SZ;
  int mount_id = 0;
  if (::name_to_handle_at(directory, name, handle, &mount_id, name[0] == '\0' ? AT_EMPTY_PATH : 0) != 0) {
    return Error::FromErrno("take an object's handle");
  }
  std::string packed(sizeof handle->handle_type + handle->handle_bytes, '\0');
  std::memcpy(packed.data(), &handle->handle_type, sizeof handle->handle_type);
  std::memcpy(packed.data() + sizeof handle->handle_type, handle->f_handle, handle->handle_bytes);
  return packed;
}

Result<UniqueFd> BackingIndex::Open(FileId id, int flags) const {
  std::string handle;  // short ones need no memory
  {
    const std::shared_lock lock(mutex_);
    const auto at = handles_.find(Raw(id));
    if (at == handles_.end()) {
      return Error{ENOENT, "find an object by its id"};
    }
    handle = at->second;
  }
  return OpenHandle(handle, flags);
}

Result<UniqueFd> BackingIndex::OpenHandle(const std::string& packed, int flags) const {
  alignas(file_handle) char storage[sizeof(file_handle) + MAX_HANDLE_SZ];
  auto* const handle = reinterpret_cast<file_handle*>(storage);
  std::memcpy(&handle->handle_type, packed.data(), sizeof handle->handle_type);
  handle->handle_bytes = static_cast<unsigned>(packed.size() - sizeof handle->handle_type);
  std::memcpy(handle->f_handle, packed.data() + sizeof handle->handle_type, handle->handle_bytes);
  UniqueFd fd(::open_by_handle_at(root(), handle, flags | O_CLOEXEC));
  if (!fd.valid()) {
    return errno == ESTALE ? Error{ENOENT, "open an object by its handle"}
                           : Error::FromErrno("open an object by its handle");
  }
  return fd;
}

bool BackingIndex::Contains(FileId id) const {
  const std::shared_lock lock(mutex_);
  return handles_.contains(Raw(id));
}

Result<FileId> BackingIndex::IdOfEntry(int directory, const char* name) const {
  return ReadId(absl::StrCat(DescriptorPath(directory), "/", name), &::lgetxattr);
}

int BackingIndex::Insert(FileId id, int directory, const char* name) {
  Result<std::string> handle = HandleOf(directory, name);
  if (!handle.ok()) {
    return handle.error().code;
  }
  const std::unique_lock lock(mutex_);
  handles_.insert_or_assign(Raw(id), std::move(handle).value());
  return 0;
}

void BackingIndex::Erase(FileId id) {
  const std::unique_lock lock(mutex_);
  handles_.erase(Raw(id));
}

size_t BackingIndex::size() const {
  const std::shared_lock lock(mutex_);
  return handles_.size() - 1;
}

}  // namespace pmirror::server
