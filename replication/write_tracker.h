// SPDX-License-Identifier: BSD-3-Clause
// Which pages of a mapping were stored to since the last look: asynchronous write protection (userfaultfd)
// and PAGEMAP_SCAN.
//
// The kernel keeps the answer in the page table of one process. Scanning takes it: a page that was reported
// is protected again and looks clean afterwards, so whoever scans owes the pages to the replicas
// (ticket_table.h).
//
// Async-signal-safe, no allocation, no locks. A tracker may be used by any number of threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "replication/deadline.h"
#include "replication/pagemap_uapi.h"
#include "replication/result.h"
#include "replication/tracker.h"
#include "replication/unique_fd.h"

namespace pmirror {

// Stores of a process to its own mappings. Belongs to one address space: a forked child has to make its own.
class WriteTracker {
 public:
  // Opens a userfaultfd. ENOSYS, EPERM, EINVAL: this kernel or this process cannot track; nothing else is
  // affected.
  static Result<WriteTracker> Open();

  WriteTracker() = default;
  bool valid() const { return uffd_.valid(); }
  int fd() const { return uffd_.get(); }
  // Gives the descriptor to an owner that keeps it elsewhere.
  UniqueFd Release() { return UniqueFd(uffd_.Release()); }

  // Starts tracking [address, address + length), page aligned, of a shared file mapping that may become
  // writable. `mode` is what was proven for the file system, not kNone. For kWrittenPresent it also forbids
  // huge pages, so it must come before the first touch. Afterwards absent pages count as written until a scan
  // has protected them.
  Error Register(uintptr_t address, size_t length, Tracking mode) const {
    return RegisterWith(uffd_.get(), address, length, mode);
  }
  // For an owner that keeps the descriptor elsewhere.
  static Error RegisterWith(int uffd, uintptr_t address, size_t length, Tracking mode);

  // Lifts the protection from a range that stays registered: its pages count as written again. Needed before
  // anything removes pages of a kWrittenPresent mapping (FACTS: protected absent entries of fsdax make the
  // next load spin).
  static Error Unprotect(int uffd, uintptr_t address, size_t length);

 private:
  explicit WriteTracker(UniqueFd uffd) : uffd_(std::move(uffd)) {}
  UniqueFd uffd_;
};

// One step of a scan: reports and protects written pages of [start, end) of the process behind `pagemap_fd`
// until `regions` is full. Returns how many regions are filled and sets `next` to where to go on (`end` when
// done). EPERM: part of the range is not tracked. After any error pages may have been protected without being
// reported: the whole range counts as written.
Result<size_t> ScanStep(int pagemap_fd, Tracking mode, uintptr_t start, uintptr_t end,
                        std::span<uapi::PageRegion> regions, uintptr_t& next);

// Reports every written page range of [start, end) as visit(first, past_the_end), ascending, and protects it.
// `pagemap_fd` may be another process's (root; the process may be stopped): addresses are that process's.
// Errors as ScanStep.
template <typename Visit>
Error ScanAndProtect(int pagemap_fd, Tracking mode, uintptr_t start, uintptr_t end, Visit&& visit) {
  uapi::PageRegion regions[64];
  while (start < end) {
    uintptr_t next = end;
    Result<size_t> found = ScanStep(pagemap_fd, mode, start, end, regions, next);
    if (!found.ok()) {
      return found.error();
    }
    for (size_t i = 0; i < found.value(); ++i) {
      visit(static_cast<uintptr_t>(regions[i].start), static_cast<uintptr_t>(regions[i].end));
    }
    start = next;
  }
  return Error::Ok();
}

// True when a page of [start, end) counts as written. Changes nothing. EPERM: part of the range is not
// tracked; after any error nothing is known.
Result<bool> AnyWritten(int pagemap_fd, Tracking mode, uintptr_t start, uintptr_t end);

// Protects [start, end) without asking what was written.
inline Error ProtectAll(int pagemap_fd, Tracking mode, uintptr_t start, uintptr_t end) {
  return ScanAndProtect(pagemap_fd, mode, start, end, [](uintptr_t, uintptr_t) {});
}

// Finds out which mode tells the truth on the file system of `directory_fd`, with a scratch file there (never
// seen by a program: it has no name, or loses it at once), in a forked child that is killed at the deadline.
// kNone when nothing is proven. Safe in a process with threads; reaps only its own child.
Tracking ProveFileSystem(int directory_fd, Deadline deadline);

}  // namespace pmirror
