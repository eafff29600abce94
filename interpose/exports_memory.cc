// SPDX-License-Identifier: BSD-3-Clause
// The calls about mappings as the program makes them. Each begins with the one question whether it is about a
// replicated file; all else goes straight to the kernel, also before constructors and inside allocators.
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdarg>

#include "interpose/kernel.h"
#include "interpose/log.h"
#include "interpose/map_file.h"
#include "interpose/mapped_file.h"
#include "interpose/next_call.h"
#include "interpose/sync.h"
#include "replication/write_tracker.h"

namespace pmirror::interpose {
namespace {

constexpr uintptr_t PageUp(uintptr_t value) { return (value + kPageSize - 1) & ~uintptr_t{kPageSize - 1}; }
uintptr_t Number(const void* address) { return reinterpret_cast<uintptr_t>(address); }

// errno as the system calls leave it: untouched by success.
class ErrnoOfFailure {
 public:
  int operator()(int result) const {
    errno = result == 0 ? saved_ : errno;
    return result;
  }
  void* operator()(void* result) const {
    errno = result != MAP_FAILED ? saved_ : errno;
    return result;
  }

 private:
  int saved_ = errno;
};

// The runtime, when [address, address + length) touches a replicated mapping; else null.
Runtime* Concerned(uintptr_t address, size_t length) {
  Runtime* runtime = Runtime::Get();
  Mapping mapping;
  if (runtime == nullptr || runtime->maps().empty() ||
      !runtime->maps().FirstOverlap(address, address + PageUp(length), mapping)) {
    return nullptr;
  }
  return runtime;
}

void* Map(void* hint, size_t length, int protection, int flags, int fd, off_t offset) {
  Runtime* runtime = Runtime::Get();
  if (runtime == nullptr || length == 0 || offset % static_cast<off_t>(kPageSize) != 0) {
    return kernel::Mmap(hint, length, protection, flags, fd, offset);
  }
  if ((flags & MAP_ANONYMOUS) == 0) {
    uint64_t inode = 0;
    Volume* volume = runtime->VolumeOfDescriptor(fd, inode);
    if (volume == nullptr && runtime->volume_count() != 0 && !runtime->link().Lives()) {
      static_cast<void>(runtime->Relink());  // it may be a file of the mount of another daemon
      volume = runtime->VolumeOfDescriptor(fd, inode);
    }
    if (volume != nullptr) {
      return ErrnoOfFailure()(MapFile(*runtime, *volume, hint, length, protection, flags, fd, offset));
    }
  }
  if ((flags & MAP_FIXED) != 0 && Concerned(Number(hint), length) != nullptr) {
    return ErrnoOfFailure()(MapOver(*runtime, hint, length, protection, flags, fd, offset));
  }
  return kernel::Mmap(hint, length, protection, flags, fd, offset);
}

int Protect(Runtime& runtime, uintptr_t address, size_t length, int protection, int key) {
  const SignalGuard guard(runtime.map_lock());
  const uintptr_t past = address + PageUp(length);
  const bool writable = (protection & PROT_WRITE) != 0;
  const bool readable = (protection & PROT_READ) != 0;
  if (writable) {  // before a store is possible
    runtime.maps().SetFlags(address, past, kMapStored, 0);
    Mapping mapping;
    for (uintptr_t at = address; runtime.maps().FirstOverlap(at, past, mapping); at = mapping.end()) {
      runtime.files().at(mapping.file).store_maps.store(1, std::memory_order_release);
    }
  }
  if (!readable) {  // before a load of ours would fault
    runtime.maps().SetFlags(address, past, 0, kMapReadable);
    own_descriptors().in_use().Wait();
  }
  const int result = key == -1
                         ? kernel::Mprotect(address, length, protection)
                         : static_cast<int>(::syscall(SYS_pkey_mprotect, address, length, protection, key));
  if (result == 0) {
    const uint32_t now = (readable ? kMapReadable : 0) | (writable ? kMapWritable : 0) |
                         ((protection & PROT_EXEC) != 0 ? kMapExecutable : 0);
    runtime.maps().SetFlags(address, past, now, (kMapReadable | kMapWritable | kMapExecutable) & ~now);
  }
  return result;
}

// Before the pages of a mapping go by the program's own wish: on fsdax an absent page would look clean, and a
// protected absent one would make the next load spin.
void PrepareForRemoval(Runtime& runtime, const Mapping& part, bool data_changes) {
  FileEntry& entry = runtime.files().at(part.file);
  const uint32_t volume = entry.volume.load(std::memory_order_relaxed);
  if ((part.flags & kMapShared) == 0) {
    return;
  }
  const bool goes_blind = part.tracking == static_cast<uint32_t>(Tracking::kWrittenPresent);
  if (data_changes || goes_blind) {  // a hole is a change like a store of zeros
    runtime.tickets().MarkRedo(volume, entry.file_id(), part.extent());
  }
  if (!goes_blind) {
    return;
  }
  const Error lifted =
      WriteTracker::Unprotect(own_descriptors().Single(OwnKind::kUserfault), part.address, part.length);
  if (!lifted.ok()) {
    LogLine(LogLevel::kWarning).Text(lifted.doing).Field("errno", static_cast<uint64_t>(lifted.code));
  }
}

int Advise(Runtime& runtime, uintptr_t address, size_t length, int advice) {
  switch (advice) {
    case MADV_REMOVE:
    case MADV_DONTNEED:
    case MADV_DONTNEED_LOCKED:
    case MADV_HUGEPAGE:
    case MADV_DONTFORK:
    case MADV_DOFORK:
      break;
    default:  // changes neither data nor tracking
      return kernel::Madvise(address, length, advice);
  }
  const SignalGuard guard(runtime.map_lock());
  const uintptr_t past = address + PageUp(length);
  Mapping mapping;
  for (uintptr_t at = address; runtime.maps().FirstOverlap(at, past, mapping); at = mapping.end()) {
    const bool removes = advice == MADV_REMOVE || advice == MADV_DONTNEED || advice == MADV_DONTNEED_LOCKED;
    if (removes) {
      PrepareForRemoval(runtime, mapping.Clip(address, past), advice == MADV_REMOVE);
    } else if (advice == MADV_HUGEPAGE &&
               mapping.tracking == static_cast<uint32_t>(Tracking::kWrittenPresent)) {
      return 0;  // tracking would go blind, and it is only advice
    }
  }
  const int result = kernel::Madvise(address, length, advice);
  for (uintptr_t at = address; advice == MADV_REMOVE && runtime.maps().FirstOverlap(at, past, mapping);
       at = mapping.end()) {
    PrepareForRemoval(runtime, mapping.Clip(address, past),
                      true);  // again: a sync may have carried the old bytes
  }
  if (result == 0 && (advice == MADV_DONTFORK || advice == MADV_DOFORK)) {
    runtime.maps().SetFlags(address, past, advice == MADV_DONTFORK ? kMapDontFork : 0,
                            advice == MADV_DOFORK ? kMapDontFork : 0);
  }
  return result;
}

}  // namespace

// The parameters' names in libc's headers are reserved ones.
// NOLINTBEGIN(readability-inconsistent-declaration-parameter-name)
extern "C" {

void* mmap(void* hint, size_t length, int protection, int flags, int fd, off_t offset) noexcept {
  return Map(hint, length, protection, flags, fd, offset);
}

void* mmap64(void* hint, size_t length, int protection, int flags, int fd, off64_t offset) noexcept {
  return Map(hint, length, protection, flags, fd, offset);
}

int munmap(void* address, size_t length) noexcept {
  Runtime* runtime = Concerned(Number(address), length);
  return runtime != nullptr ? ErrnoOfFailure()(UnmapRange(*runtime, Number(address), length))
                            : kernel::Munmap(Number(address), length);
}

void* mremap(void* old, size_t old_size, size_t new_size, int flags, ...) noexcept {
  va_list arguments;
  va_start(arguments, flags);
  void* target = va_arg(arguments, void*);  // garbage unless MREMAP_FIXED, as for libc's own
  va_end(arguments);
  target = (flags & MREMAP_FIXED) != 0 ? target : nullptr;
  Runtime* runtime = Concerned(Number(old), old_size != 0 ? old_size : 1);
  if (runtime == nullptr && target != nullptr) {
    runtime = Concerned(Number(target), new_size);
  }
  return runtime != nullptr
             ? ErrnoOfFailure()(RemapRange(*runtime, Number(old), old_size, new_size, flags, target))
             : kernel::Mremap(old, old_size, new_size, flags, target);
}

int mprotect(void* address, size_t length, int protection) noexcept {
  Runtime* runtime = Concerned(Number(address), length);
  return runtime != nullptr ? ErrnoOfFailure()(Protect(*runtime, Number(address), length, protection, -1))
                            : kernel::Mprotect(Number(address), length, protection);
}

int pkey_mprotect(void* address, size_t length, int protection, int key) noexcept {
  Runtime* runtime = Concerned(Number(address), length);
  if (runtime != nullptr) {
    return ErrnoOfFailure()(Protect(*runtime, Number(address), length, protection, key));
  }
  return key == -1 ? kernel::Mprotect(Number(address), length, protection)
                   : static_cast<int>(::syscall(SYS_pkey_mprotect, address, length, protection, key));
}

int madvise(void* address, size_t length, int advice) noexcept {
  Runtime* runtime = Concerned(Number(address), length);
  return runtime != nullptr ? ErrnoOfFailure()(Advise(*runtime, Number(address), length, advice))
                            : kernel::Madvise(Number(address), length, advice);
}

int remap_file_pages(void* address, size_t length, int protection, size_t page_offset, int flags) noexcept {
  if (Concerned(Number(address), length) != nullptr) {
    LogLine(LogLevel::kError).Text("remap_file_pages (deprecated) is refused on a replicated mapping");
    errno = EINVAL;
    return -1;
  }
  return static_cast<int>(::syscall(SYS_remap_file_pages, address, length, protection, page_offset, flags));
}

int msync(void* address, size_t length, int flags) {
  Runtime* runtime = nullptr;
  const uintptr_t start = Number(address);
  const bool valid = start % pmirror::kPageSize == 0 &&
                     (flags & ~(MS_ASYNC | MS_SYNC | MS_INVALIDATE)) == 0 &&
                     (flags & (MS_ASYNC | MS_SYNC)) != (MS_ASYNC | MS_SYNC) && PageUp(length) >= length &&
                     start + PageUp(length) >= start;
  if ((flags & MS_SYNC) != 0 && valid && length != 0) {
    runtime = Concerned(start, length);
  }
  if (runtime != nullptr) {
    return SyncMemory(*runtime, start, length, flags);
  }
  return Next(Call::k_msync, &::msync)(address, length, flags);  // also a cancellation point
}
}
// NOLINTEND(readability-inconsistent-declaration-parameter-name)

}  // namespace pmirror::interpose
