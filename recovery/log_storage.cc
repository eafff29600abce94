// SPDX-License-Identifier: BSD-3-Clause
// The machine's file systems as storage of logs. See log_storage.h.
#include "recovery/log_storage.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "replication/unique_fd.h"

namespace pmirror::recovery {
namespace {

absl::Status Failed(const char* what, const std::string& path) {
  return absl::ErrnoToStatus(errno, absl::StrCat(what, " ", path));
}

class RealFile : public LogFile {
 public:
  RealFile(UniqueFd fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}

  absl::StatusOr<uint64_t> Size() override {
    struct stat status {};
    if (::fstat(fd_.get(), &status) != 0) {
      return Failed("look at", path_);
    }
    return static_cast<uint64_t>(status.st_size);
  }

  absl::StatusOr<std::string> Read(uint64_t offset, size_t length) override {
    std::string bytes(length, '\0');
    size_t have = 0;
    for (ssize_t got = 1; got != 0 && have < length;) {
      got = ::pread(fd_.get(), bytes.data() + have, length - have, static_cast<off_t>(offset + have));
      if (got < 0 && errno == EIO) {
        return absl::DataLossError(absl::StrCat("the medium cannot read all of ", path_));
      }
      if (got < 0 && errno != EINTR) {
        return Failed("read", path_);
      }
      have += got > 0 ? static_cast<size_t>(got) : 0;
    }
    bytes.resize(have);
    return bytes;
  }

  absl::Status Write(uint64_t offset, std::span<const std::byte> bytes) override {
    for (size_t at = 0; at < bytes.size();) {
      const ssize_t written =
          ::pwrite(fd_.get(), bytes.data() + at, bytes.size() - at, static_cast<off_t>(offset + at));
      if (written < 0 && errno != EINTR) {
        return Failed("write", path_);
      }
      at += written > 0 ? static_cast<size_t>(written) : 0;
    }
    return absl::OkStatus();
  }

  absl::Status Truncate(uint64_t size) override {
    return ::ftruncate(fd_.get(), static_cast<off_t>(size)) == 0 ? absl::OkStatus() : Failed("cut", path_);
  }

  absl::Status Sync() override {
    return ::fdatasync(fd_.get()) == 0 ? absl::OkStatus() : Failed("make durable", path_);
  }

 private:
  const UniqueFd fd_;
  const std::string path_;
};

class RealStorage : public LogStorage {
 public:
  absl::StatusOr<std::unique_ptr<LogFile>> Open(const std::string& path) override {
    return OpenWith(path, O_RDWR, "open");
  }

  absl::StatusOr<std::unique_ptr<LogFile>> Create(const std::string& path) override {
    // Another inode, not the old one made empty: of that the kernel may remember a failed sync.
    if (const absl::Status removed = Remove(path); !removed.ok()) {
      return removed;
    }
    return OpenWith(path, O_RDWR | O_CREAT | O_EXCL, "make");
  }

  absl::Status Rename(const std::string& from, const std::string& to) override {
    return ::rename(from.c_str(), to.c_str()) == 0 ? absl::OkStatus()
                                                   : Failed("rename", absl::StrCat(from, " to ", to));
  }

  absl::Status Remove(const std::string& path) override {
    return ::unlink(path.c_str()) == 0 || errno == ENOENT ? absl::OkStatus() : Failed("remove", path);
  }

  absl::Status SyncDirectory(const std::string& path) override {
    const size_t slash = path.rfind('/');
    const std::string name = slash == std::string::npos ? "." : path.substr(0, slash + 1);
    const UniqueFd directory(::open(name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    return directory.valid() && ::fsync(directory.get()) == 0 ? absl::OkStatus()
                                                              : Failed("make durable the directory", name);
  }

 private:
  static absl::StatusOr<std::unique_ptr<LogFile>> OpenWith(const std::string& path, int flags,
                                                           const char* what) {
    UniqueFd fd(::open(path.c_str(), flags | O_CLOEXEC, 0600));
    if (!fd.valid()) {
      return Failed(what, path);
    }
    return std::make_unique<RealFile>(std::move(fd), path);
  }
};

}  // namespace

LogStorage& LogStorage::Real() {
  static RealStorage storage;
  return storage;
}

}  // namespace pmirror::recovery
