// SPDX-License-Identifier: BSD-3-Clause
// fsync and its kin. This process's stores first; then the kernel's call, which takes the rest (writes, other
// processes) to the daemon through FUSE and returns its verdict.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "interpose/next_call.h"
#include "interpose/pmirror.h"
#include "interpose/sync.h"

namespace pmirror::interpose {
namespace {

constexpr Extent kWholeFile{0, INT64_MAX & ~(uint64_t{kPageSize} - 1)};

// 0, or -1 with errno: our share of a sync of one file.
int OurShare(int fd, Extent range) {
  Runtime* runtime = Runtime::Get();
  uint64_t inode = 0;
  if (runtime == nullptr || runtime->maps().empty()) {
    return 0;
  }
  Volume* volume = runtime->VolumeOfDescriptor(fd, inode);
  if (volume == nullptr) {
    return 0;
  }
  const Error synced = SyncFile(*runtime, *volume, FileId{inode}, range);
  if (!synced.ok()) {
    errno = Fail(synced, PlaceOf(PMIRROR_ACTION_SYNC, *volume, FileId{inode}));
    return -1;
  }
  return 0;
}

// The range in whole pages; count 0 means "to the end".
Extent PagesOf(off64_t offset, off64_t count) {
  const uint64_t first = static_cast<uint64_t>(offset) & ~(uint64_t{kPageSize} - 1);
  const uint64_t past = count == 0
                            ? kWholeFile.length
                            : (static_cast<uint64_t>(offset) + static_cast<uint64_t>(count) + kPageSize - 1) &
                                  ~(uint64_t{kPageSize} - 1);
  return {first, past - first};
}

}  // namespace

// The parameters' names in libc's headers are reserved ones.
// NOLINTBEGIN(readability-inconsistent-declaration-parameter-name)
extern "C" {

int fsync(int fd) {
  const int ours = OurShare(fd, kWholeFile);
  const int rest = Next(Call::k_fsync, &::fsync)(fd);
  return ours == 0 ? rest : ours;
}

int fdatasync(int fd) {
  const int ours = OurShare(fd, kWholeFile);
  const int rest = Next(Call::k_fdatasync, &::fdatasync)(fd);
  return ours == 0 ? rest : ours;
}

// The kernel's own call would not reach the daemon; a caller that waits for the data means to have it safe,
// so it gets fdatasync.
int sync_file_range(int fd, off64_t offset, off64_t count, unsigned flags) {
  const int checked = Next(Call::k_sync_file_range, &::sync_file_range)(fd, offset, count, flags);
  Runtime* runtime = Runtime::Get();
  uint64_t inode = 0;
  const unsigned waits = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WAIT_AFTER;
  if (checked != 0 || runtime == nullptr || (flags & waits) == 0 ||
      runtime->VolumeOfDescriptor(fd, inode) == nullptr) {
    return checked;
  }
  const int ours = OurShare(fd, PagesOf(offset, count));
  const int rest = Next(Call::k_fdatasync, &::fdatasync)(fd);
  return ours == 0 ? rest : ours;
}

int syncfs(int fd) noexcept {
  Runtime* runtime = Runtime::Get();
  struct stat status;
  const int saved_errno = errno;
  if (runtime != nullptr && runtime->volume_count() != 0 && ::fstat(fd, &status) == 0) {
    if (Volume* volume = runtime->VolumeOfDevice(status.st_dev); volume != nullptr) {
      const Error synced = SyncVolume(*runtime, *volume);
      if (!synced.ok()) {
        errno = Fail(synced, PlaceOf(PMIRROR_ACTION_SYNC, *volume, FileId::kNone));
        return -1;
      }
    }
  }
  errno = saved_errno;
  return Next(Call::k_syncfs, &::syncfs)(fd);
}

// Cannot fail; what could not be replicated stays dirty and is in the log.
void sync() noexcept {
  Runtime* runtime = Runtime::Get();
  for (uint32_t i = 0; runtime != nullptr && i < runtime->volume_count(); ++i) {
    const Error synced = SyncVolume(*runtime, runtime->volume(i));
    if (!synced.ok()) {
      Fail(synced, PlaceOf(PMIRROR_ACTION_SYNC, runtime->volume(i), FileId::kNone));
    }
  }
  Next(Call::k_sync, &::sync)();
}
}
// NOLINTEND(readability-inconsistent-declaration-parameter-name)

}  // namespace pmirror::interpose
