// SPDX-License-Identifier: BSD-3-Clause
// See foreign_capture.h.
#include "fs/foreign_capture.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "fs/ticket_reader.h"
#include "replication/write_tracker.h"

namespace pmirror::fs {
namespace {

constexpr int kTriesOfAny = 3;
// A range of at least this many bytes that was never protected may be mostly hole: the file has grown.
constexpr uint64_t kLookForHoles = 64 << 10;

constexpr uint64_t PageDown(uint64_t value) { return value & ~uint64_t{kPageSize - 1}; }
constexpr uint64_t PageUp(uint64_t value) { return PageDown(value + kPageSize - 1); }

// A run of pages in a process.
struct Pages {
  uintptr_t start = 0;
  uintptr_t past = 0;
  uint64_t offset = 0;  // in the file, of `start`
  Tracking tracking = Tracking::kNone;
  int backing_fd = -1;

  bool empty() const { return start >= past; }
  // The part of the file that lies at [from, to).
  Extent At(uintptr_t from, uintptr_t to) const { return {offset + (from - start), to - from}; }
  Extent extent() const { return At(start, past); }
};

// How far the file reaches, in whole pages. Beyond that nothing can be stored, and to protect it would cost page tables without end.
uint64_t PagesEnd(const LeasedFile* file) {
  struct stat info {};
  return file != nullptr && ::fstat(file->descriptor.get(), &info) == 0
             ? PageUp(static_cast<uint64_t>(info.st_size))
             : kMaxFileBytes;
}

// What of `range` a process can have stored to through each of its mappings of the file.
std::vector<Pages> StoredPages(const ClientFiles& files, const FileKey& key, Extent range) {
  std::vector<Pages> all;
  for (const uintptr_t address : files.mappings.Of(key)) {
    const ClientMapping& mapping = files.mappings.at(address);
    if (!mapping.writable) {
      continue;
    }
    const uint64_t first = std::max(mapping.offset, PageDown(range.offset));
    const uint64_t past =
        std::min({mapping.offset + mapping.length, PageUp(range.end()), PagesEnd(mapping.file.get())});
    if (first < past) {
      all.push_back({.start = mapping.address + (first - mapping.offset),
                     .past = mapping.address + (past - mapping.offset),
                     .offset = first,
                     .tracking = mapping.tracking,
                     .backing_fd = mapping.file == nullptr ? -1 : mapping.file->descriptor.get()});
    }
  }
  return all;
}

Extent Clip(Extent extent, Extent range) {
  const uint64_t start = std::max(extent.offset, range.offset);
  const uint64_t past = std::min(extent.end(), range.end());
  return start < past ? Extent{start, past - start} : Extent{};
}

// False when the address space behind the descriptor is gone: a scan of it has nothing to report whatever was stored. (Kernel 6.18
// answers such a scan with ESRCH, but nothing says that every kernel does.) Asked after the scan: what lives now lived then.
bool Lives(int pagemap, uintptr_t address) {
  uint64_t entry = 0;
  return ::pread(pagemap, &entry, sizeof(entry), static_cast<off_t>(address / kPageSize * sizeof(entry))) ==
         static_cast<ssize_t>(sizeof(entry));
}

// Adds what has data in the file: who stores to a hole fills it. Asked after the scan.
void AddData(Extent extent, int backing_fd, ExtentSet& dirty) {
  if (extent.length < kLookForHoles) {
    dirty.Add(extent);
    return;
  }
  for (uint64_t at = extent.offset; at < extent.end();) {
    const off_t data = ::lseek(backing_fd, static_cast<off_t>(at), SEEK_DATA);
    if (data < 0) {
      if (errno != ENXIO) {  // ENXIO: nothing but hole up to the end of the file
        dirty.Add({at, extent.end() - at});
      }
      return;
    }
    const off_t hole = ::lseek(backing_fd, data, SEEK_HOLE);
    const uint64_t end = hole < 0 ? extent.end() : std::min(static_cast<uint64_t>(hole), extent.end());
    if (static_cast<uint64_t>(data) < end) {
      dirty.Add({static_cast<uint64_t>(data), end - static_cast<uint64_t>(data)});
    }
    at = std::max(end, static_cast<uint64_t>(data) + 1);
  }
}

void TakePages(const ClientProcess& process, const std::vector<Pages>& all, Extent range, ExtentSet& dirty) {
  for (const Pages& pages : all) {
    Error scanned{ENOTSUP, "scan"};
    if (pages.tracking != Tracking::kNone && process.pagemap() >= 0) {
      scanned = ScanAndProtect(process.pagemap(), pages.tracking, pages.start, pages.past,
                               [&](uintptr_t from, uintptr_t to) {
                                 AddData(Clip(pages.At(from, to), range), pages.backing_fd, dirty);
                               });
    }
    if (!scanned.ok() || !Lives(process.pagemap(), pages.start)) {
      AddData(Clip(pages.extent(), range), pages.backing_fd, dirty);
    }
  }
}

bool AnyPages(const ClientProcess& process, const std::vector<Pages>& all) {
  return std::any_of(all.begin(), all.end(), [&](const Pages& pages) {
    if (pages.tracking == Tracking::kNone || process.pagemap() < 0) {
      return true;
    }
    const Result<bool> written = AnyWritten(process.pagemap(), pages.tracking, pages.start, pages.past);
    return !written.ok() || written.value() || !Lives(process.pagemap(), pages.start);
  });
}

bool MayWrite(const ClientFiles& files, const FileKey& key) {
  const std::shared_ptr<LeasedFile> file = files.Find(key);
  return file != nullptr && file->writable;
}

// Everything that can be stored to by the process, when it does not know any more what it has stored.
void AddMapped(const ClientProcess& process, const FileKey& key, Extent range, ExtentSet& dirty) {
  const ClientProcess::View files = process.Look();
  for (const Pages& pages : StoredPages(*files, key, range)) {
    AddData(Clip(pages.extent(), range), pages.backing_fd, dirty);
  }
}

// A process as it was when Any looked at its tickets.
struct Seen {
  std::shared_ptr<ClientProcess> process;
  uint64_t changes;
  uint64_t serial;
};

bool Unchanged(const Seen& seen, bool knows_file) {
  return seen.process->changes() == seen.changes &&
         (!knows_file || TicketSerial(seen.process->tickets()) == seen.serial);
}

}  // namespace

void AddTickets(const ClientProcess& process, const FileKey& key, Extent unknown, ExtentSet& dirty) {
  const bool whole = ReadTickets(process.tickets(), [&](uint32_t volume, FileId file, Extent extent) {
    if (volume == key.volume && file == key.id) {
      dirty.Add(extent);
    }
  });
  if (!whole) {
    dirty.Add(unknown);
  }
}

void ForeignCapture::Take(FileId file, Extent range, ProcessSerial except, ExtentSet& dirty) {
  const FileKey key{volume_, file};
  for (const std::shared_ptr<ClientProcess>& process : processes_.All()) {
    if (process->serial() == except) {
      continue;
    }
    {
      const ClientProcess::View files = process->Look();
      if (!MayWrite(*files, key)) {
        continue;
      }
      TakePages(*process, StoredPages(*files, key, range), range, dirty);
    }
    ExtentSet tickets;
    AddTickets(*process, key, range, tickets);
    dirty.Add(tickets.Within(range));
    if (HasAbandoned(process->tickets())) {
      AddMapped(*process, key, range, dirty);
    }
  }
}

// First everybody's tickets, then everybody's page tables. When in between no ticket was opened (so nobody scanned) and nothing was mapped, unmapped
// or ended, then at the moment between the two all page tables were as clean as they were found later, and there were no tickets.
bool ForeignCapture::Any(FileId file, Extent range) {
  const FileKey key{volume_, file};
  for (int attempt = 0; attempt < kTriesOfAny; ++attempt) {
    const uint64_t table_changes = processes_.changes();
    std::vector<Seen> all;
    for (std::shared_ptr<ClientProcess>& process : processes_.All()) {
      all.push_back({process, process->changes(), TicketSerial(process->tickets())});
      const bool knows_file = MayWrite(*process->Look(), key);
      ExtentSet tickets;
      if (knows_file) {
        AddTickets(*process, key, range, tickets);
      }
      if (tickets.Overlaps(range)) {
        return true;
      }
    }
    bool unchanged = true;
    for (const Seen& seen : all) {
      const ClientProcess::View files = seen.process->Look();
      const std::vector<Pages> pages = StoredPages(*files, key, range);
      if (AnyPages(*seen.process, pages) || (!pages.empty() && HasAbandoned(seen.process->tickets()))) {
        return true;
      }
      unchanged = unchanged && Unchanged(seen, MayWrite(*files, key));
    }
    if (unchanged && processes_.changes() == table_changes) {
      return false;
    }
  }
  return true;
}

}  // namespace pmirror::fs
