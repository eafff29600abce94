// SPDX-License-Identifier: BSD-3-Clause
// Kernel interfaces for write tracking that are newer than the headers of the distributions we build on.
// Source: the kernel's Documentation/admin-guide/mm/pagemap.rst (PAGEMAP_SCAN, since 6.7) and
// Documentation/admin-guide/mm/userfaultfd.rst (asynchronous write protection, since 6.7; on unpopulated
// pages, since 6.4). The numbers are the kernel's stable interface.
#pragma once

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#include <cstdint>

namespace pmirror::uapi {

// Argument of PAGEMAP_SCAN on a descriptor of /proc/PID/pagemap. The ioctl returns how many regions it
// filled, or -1.
struct PagemapScan {
  uint64_t size;  // of this struct
  uint64_t flags;
  uint64_t start;     // address, page aligned
  uint64_t end;       // address, page aligned
  uint64_t walk_end;  // out: where the walk stopped
  uint64_t vec;       // address of PageRegion[vec_len]
  uint64_t vec_len;
  uint64_t max_pages;  // 0: no limit
  uint64_t category_inverted;
  uint64_t category_mask;  // a page matches when it has all of these
  uint64_t category_anyof_mask;
  uint64_t return_mask;  // categories to return
};
static_assert(sizeof(PagemapScan) == 96);

struct PageRegion {
  uint64_t start;
  uint64_t end;
  uint64_t categories;
};
static_assert(sizeof(PageRegion) == 24);

constexpr unsigned long kPagemapScan = _IOWR('f', 16, PagemapScan);
constexpr uint64_t kScanWpMatching = 1u << 0;    // write-protect what matched
constexpr uint64_t kScanCheckWpAsync = 1u << 1;  // EPERM when a mapping in the range is not registered

constexpr uint64_t kPageIsWritten = 1u << 1;
constexpr uint64_t kPageIsPresent = 1u << 3;

constexpr uint64_t kUffdFeatureWpUnpopulated = 1u << 13;
constexpr uint64_t kUffdFeatureWpAsync = 1u << 15;

}  // namespace pmirror::uapi
