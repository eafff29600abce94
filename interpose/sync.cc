// SPDX-License-Identifier: BSD-3-Clause
// See sync.h; the steps themselves are in sync_range.cc.
#include "interpose/sync.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "interpose/kernel.h"
#include "interpose/log.h"
#include "interpose/mapped_file.h"
#include "interpose/pmirror.h"
#include "interpose/sync_range.h"
#include "interpose/thread_state.h"

namespace pmirror::interpose {
namespace {

// Memory for the dirty ranges of a sync: large ones from a fixed set, or, when all are in use, a few on the
// stack (then more that is clean is sent along). Nobody waits for one, so that a signal handler cannot wait
// for its own thread's.
constexpr size_t kRooms = 8;
constexpr size_t kRoom = 4096;
constinit std::array<std::array<Extent, kRoom>, kRooms> g_rooms{};
constinit std::array<std::atomic<bool>, kRooms> g_room_taken{};

class ExtentRoom {
 public:
  ExtentRoom() {
    for (index_ = 0; index_ < kRooms; ++index_) {
      bool taken = false;
      if (g_room_taken[index_].compare_exchange_strong(taken, true, std::memory_order_acquire)) {
        return;
      }
    }
  }
  ~ExtentRoom() {
    if (index_ < kRooms) {
      g_room_taken[index_].store(false, std::memory_order_release);
    }
  }
  ExtentRoom(const ExtentRoom&) = delete;
  ExtentRoom& operator=(const ExtentRoom&) = delete;

  std::span<Extent> room() {
    return index_ < kRooms ? std::span<Extent>(g_rooms[index_]) : std::span<Extent>(small_);
  }

 private:
  size_t index_ = 0;
  std::array<Extent, 16> small_{};
};

// Local durability by the kernel: msync of a range of our mapping.
class PersistMemory : public LocalPersist {
 public:
  PersistMemory(uintptr_t address, size_t length, int flags)
      : address_(address), length_(length), flags_(flags) {}
  Error Persist() override {
    return kernel::Msync(address_, length_, flags_) == 0 ? Error::Ok()
                                                         : Error::FromErrno("msync of the backing file");
  }

 private:
  uintptr_t address_;
  size_t length_;
  int flags_;
};

// Local durability through the backing descriptor.
class PersistFile : public LocalPersist {
 public:
  explicit PersistFile(OwnDescriptors::Handle handle) : handle_(handle) {}
  Error Persist() override {
    const int fd = own_descriptors().Number(handle_);
    return fd < 0 || ::syscall(SYS_fdatasync, fd) == 0 ? Error::Ok()
                                                       : Error::FromErrno("fdatasync of the backing file");
  }

 private:
  OwnDescriptors::Handle handle_;
};

Error SyncOne(Runtime& runtime, const SyncScope& scope, const Mapping& mapping, Extent range,
              LocalPersist* local) {
  MappedFile file(runtime, mapping.file, mapping);
  ExtentRoom room;
  const SyncRequest request{.volume = file.volume().index(),
                            .file = file.id(),
                            .range = range,
                            .local = local,
                            .nested = scope.nested()};
  return SyncRange(runtime.tickets(), request, file, room.room());
}

// A mapping that is only read: what others store to the file, this process through another mapping included.
Error SyncObserved(Runtime& runtime, const SyncScope& scope, const Mapping& mapping, Extent range,
                   LocalPersist* local) {
  if (runtime.files().at(mapping.file).store_maps.load(std::memory_order_acquire) != 0) {
    PMIRROR_RETURN_IF_ERROR(SyncOne(runtime, scope, mapping, range, local));
  }
  MappedFile file(runtime, mapping.file, mapping);
  PMIRROR_RETURN_IF_ERROR(file.SyncOthers(range));
  runtime.tickets().CountSync(file.volume().index());
  return Error::Ok();
}

}  // namespace

SyncScope::SyncScope() : saved_errno_(errno) {
  ::pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state_);
  if (++thread_state().sync_depth == 1) {
    thread_state().failed_replica = -1;
  }
}

SyncScope::~SyncScope() {
  --thread_state().sync_depth;
  ::pthread_setcancelstate(cancel_state_, nullptr);
  errno = saved_errno_;
}

bool SyncScope::nested() const { return thread_state().sync_depth > 1; }

ErrorPlace PlaceOf(const Runtime& runtime, int action, const Mapping& part) {
  const FileEntry& entry = runtime.files().at(part.file);
  return {.action = action,
          .range = {part.address, part.length},
          .file = Raw(entry.file_id()),
          .offset = part.offset,
          .volume = entry.volume.load(std::memory_order_relaxed)};
}

ErrorPlace PlaceOf(int action, const Volume& volume, FileId file) {
  return {.action = action, .range = {}, .file = Raw(file), .volume = volume.index()};
}

int Fail(Error error, const ErrorPlace& place) {
  ThreadState& thread = thread_state();
  thread.last_error = error.code;
  thread.last_doing = error.doing;
  thread.last_place = place;
  thread.last_place.replica = place.replica >= 0 ? place.replica : thread.failed_replica;
  LogLine(LogLevel::kError)
      .Text("sync failed: ")
      .Text(error.doing)
      .Field("errno", static_cast<uint64_t>(error.code));
  return ErrnoOf(error);
}

int ErrnoOf(const Error& error) { return error.code == ENOSPC || error.code == EDQUOT ? error.code : EIO; }

int SyncMemory(Runtime& runtime, uintptr_t address, size_t length, int flags) {
  const uintptr_t past = address + ((length + kPageSize - 1) & ~(kPageSize - 1));
  Mapping first;
  // The usual case, one mapping that holds it all, persists locally beside the replicas. Otherwise each part
  // does so on its own, and the kernel's verdict on the whole range (ENOMEM for its gaps) comes last.
  const bool one =
      runtime.maps().Find(address, first) && past <= first.end() && (first.flags & kMapShared) != 0;
  Error result = Error::Ok();
  ErrorPlace place;
  {
    const SyncScope scope;
    Mapping mapping;
    for (uintptr_t at = address; runtime.maps().FirstOverlap(at, past, mapping); at = mapping.end()) {
      if ((mapping.flags & (kMapShared | kMapObserver)) == 0 || !runtime.files().Pin(mapping.file)) {
        continue;
      }
      const Mapping part = mapping.Clip(address, past);
      PersistMemory local(part.address, part.length, flags);
      const bool observed = (part.flags & kMapObserver) != 0;
      const Error synced = observed ? SyncObserved(runtime, scope, part, part.extent(), &local)
                                    : SyncOne(runtime, scope, part, part.extent(), &local);
      if (result.ok() && !synced.ok()) {
        place = PlaceOf(runtime, PMIRROR_ACTION_SYNC, part);
      }
      runtime.Unpin(mapping.file, /*holding_map_lock=*/false);
      result = result.ok() ? synced : result;
    }
  }
  if (!result.ok()) {
    // What msync itself said about the arguments stays what it is.
    const bool of_msync = result.code == EBUSY || result.code == EINVAL || result.code == ENOMEM;
    const int code = Fail(result, place);
    errno = of_msync ? result.code : code == ENOSPC ? EIO : code;
    return -1;
  }
  return one ? 0 : kernel::Msync(address, length, flags);
}

Error SyncFile(Runtime& runtime, Volume& volume, FileId id, Extent range) {
  const uint32_t index = runtime.files().Find(volume.index(), id);
  if (index == kNoFile || runtime.files().at(index).store_maps.load(std::memory_order_acquire) == 0 ||
      !runtime.files().Pin(index)) {
    return Error::Ok();
  }
  const SyncScope scope;
  Mapping hint;
  hint.file = index;
  PersistFile local(runtime.files().at(index).backing.load(std::memory_order_acquire));
  const Error result = SyncOne(runtime, scope, hint, range, &local);
  runtime.Unpin(index, /*holding_map_lock=*/false);
  return result;
}

namespace {

Error SyncOthersOf(Runtime& runtime, Volume& volume) {
  const SyncGate::Pass pass(runtime.gate());
  const Deadline deadline = volume.WaitDeadline();
  const Error asked = runtime.link().AskLong(
      local::RequestKind::kSyncVolume, deadline,
      [&](local::Request& request) {
        request.volume = volume.index();
        request.wait_ns = static_cast<uint64_t>(deadline.Remaining().count());
      },
      [](DaemonLink::Answer&) { return Error::Ok(); });
  return DaemonLink::IsOfLink(asked) ? Error{ENOTCONN, asked.doing} : asked;
}

}  // namespace

Error SyncVolume(Runtime& runtime, Volume& volume) {
  constexpr Extent kAll{0, INT64_MAX & ~(uint64_t{kPageSize} - 1)};
  Error result = Error::Ok();
  for (uint32_t i = 0; i < runtime.files().limit(); ++i) {
    FileEntry& entry = runtime.files().at(i);
    if (entry.id.load(std::memory_order_acquire) != 0 &&
        entry.volume.load(std::memory_order_relaxed) == volume.index()) {
      const Error synced = SyncFile(runtime, volume, entry.file_id(), kAll);
      result = result.ok() ? synced : result;
    }
  }
  const SyncScope scope;
  const Error others =
      runtime.WithDaemon(volume, FileId::kNone, [&] { return SyncOthersOf(runtime, volume); });
  return result.ok() ? others : result;
}

}  // namespace pmirror::interpose
