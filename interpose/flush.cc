// SPDX-License-Identifier: BSD-3-Clause
// The list of a thread, its drain, and local durability of what was flushed; see flush.h.
#include "interpose/flush.h"

#include <sys/mman.h>

#include <algorithm>

#include "interpose/cache_flush.h"
#include "interpose/kernel.h"
#include "interpose/log.h"
#include "interpose/mapped_file.h"
#include "interpose/pmirror.h"
#include "interpose/sigbus.h"
#include "interpose/sync.h"
#include "replication/persistence.h"

namespace pmirror::interpose {
namespace {

// What is sent is widened to whole words, so that no aligned store is sent in halves.
constexpr uintptr_t kWord = 8;

// One range's share in one mapping.
struct Piece {
  uint32_t file = 0;
  Extent extent;
};

// Adds [address, end) to a sorted list without overlaps. False: no room.
bool AddRange(std::span<FlushedRange> list, uint32_t& count, FlushedRange range) {
  uint32_t first = 0;
  while (first < count && list[first].end() < range.address) {
    ++first;
  }
  uint32_t last = first;
  uintptr_t start = range.address;
  uintptr_t end = range.end();
  for (; last < count && list[last].address <= range.end(); ++last) {
    start = std::min(start, list[last].address);
    end = std::max(end, list[last].end());
  }
  if (last == first && count == list.size()) {
    return false;
  }
  if (last == first) {
    std::copy_backward(list.begin() + first, list.begin() + count, list.begin() + count + 1);
    ++count;
  } else {
    std::copy(list.begin() + last, list.begin() + count, list.begin() + first + 1);
    count -= last - first - 1;
  }
  list[first] = {start, end - start};
  return true;
}

// Makes the flushed ranges durable here, by the node's persistence domain.
class PersistRanges : public LocalPersist {
 public:
  PersistRanges(std::span<const FlushedRange> ranges, Domain domain) : ranges_(ranges), domain_(domain) {}

  Error Persist() override {
    if (domain_ == Domain::kVolatile) {
      return Error::Ok();
    }
    for (const FlushedRange& range : ranges_) {
      if (domain_ == Domain::kPmem) {
        FlushCaches(range.address, range.length);
      } else {
        PMIRROR_RETURN_IF_ERROR(Msync(range));
      }
    }
    DrainCaches();
    return Error::Ok();
  }

 private:
  static Error Msync(const FlushedRange& range) {
    const uintptr_t start = range.address & ~(kPageSize - 1);
    return kernel::Msync(start, range.end() - start, MS_SYNC) == 0
               ? Error::Ok()
               : Error::FromErrno("msync of the backing file");
  }

  std::span<const FlushedRange> ranges_;
  Domain domain_;
};

enum class Manner { kPlain, kVerified, kGroup };

int ActionOf(Manner manner) {
  return manner == Manner::kVerified ? PMIRROR_ACTION_FLUSH_VERIFY : PMIRROR_ACTION_FLUSH;
}

// The address of the first of the ranges that lies at `offset` of the file or behind it.
void PlaceByOffset(Runtime& runtime, uint32_t file, std::span<const FlushedRange> ranges, Extent extent,
                   ErrorPlace& place) {
  for (const FlushedRange& range : ranges) {
    Mapping mapping;
    for (uintptr_t at = range.address; runtime.maps().FirstOverlap(at, range.end(), mapping);
         at = mapping.end()) {
      const Mapping part = mapping.Clip(range.address, range.end());
      const Extent widened{part.offset & ~uint64_t{kWord - 1}, part.length + kWord};
      if (mapping.file == file && widened.Overlaps(extent)) {
        place.range = {part.address, part.length};
        place.offset = part.offset;
        return;
      }
    }
  }
}

// Captures those of the ranges that lie in `hint.file`.
Error CaptureFile(Runtime& runtime, const Mapping& hint, std::span<const FlushedRange> ranges, Manner manner,
                  ErrorPlace& place) {
  std::array<Extent, kMaxFlushed> room;
  ExtentList extents(room);
  for (const FlushedRange& range : ranges) {
    Mapping mapping;
    for (uintptr_t at = range.address; runtime.maps().FirstOverlap(at, range.end(), mapping);
         at = mapping.end()) {
      if (mapping.file == hint.file && (mapping.flags & kMapShared) != 0) {
        const uintptr_t start = std::max(mapping.address, range.address & ~(kWord - 1));
        const uintptr_t end = std::min(mapping.end(), (range.end() + kWord - 1) & ~(kWord - 1));
        extents.Add({mapping.OffsetOf(start), end - start});
      }
    }
  }
  MappedFile file(runtime, hint.file, hint);
  if (extents.hull().end() >
      file.KnownSize()) {  // the page says at least what the file had when its last change returned
    extents.ClipToSize(file.Size());
  }
  PersistRanges local(ranges, static_cast<Domain>(file.volume().page().domain));
  VerifyResult verified;
  const Error result = manner == Manner::kVerified ? file.CaptureVerified(extents.extents(), &local, verified)
                       : manner == Manner::kGroup  ? file.CaptureGroup(extents.extents(), &local)
                                                   : file.Capture(extents.extents(), &local);
  if (result.ok()) {
    runtime.tickets().CountSync(file.volume().index());
    return result;
  }
  place = PlaceOf(ActionOf(manner), file.volume(), file.id());
  PlaceByOffset(runtime, hint.file, ranges, verified.extent.empty() ? extents.hull() : verified.extent,
                place);
  return result;
}

Error FlushEach(Runtime& runtime, std::span<FlushedRange> ranges, Manner manner, ErrorPlace& place) {
  std::sort(ranges.begin(), ranges.end(), [](const auto& a, const auto& b) { return a.address < b.address; });
  const SyncScope scope;
  // Files in the order in which they appear; a range of a file that was captured before is skipped.
  std::array<uint32_t, kMaxFlushed> done;
  size_t done_count = 0;
  Error result = Error::Ok();
  for (const FlushedRange& range : ranges) {
    Mapping mapping;
    for (uintptr_t at = range.address; runtime.maps().FirstOverlap(at, range.end(), mapping);
         at = mapping.end()) {
      const bool captured =
          std::find(done.begin(), done.begin() + done_count, mapping.file) != done.begin() + done_count;
      if (captured || (mapping.flags & kMapShared) == 0 || !runtime.files().Pin(mapping.file)) {
        continue;
      }
      ErrorPlace failed;
      const Error error = CaptureFile(runtime, mapping, ranges, manner, failed);
      if (result.ok() && !error.ok()) {
        result = error;
        place = failed;
        place.replica = thread_state().failed_replica;
      }
      runtime.Unpin(mapping.file, /*holding_map_lock=*/false);
      if (done_count < done.size()) {
        done[done_count++] = mapping.file;
      }
    }
  }
  return result;
}

// A flush of the interposed functions: remembers its failure where it is known.
Error FlushAndRemember(Runtime& runtime, std::span<FlushedRange> ranges) {
  ErrorPlace place;
  const Error result = FlushNow(runtime, ranges, place);
  if (!result.ok()) {
    Fail(result, place);
  }
  return result;
}

}  // namespace

bool IsReplicated(Runtime& runtime, uintptr_t address, size_t length) {
  Mapping mapping;
  const uintptr_t past = address + std::max<size_t>(length, 1);
  for (uintptr_t at = address; runtime.maps().FirstOverlap(at, past, mapping); at = mapping.end()) {
    if ((mapping.flags & kMapShared) != 0) {
      return true;
    }
  }
  return false;
}

Error FlushNow(Runtime& runtime, std::span<FlushedRange> ranges, ErrorPlace& place) {
  return FlushEach(runtime, ranges, Manner::kPlain, place);
}

Error FlushVerified(Runtime& runtime, std::span<FlushedRange> ranges, ErrorPlace& place) {
  return FlushEach(runtime, ranges, Manner::kVerified, place);
}

Error FlushGroup(Runtime& runtime, std::span<FlushedRange> ranges, ErrorPlace& place) {
  uint32_t file = kNoFile;
  for (const FlushedRange& range : ranges) {
    Mapping mapping;
    for (uintptr_t at = range.address; runtime.maps().FirstOverlap(at, range.end(), mapping);
         at = mapping.end()) {
      if (file != kNoFile && mapping.file != file) {
        return {EXDEV, "a flush group lies in several files"};
      }
      file = mapping.file;
    }
  }
  return FlushEach(runtime, ranges, Manner::kGroup, place);
}

Error Flush(Runtime& runtime, uintptr_t address, size_t length) {
  ThreadState& thread = thread_state();
  const FlushedRange range{address, length};
  if (thread.flushed_busy) {  // a signal handler in the middle of a flush: do not touch the list
    FlushedRange alone = range;
    return FlushAndRemember(runtime, std::span(&alone, 1));
  }
  thread.flushed_busy = true;
  const bool added = AddRange(thread.flushed, thread.flushed_count, range);
  thread.flushed_busy = false;
  if (added) {
    return Error::Ok();
  }
  PMIRROR_RETURN_IF_ERROR(Drain(runtime));
  return Flush(runtime, address, length);
}

bool NothingToDrain() { return thread_state().flushed_count == 0; }

Error Drain(Runtime& runtime) {
  ThreadState& thread = thread_state();
  if (thread.flushed_count == 0 || thread.flushed_busy) {
    return Error::Ok();
  }
  // Taken out first: a signal handler that flushes during the capture has a list of its own.
  std::array<FlushedRange, kMaxFlushed> ranges;
  thread.flushed_busy = true;
  const uint32_t count = thread.flushed_count;
  std::copy_n(thread.flushed.begin(), count, ranges.begin());
  thread.flushed_count = 0;
  thread.flushed_busy = false;
  return FlushAndRemember(runtime, std::span(ranges).first(count));
}

void RaiseOnError(const Error& error, const void* address) {
  if (!error.ok()) {
    RaiseSigbus(address);
  }
}

}  // namespace pmirror::interpose
