// SPDX-License-Identifier: BSD-3-Clause
// munmap and mremap of replicated mappings, and the handing over of what is dirty in them.
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "interpose/kernel.h"
#include "interpose/log.h"
#include "interpose/map_file.h"
#include "interpose/mapped_file.h"
#include "replication/write_tracker.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

namespace pmirror::interpose {
namespace {

constexpr uintptr_t PageUp(uintptr_t value) { return (value + kPageSize - 1) & ~uintptr_t{kPageSize - 1}; }

// Scratch for one hand-over at a time: under the map lock.
constinit std::array<Extent, 4096> g_hand_over_room{};

int ProtectionOf(const Mapping& mapping) {
  return ((mapping.flags & kMapReadable) != 0 ? PROT_READ : 0) |
         ((mapping.flags & kMapWritable) != 0 ? PROT_WRITE : 0) |
         ((mapping.flags & kMapExecutable) != 0 ? PROT_EXEC : 0);
}

// One record: [address, address + length) goes, `extents` are dirty.
Error TellUnmapped(Runtime& runtime, const Mapping& part, std::span<const Extent> extents) {
  const FileEntry& entry = runtime.files().at(part.file);
  return runtime.link().Ask(local::RequestKind::kUnmapped, [&](local::Request& request) {
    request.volume = entry.volume.load(std::memory_order_relaxed);
    request.file = Raw(entry.file_id());
    request.address = part.address;
    request.length = part.length;
    request.offset = part.offset;
    request.extent_count = static_cast<uint32_t>(extents.size());
    std::copy(extents.begin(), extents.end(), request.extents);
  });
}

// In as many records as the extents need; each names the addresses up to where the next one begins.
Error TellUnmappedInParts(Runtime& runtime, const Mapping& mapping, std::span<const Extent> extents) {
  uintptr_t start = mapping.address;
  while (extents.size() > local::kMaxHandover) {
    const Extent& next = extents[local::kMaxHandover];
    const uintptr_t cut =
        std::clamp<uintptr_t>(mapping.address + ((std::max(next.offset, mapping.offset) - mapping.offset) &
                                                 ~uint64_t{kPageSize - 1}),
                              start, mapping.end());
    if (cut > start) {
      PMIRROR_RETURN_IF_ERROR(
          TellUnmapped(runtime, mapping.Clip(start, cut), extents.first(local::kMaxHandover)));
      extents = extents.subspan(local::kMaxHandover);
      start = cut;
    } else {  // extents that all lie in one page cannot be told apart by address: one hull for them
      break;
    }
  }
  if (extents.size() > local::kMaxHandover) {
    const Extent hull{extents.front().offset, extents.back().end() - extents.front().offset};
    return TellUnmapped(runtime, mapping.Clip(start, mapping.end()), std::span(&hull, 1));
  }
  return TellUnmapped(runtime, mapping.Clip(start, mapping.end()), extents);
}

void HandOverOne(Runtime& runtime, const Mapping& mapping, Leaving leaving) {
  constexpr uint32_t kStores = kMapShared | kMapStored;
  FileEntry& entry = runtime.files().at(mapping.file);
  const uint32_t volume = entry.volume.load(std::memory_order_relaxed);
  ExtentList extents{g_hand_over_room};
  TicketLog::Others redo;
  Result<TicketLog::Held> ticket = Error{ENOENT, "open a ticket"};
  if ((mapping.flags & kStores) == kStores) {
    // Until the daemon has them, what the scan takes is nobody's but ours: a ticket says so.
    ticket = runtime.tickets().Open(volume, entry.file_id(), mapping.extent());
    if (leaving == Leaving::kUnmap && (mapping.flags & kMapWritable) != 0) {
      // A store by another thread between the last scan and the unmapping would be seen by nobody: from here
      // on it is refused, as it would be a moment later anyhow. (When this fails the window stays as small as
      // it can be.)
      kernel::Mprotect(mapping.address, mapping.length, ProtectionOf(mapping) & ~PROT_WRITE);
    }
    const int backing_fd = own_descriptors().Number(entry.backing.load(std::memory_order_acquire));
    ScanMapping(mapping, backing_fd, extents);
    runtime.tickets().CollectRedo(volume, entry.file_id(), mapping.extent(), extents, redo);
  }
  const Error told = TellUnmappedInParts(runtime, mapping, extents.extents());
  if (told.ok() || extents.empty()) {
    if (ticket.ok()) {
      runtime.tickets().Close(ticket.value(), redo);
    }
    return;
  }
  LogLine(LogLevel::kError)
      .Text("dirty ranges could not be handed to the daemon: ")
      .Text(told.doing)
      .Field("errno", static_cast<uint64_t>(told.code))
      .Field("file", Raw(entry.file_id()));
  if (ticket.ok()) {
    runtime.tickets().Fail(ticket.value(), redo);
  } else {
    runtime.tickets().Abandon();
  }
}

}  // namespace

void HandOver(Runtime& runtime, uintptr_t start, uintptr_t past, Leaving leaving) {
  Mapping mapping;
  for (uintptr_t at = start; runtime.maps().FirstOverlap(at, past, mapping); at = mapping.end()) {
    HandOverOne(runtime, mapping.Clip(start, past), leaving);
  }
}

void Forget(Runtime& runtime, uintptr_t start, uintptr_t past) {
  Mapping mapping;
  while (runtime.maps().FirstOverlap(start, past, mapping)) {
    const Mapping part = mapping.Clip(start, past);
    if (!runtime.maps().Remove(part.address, part.end())) {
      // No room to split the entry: forget all of it. What is left of the mapping is then unknown to us; the
      // program is told by the log.
      LogLine(LogLevel::kError).Text("the mapping table is full: a mapping is no longer replicated");
      runtime.tickets().Abandon();
      runtime.maps().Remove(mapping.address, mapping.end());
    }
    own_descriptors().in_use().Wait();
    FileEntry& entry = runtime.files().at(part.file);
    if (entry.mapped_bytes.fetch_sub(part.length, std::memory_order_relaxed) == part.length) {
      runtime.Unpin(part.file, /*holding_map_lock=*/true);
    }
  }
}

int UnmapRange(Runtime& runtime, uintptr_t address, size_t length) {
  if (address % kPageSize != 0 || length == 0 || PageUp(length) < length ||
      address + PageUp(length) < address) {
    return kernel::Munmap(address, length);  // EINVAL in its own words
  }
  const SignalGuard guard(runtime.map_lock());
  static_cast<void>(runtime.RelinkLocked());
  HandOver(runtime, address, address + PageUp(length), Leaving::kUnmap);
  Forget(runtime, address, address + PageUp(length));
  return kernel::Munmap(address, length);
}

namespace {

struct Remap {
  uintptr_t old;
  size_t old_size;
  size_t new_size;
  int flags;
  void* target;
};

void* Fail(int error) {
  errno = error;
  return MAP_FAILED;
}

// Tracks and announces addresses where the kernel has put (more of) a replicated file. On failure they are
// unmapped.
Error AddPart(Runtime& runtime, Mapping part) {
  Track(runtime, part, /*populate_after=*/false);
  Error added = AddMapping(runtime, part);
  if (!added.ok()) {
    kernel::Munmap(part.address, part.length);
  }
  return added;
}

// Growing without moving: the old part keeps its tracking.
void* GrowInPlace(Runtime& runtime, const Mapping& mapping, const Remap& remap) {
  void* result =
      kernel::Mremap(reinterpret_cast<void*>(remap.old), remap.old_size, remap.new_size, 0, nullptr);
  if (result == MAP_FAILED) {
    return result;
  }
  Mapping tail = mapping;
  tail.address = remap.old + remap.old_size;
  tail.length = remap.new_size - remap.old_size;
  tail.offset = mapping.OffsetOf(remap.old) + remap.old_size;
  const Error added = AddPart(runtime, tail);
  return added.ok() ? result : Fail(ENOMEM);
}

// Moving drops the tracking of all of it: what is dirty is handed over before, and the new place starts
// clean. Requires: the caller has pinned the file.
void* Move(Runtime& runtime, const Mapping& mapping, const Remap& remap) {
  const bool duplicates = remap.old_size == 0;  // mremap(2): a second mapping of the same pages
  const bool keeps_old = (remap.flags & MREMAP_DONTUNMAP) != 0;
  if (!duplicates) {
    HandOver(runtime, remap.old, remap.old + remap.old_size, Leaving::kUnmap);
    Forget(runtime, remap.old, remap.old + remap.old_size);
  }
  void* result = kernel::Mremap(reinterpret_cast<void*>(remap.old), remap.old_size, remap.new_size,
                                remap.flags, remap.target);
  const int error = errno;
  const int protection = ProtectionOf(mapping);
  Mapping moved = mapping;
  moved.offset = mapping.OffsetOf(remap.old);
  if (result == MAP_FAILED || keeps_old) {  // the old place is (still) there
    if (!duplicates) {
      kernel::Mprotect(remap.old, remap.old_size, protection);
      Mapping old = moved;
      old.address = remap.old;
      old.length = remap.old_size;
      const Error restored = AddPart(runtime, old);
      if (!restored.ok()) {
        return Fail(ENOMEM);
      }
    }
    if (result == MAP_FAILED) {
      return Fail(error);
    }
  }
  moved.address = reinterpret_cast<uintptr_t>(result);
  moved.length = remap.new_size;
  kernel::Mprotect(moved.address, moved.length, protection);
  const Error added = AddPart(runtime, moved);
  return added.ok() ? result : Fail(ENOMEM);
}

}  // namespace

void* RemapRange(Runtime& runtime, uintptr_t old, size_t old_size, size_t new_size, int flags, void* target) {
  const SignalGuard guard(runtime.map_lock());
  static_cast<void>(runtime.RelinkLocked());
  const Remap remap{old, PageUp(old_size), PageUp(new_size), flags, target};
  const uintptr_t target_address = reinterpret_cast<uintptr_t>(target);
  if ((flags & MREMAP_FIXED) != 0 && target_address % kPageSize == 0) {  // what lies at the target goes first
    HandOver(runtime, target_address, target_address + remap.new_size, Leaving::kUnmap);
    Forget(runtime, target_address, target_address + remap.new_size);
  }
  Mapping mapping;
  const bool ours = runtime.maps().Find(old, mapping) && old % kPageSize == 0 && new_size != 0;
  if (!ours) {
    return kernel::Mremap(reinterpret_cast<void*>(old), old_size, new_size, flags, target);
  }
  // The kernel refuses to move more than one mapping; asked before, so that a refusal changes nothing.
  if (remap.old + remap.old_size > mapping.end() || mapping.OffsetOf(old) + remap.new_size < remap.new_size) {
    return Fail(EFAULT);
  }
  const int place = flags & (MREMAP_FIXED | MREMAP_DONTUNMAP);
  if (place == 0 && remap.old_size != 0) {
    if (remap.new_size == remap.old_size) {
      return reinterpret_cast<void*>(old);
    }
    if (remap.new_size < remap.old_size) {
      HandOver(runtime, old + remap.new_size, old + remap.old_size, Leaving::kUnmap);
      Forget(runtime, old + remap.new_size, old + remap.old_size);
      return kernel::Mremap(reinterpret_cast<void*>(old), old_size, new_size, flags, nullptr);
    }
    void* grown = GrowInPlace(runtime, mapping, remap);
    if (grown != MAP_FAILED || (flags & MREMAP_MAYMOVE) == 0) {
      return grown;
    }
  }
  if ((flags & MREMAP_MAYMOVE) == 0) {
    return kernel::Mremap(reinterpret_cast<void*>(old), old_size, new_size, flags, target);  // refused there
  }
  if (!runtime.files().Pin(mapping.file)) {
    return Fail(EFAULT);
  }
  void* moved = Move(runtime, mapping, remap);
  const int error = errno;
  runtime.Unpin(mapping.file, /*holding_map_lock=*/true);
  errno = error;
  return moved;
}

}  // namespace pmirror::interpose
