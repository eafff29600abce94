// SPDX-License-Identifier: BSD-3-Clause
// mmap of a replicated file: from the program's descriptor to a tracked, proven, announced mapping of the
// backing file.
#include "interpose/map_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>

#include "interpose/guarded_memory.h"
#include "interpose/kernel.h"
#include "interpose/log.h"
#include "interpose/mapped_file.h"
#include "interpose/sigbus.h"
#include "interpose/sync.h"
#include "replication/write_tracker.h"

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

namespace pmirror::interpose {
namespace {

constexpr uintptr_t PageUp(uintptr_t value) { return (value + kPageSize - 1) & ~uintptr_t{kPageSize - 1}; }

void* Fail(int error) {
  errno = error;
  return MAP_FAILED;
}

// The backing file as the daemon answered.
struct Backing {
  uint32_t slot = 0;
  FileId id = FileId::kNone;
  bool writable = false;
  UniqueFd file;
  UniqueFd order;
};

Error OpenBacking(Runtime& runtime, const Volume& volume, int fd, Backing& backing) {
  const int descriptors[] = {fd};
  return runtime.link().Ask(
      local::RequestKind::kOpenBacking, descriptors,
      [&](local::Request& request) { request.volume = volume.index(); },
      [&](DaemonLink::Answer& answer) -> Error {
        const bool complete = answer.descriptor_count == (answer.reply->writable != 0 ? 2 : 1);
        if (!complete || answer.reply->slot >= kMaxFileSlots || answer.reply->file == 0) {
          return {EPROTO, "open the backing file: the reply is incomplete"};
        }
        backing.slot = answer.reply->slot;
        backing.id = FileId{answer.reply->file};
        backing.writable = answer.reply->writable != 0;
        backing.file = std::move(answer.descriptors[0]);
        backing.order = std::move(answer.descriptors[1]);
        return Error::Ok();
      });
}

// Fills the file's entry with what the daemon gave, where it is more than the entry has. Pins it.
Result<uint32_t> AttachFile(Runtime& runtime, const Volume& volume, const Backing& backing) {
  const uint32_t file = runtime.files().FindOrMake(volume.index(), backing.id);
  if (file == kNoFile) {
    return Error{ENFILE, "map another replicated file: the table is full"};
  }
  FileEntry& entry = runtime.files().at(file);
  entry.pins.fetch_add(1, std::memory_order_acq_rel);
  entry.slot.store(&volume.page().slots[backing.slot], std::memory_order_release);
  const bool has_order = entry.order.load(std::memory_order_acquire) != nullptr;
  if (backing.writable && !has_order) {
    void* order =
        kernel::Mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, backing.order.get(), 0);
    if (order == MAP_FAILED) {
      const Error error = Error::FromErrno("map the order page");
      runtime.Unpin(file, /*holding_map_lock=*/true);
      return error;
    }
    entry.order.store(static_cast<OrderPage*>(order), std::memory_order_release);
  }
  const OwnDescriptors::Handle old = entry.backing.load(std::memory_order_acquire);
  if (old == 0 || (backing.writable && !has_order)) {
    // A copy: the caller still maps through its own.
    UniqueFd copy(static_cast<int>(::syscall(SYS_fcntl, backing.file.get(), F_DUPFD_CLOEXEC, 3)));
    entry.backing.store(own_descriptors().Adopt(std::move(copy), OwnKind::kBacking),
                        std::memory_order_release);
    own_descriptors().Close(old);
  }
  return file;
}

// A page of the mapping that has data in the file: touching it allocates nothing.
uintptr_t AllocatedPage(const Mapping& mapping, int backing_fd) {
  const off_t data = ::lseek(backing_fd, static_cast<off_t>(mapping.offset), SEEK_DATA);
  if (data < 0 || static_cast<uint64_t>(data) >= mapping.offset + mapping.length) {
    return 0;
  }
  return mapping.address + ((static_cast<uint64_t>(data) - mapping.offset) & ~uint64_t{kPageSize - 1});
}

// Stores nothing (adds zero) to a page of this very mapping and looks whether the tracker saw it. True also
// when there is no page to try it on: then the proof of the file system stands alone.
bool ProveMapping(const Mapping& mapping, int backing_fd, int pagemap) {
  const uintptr_t page = AllocatedPage(mapping, backing_fd);
  if (page == 0 || (mapping.flags & kMapWritable) == 0) {
    return true;
  }
  if (!pmirror_guarded_touch(reinterpret_cast<void*>(page))) {
    return true;  // truncated or poisoned meanwhile: says nothing about tracking
  }
  bool seen = false;
  const Error scanned = ScanAndProtect(pagemap, static_cast<Tracking>(mapping.tracking), page,
                                       page + kPageSize, [&](uintptr_t, uintptr_t) { seen = true; });
  return scanned.ok() && seen;
}

uint32_t FlagsOf(int protection, bool shared, bool writable_file) {
  uint32_t flags = !shared ? 0 : writable_file ? kMapShared : kMapObserver;
  flags |= (protection & PROT_READ) != 0 ? kMapReadable : 0;
  flags |= (protection & PROT_WRITE) != 0 ? kMapWritable | kMapStored : 0;
  return flags | ((protection & PROT_EXEC) != 0 ? kMapExecutable : 0);
}

bool IsShared(int flags) {
  return (flags & MAP_TYPE) == MAP_SHARED || (flags & MAP_TYPE) == MAP_SHARED_VALIDATE;
}

// The descriptor's access mode against what is asked, as mmap(2) checks it. 0: fine or for the kernel to
// refuse.
int CheckAccess(int fd, int protection, int flags) {
  const int access = ::fcntl(fd, F_GETFL);
  if (access < 0 || (access & O_PATH) != 0) {
    return EBADF;
  }
  const bool readable = (access & O_ACCMODE) != O_WRONLY;
  const bool writable = (access & O_ACCMODE) == O_RDWR;
  if (!readable || (IsShared(flags) && (protection & PROT_WRITE) != 0 && !writable)) {
    return EACCES;
  }
  return 0;
}

}  // namespace

void Track(Runtime& runtime, Mapping& mapping, bool populate_after) {
  const FileEntry& entry = runtime.files().at(mapping.file);
  const Volume& volume = runtime.volume(entry.volume.load(std::memory_order_relaxed));
  const auto proven = static_cast<Tracking>(volume.page().tracking);
  const int uffd = own_descriptors().Single(OwnKind::kUserfault);
  const int pagemap = own_descriptors().Single(OwnKind::kPagemap);
  const int backing_fd = own_descriptors().Number(entry.backing.load(std::memory_order_acquire));
  mapping.tracking = static_cast<uint32_t>(Tracking::kNone);
  if ((mapping.flags & kMapShared) != 0 && proven != Tracking::kNone && uffd >= 0 && pagemap >= 0) {
    Error result = WriteTracker::RegisterWith(uffd, mapping.address, mapping.length, proven);
    mapping.tracking = static_cast<uint32_t>(proven);
    // Nothing was stored through this mapping yet. Pages past the end of the file cannot be stored to; those
    // that it grows by later are reported once, and skipped while they are holes.
    struct stat status;
    const uint64_t size = backing_fd >= 0 && ::fstat(backing_fd, &status) == 0
                              ? static_cast<uint64_t>(status.st_size)
                              : mapping.offset + mapping.length;
    const uintptr_t past = size <= mapping.offset
                               ? mapping.address
                               : std::min(mapping.end(), PageUp(mapping.address + (size - mapping.offset)));
    if (result.ok()) {
      result = ProtectAll(pagemap, proven, mapping.address, past);
    }
    if (!result.ok() || !ProveMapping(mapping, backing_fd, pagemap)) {
      mapping.tracking = static_cast<uint32_t>(Tracking::kNone);
      LogLine(LogLevel::kWarning)
          .Text("a mapping cannot be tracked, its syncs send whole ranges: ")
          .Text(result.ok() ? "the proof failed" : result.doing)
          .Field("errno", static_cast<uint64_t>(result.code));
    }
  }
  if (populate_after) {  // after protection, so that no page enters unseen; as MAP_POPULATE, a failure is
                         // nobody's concern
    kernel::Madvise(mapping.address, mapping.length, MADV_POPULATE_READ);
  }
}

Error TellMapped(Runtime& runtime, const Mapping& mapping) {
  const FileEntry& entry = runtime.files().at(mapping.file);
  return runtime.link().Ask(local::RequestKind::kMapped, [&](local::Request& request) {
    request.volume = entry.volume.load(std::memory_order_relaxed);
    request.file = Raw(entry.file_id());
    request.address = mapping.address;
    request.length = mapping.length;
    request.offset = mapping.offset;
    request.writable = (mapping.flags & kMapShared) != 0 ? 1 : 0;
    request.tracked = mapping.tracking;
  });
}

Error AddMapping(Runtime& runtime, const Mapping& mapping) {
  if (!runtime.maps().HasRoom(3)) {
    return {ENOMEM, "remember another mapping: the table is full"};
  }
  PMIRROR_RETURN_IF_ERROR(TellMapped(runtime, mapping));
  runtime.maps().Insert(mapping);
  FileEntry& entry = runtime.files().at(mapping.file);
  if (entry.mapped_bytes.fetch_add(mapping.length, std::memory_order_relaxed) == 0) {
    entry.pins.fetch_add(1, std::memory_order_acq_rel);
  }
  constexpr uint32_t kStores = kMapShared | kMapStored;
  if ((mapping.flags & kStores) == kStores) {
    entry.store_maps.store(1, std::memory_order_release);
  }
  return Error::Ok();
}

namespace {

// Without a lock and with signals as they are: other threads may map meanwhile, and Ctrl-C ends the program.
void AwaitClose(Runtime& runtime, const Volume& volume, int fd, Deadline deadline) {
  struct stat status;
  if (::fstat(fd, &status) != 0) {
    return;
  }
  LogLine(LogLevel::kWarning)
      .Text("mmap waits for other programs to close the file")
      .Field("file", status.st_ino);
  const SyncScope scope;  // keeps cancellation out
  Error closed{EBUSY, "wait for other programs to close the file"};
  while (closed.code == EBUSY && !deadline.Expired()) {
    closed = runtime.link().AskLong(
        local::RequestKind::kAwaitClose, Deadline::After(deadline.Remaining() + DaemonLink::kShortWait),
        [&](local::Request& request) {
          request.volume = volume.index();
          request.file = status.st_ino;
          request.wait_ns = static_cast<uint64_t>(deadline.Remaining().count());
        },
        [](DaemonLink::Answer&) { return Error::Ok(); });
  }
}

// A volume whose daemon is gone is waited for as a sync would.
Error AwaitLink(Runtime& runtime, Volume& volume) {
  const SyncScope scope;  // keeps cancellation out
  return runtime.WithDaemon(volume, FileId::kNone, [&]() -> Error {
    return runtime.link().Lives() ? Error::Ok() : Error{ENOTCONN, "map a file without a daemon"};
  });
}

// `busy`: a program without the library has the file open.
void* MapOnce(Runtime& runtime, Volume& volume, void* hint, size_t length, int protection, int flags, int fd,
              off_t offset, bool& busy) {
  const SignalGuard guard(runtime.map_lock());
  Backing backing;
  busy = false;
  if (const Error opened = OpenBacking(runtime, volume, fd, backing); !opened.ok()) {
    if (opened.code == ENODEV) {  // no file of pmirror's after all
      return kernel::Mmap(hint, length, protection, flags, fd, offset);
    }
    busy = opened.code == EBUSY;
    LogLine(LogLevel::kError)
        .Text("mmap refused: ")
        .Text(opened.doing)
        .Field("errno", static_cast<uint64_t>(opened.code));
    return Fail(opened.code);
  }
  const bool stores = IsShared(flags) && backing.writable;
  if (stores) {
    if (const Error ready = runtime.MakeReady(volume); !ready.ok()) {
      return Fail(ready.code);
    }
  }
  Result<uint32_t> file = AttachFile(runtime, volume, backing);
  if (!file.ok()) {
    return Fail(file.error().code);
  }
  InstallSigbusHandler();
  const uintptr_t past = reinterpret_cast<uintptr_t>(hint) + PageUp(length);
  if ((flags & MAP_FIXED) != 0) {
    HandOver(runtime, reinterpret_cast<uintptr_t>(hint), past, Leaving::kUnmap);
    Forget(runtime, reinterpret_cast<uintptr_t>(hint), past);
  }
  void* mapped = kernel::Mmap(hint, length, protection, flags & ~MAP_POPULATE, backing.file.get(), offset);
  int error = errno;
  if (mapped != MAP_FAILED) {
    Mapping mapping{.address = reinterpret_cast<uintptr_t>(mapped),
                    .length = PageUp(length),
                    .offset = static_cast<uint64_t>(offset),
                    .file = file.value(),
                    .flags = FlagsOf(protection, IsShared(flags), backing.writable)};
    Track(runtime, mapping, (flags & (MAP_POPULATE | MAP_NONBLOCK)) == MAP_POPULATE);
    if (const Error added = AddMapping(runtime, mapping); !added.ok()) {
      kernel::Munmap(mapping.address, mapping.length);
      mapped = MAP_FAILED;
      error = added.code;
    }
  }
  runtime.Unpin(file.value(), /*holding_map_lock=*/true);
  return mapped != MAP_FAILED ? mapped : Fail(error);
}

}  // namespace

void* MapFile(Runtime& runtime, Volume& volume, void* hint, size_t length, int protection, int flags, int fd,
              off_t offset) {
  if (const int refused = CheckAccess(fd, protection, flags); refused != 0) {
    return Fail(refused);
  }
  const Error there = AwaitLink(runtime, volume);
  if (!there.ok()) {
    return Fail(there.code);
  }
  const Deadline patience = Deadline::After(runtime.close_patience());
  while (true) {
    bool busy = false;
    void* mapped = MapOnce(runtime, volume, hint, length, protection, flags, fd, offset, busy);
    if (!busy || patience.Expired()) {
      return mapped;
    }
    AwaitClose(runtime, volume, fd, patience);
  }
}

void* MapOver(Runtime& runtime, void* address, size_t length, int protection, int flags, int fd,
              off_t offset) {
  const SignalGuard guard(runtime.map_lock());
  static_cast<void>(runtime.RelinkLocked());
  const uintptr_t start = reinterpret_cast<uintptr_t>(address);
  HandOver(runtime, start, start + PageUp(length), Leaving::kUnmap);
  Forget(runtime, start, start + PageUp(length));
  return kernel::Mmap(address, length, protection, flags, fd, offset);
}

}  // namespace pmirror::interpose
