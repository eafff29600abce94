// SPDX-License-Identifier: BSD-3-Clause
// Write tracking by userfaultfd and PAGEMAP_SCAN; the proof of a file system is in prove_tracking.cc.
#include "replication/write_tracker.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "replication/types.h"

namespace pmirror {

Result<WriteTracker> WriteTracker::Open() {
  // The full right is refused to unprivileged processes; faults of the kernel are tracked without it all the
  // same, because asynchronous protection resolves them without asking anybody.
  int fd = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
  if (fd < 0) {
    fd = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY));
  }
  if (fd < 0) {
    return Error::FromErrno("open a userfaultfd");
  }
  UniqueFd uffd(fd);
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = uapi::kUffdFeatureWpAsync | uapi::kUffdFeatureWpUnpopulated;
  if (::ioctl(fd, UFFDIO_API, &api) != 0) {
    return Error::FromErrno("ask for asynchronous write protection");
  }
  return WriteTracker(std::move(uffd));
}

Error WriteTracker::RegisterWith(int uffd, uintptr_t address, size_t length, Tracking mode) {
  if (uffd < 0 || mode == Tracking::kNone) {
    return {EINVAL, "track writes"};
  }
  if (mode == Tracking::kWrittenPresent &&
      ::madvise(reinterpret_cast<void*>(address), length, MADV_NOHUGEPAGE) != 0 && errno != EINVAL) {
    return Error::FromErrno("forbid huge pages");
  }
  uffdio_register request{};
  request.range.start = address;
  request.range.len = length;
  request.mode = UFFDIO_REGISTER_MODE_WP;
  if (::ioctl(uffd, UFFDIO_REGISTER, &request) != 0) {
    return Error::FromErrno("register a mapping for write tracking");
  }
  return Error::Ok();
}

Error WriteTracker::Unprotect(int uffd, uintptr_t address, size_t length) {
  uffdio_writeprotect request{};
  request.range.start = address;
  request.range.len = length;
  request.mode = 0;
  if (::ioctl(uffd, UFFDIO_WRITEPROTECT, &request) != 0) {
    return Error::FromErrno("lift write protection");
  }
  return Error::Ok();
}

namespace {

// WRITTEN alone also matches absent pages that were never protected: right for the page cache, which may have
// written a dirty page back and dropped it; wrong for fsdax (FACTS).
uapi::PagemapScan ScanOf(Tracking mode, uintptr_t start, uintptr_t end, std::span<uapi::PageRegion> regions) {
  uapi::PagemapScan scan{};
  scan.size = sizeof(scan);
  scan.flags = uapi::kScanCheckWpAsync;
  scan.start = start;
  scan.end = end;
  scan.vec = reinterpret_cast<uint64_t>(regions.data());
  scan.vec_len = regions.size();
  scan.category_mask =
      uapi::kPageIsWritten | (mode == Tracking::kWrittenPresent ? uapi::kPageIsPresent : uint64_t{0});
  scan.return_mask = uapi::kPageIsWritten;
  return scan;
}

}  // namespace

Result<size_t> ScanStep(int pagemap_fd, Tracking mode, uintptr_t start, uintptr_t end,
                        std::span<uapi::PageRegion> regions, uintptr_t& next) {
  uapi::PagemapScan scan = ScanOf(mode, start, end, regions);
  scan.flags |= uapi::kScanWpMatching;
  const int filled = ::ioctl(pagemap_fd, uapi::kPagemapScan, &scan);
  if (filled < 0) {
    return Error::FromErrno("scan for written pages");
  }
  next = scan.walk_end;
  if (next <= start) {  // would loop for ever
    return Error{EIO, "scan for written pages: no progress"};
  }
  return static_cast<size_t>(filled);
}

Result<bool> AnyWritten(int pagemap_fd, Tracking mode, uintptr_t start, uintptr_t end) {
  uapi::PageRegion region{};
  uapi::PagemapScan scan = ScanOf(mode, start, end, std::span(&region, 1));
  scan.max_pages = 1;
  const int filled = ::ioctl(pagemap_fd, uapi::kPagemapScan, &scan);
  if (filled < 0) {
    return Error::FromErrno("look for written pages");
  }
  if (filled == 0 && scan.walk_end < end) {
    return Error{EIO, "look for written pages: stopped half-way"};
  }
  return filled > 0;
}

}  // namespace pmirror
