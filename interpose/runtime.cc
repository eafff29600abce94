// SPDX-License-Identifier: BSD-3-Clause
// Start of the library in a process, and everything about its parts that several calls need.
#include "interpose/runtime.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#include "interpose/kernel.h"
#include "interpose/log.h"
#include "interpose/mount_info.h"
#include "interpose/next_call.h"
#include "interpose/thread_state.h"
#include "replication/write_tracker.h"

namespace pmirror::interpose {
namespace {

constexpr size_t kStagingBufferBytes = 1 << 20;

// Large tables live in zeroed memory that costs nothing until it is touched.
constinit MappingTable g_maps;
constinit FileTable g_files;
constinit TicketLog g_tickets;
alignas(Runtime) char g_runtime_room[sizeof(Runtime)];

constinit thread_local ThreadState g_thread_state __attribute__((tls_model("initial-exec")));

// Before the program's first instruction: running it all the same would be running it without a replica.
[[noreturn]] void RefuseToRun(const char* doing, int code) {
  char line[256];
  const int length = std::snprintf(
      line, sizeof(line), "pmirror: the program was not started, it could not be replicated: %s: %s\n", doing,
      ::strerrordesc_np(code));
  (void)!::write(STDERR_FILENO, line, static_cast<size_t>(length));
  ::_exit(1);
}

// What the environment says, in milliseconds; bounded by a day.
std::chrono::milliseconds ClosePatience(const char* text) {
  constexpr std::chrono::milliseconds kLongest = std::chrono::hours(24);
  const unsigned long long given = text != nullptr ? std::strtoull(text, nullptr, 10) : 0;
  return given < static_cast<unsigned long long>(kLongest.count()) ? std::chrono::milliseconds(given)
                                                                   : kLongest;
}

}  // namespace

std::atomic<Runtime*> Runtime::instance{nullptr};

ThreadState& thread_state() { return g_thread_state; }

void Runtime::Start() {
  auto* runtime = new (g_runtime_room) Runtime(g_maps, g_files, g_tickets);
  const bool required = ::secure_getenv(local::kRequiredEnvironment) != nullptr;
  ::unsetenv(local::kRequiredEnvironment);
  runtime->close_patience_ = ClosePatience(::secure_getenv(local::kWaitEnvironment));
  if (!runtime->FindSocket()) {
    if (required) {
      RefuseToRun("no daemon is named by PMIRROR_SOCKET or a mount", ENOENT);
    }
    return;
  }
  const Error announced = runtime->Announce();
  if (!announced.ok()) {
    LogLine(LogLevel::kWarning)
        .Text("passive: ")
        .Text(announced.doing)
        .Field("errno", static_cast<uint64_t>(announced.code))
        .Field("socket", runtime->socket_path_);
    if (required) {
      RefuseToRun(announced.doing, announced.code);
    }
    return;
  }
  instance.store(runtime, std::memory_order_release);
}

bool Runtime::FindSocket() {
  if (const char* named = ::secure_getenv(local::kSocketEnvironment); named != nullptr && *named != '\0') {
    if (std::strlen(named) >= sizeof(socket_path_)) {
      return false;
    }
    std::memcpy(socket_path_, named, std::strlen(named) + 1);
    return true;
  }
  static char text[1 << 16];  // the constructor runs once
  const UniqueFd file(::open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC));
  size_t used = 0;
  while (file.valid() && used < sizeof(text) - 1) {
    const ssize_t got = ::read(file.get(), text + used, sizeof(text) - 1 - used);
    if (got <= 0) {
      break;
    }
    used += static_cast<size_t>(got);
  }
  bool several = false;
  const bool found = FindSocketInMountInfo(text, socket_path_, sizeof(socket_path_), several);
  if (several) {
    LogLine(LogLevel::kWarning)
        .Text("mounts of several daemons; PMIRROR_SOCKET chooses")
        .Field("chosen", socket_path_);
  }
  return found;
}

Error Runtime::MakeTicketTable(UniqueFd& memory) {
  memory.Reset(::memfd_create("pmirror-tickets", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  // Sealed, because the daemon reads it: what could shrink would be a fault there.
  if (!memory.valid() || ::ftruncate(memory.get(), sizeof(TicketTable)) != 0 ||
      ::syscall(SYS_fcntl, memory.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
    return Error::FromErrno("make the ticket table");
  }
  void* table =
      kernel::Mmap(nullptr, sizeof(TicketTable), PROT_READ | PROT_WRITE, MAP_SHARED, memory.get(), 0);
  if (table == MAP_FAILED) {
    return Error::FromErrno("map the ticket table");
  }
  if (tickets_.table() != nullptr) {  // the parent's, in a forked child
    kernel::Munmap(reinterpret_cast<uintptr_t>(tickets_.table()), sizeof(TicketTable));
  }
  tickets_.Attach(static_cast<TicketTable*>(table));
  return Error::Ok();
}

Error Runtime::MakeAlivePage() {
  void* page = kernel::Mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) {
    return Error::FromErrno("map a page");
  }
  kernel::Madvise(reinterpret_cast<uintptr_t>(page), kPageSize, MADV_WIPEONFORK);
  alive_ = static_cast<std::atomic<uint32_t>*>(page);
  alive_->store(1, std::memory_order_relaxed);
  return Error::Ok();
}

// Both early: after setuid() they could not be opened any more (trap 17).
void Runtime::OpenTracker() {
  own_descriptors().Adopt(UniqueFd(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC)), OwnKind::kPagemap);
  Result<WriteTracker> tracker = WriteTracker::Open();
  if (tracker.ok()) {
    own_descriptors().Adopt(tracker.value().Release(), OwnKind::kUserfault);
  } else {
    LogLine(LogLevel::kWarning)
        .Text("no write tracking, syncs send whole ranges: ")
        .Text(tracker.error().doing)
        .Field("errno", static_cast<uint64_t>(tracker.error().code));
  }
}

Error Runtime::Announce() {
  UniqueFd tickets;
  pid_ = static_cast<int>(::syscall(SYS_getpid));
  PMIRROR_RETURN_IF_ERROR(MakeTicketTable(tickets));
  if (alive_ == nullptr) {
    PMIRROR_RETURN_IF_ERROR(MakeAlivePage());
  }
  OpenTracker();
  own_descriptors().Adopt(std::move(tickets), OwnKind::kTickets);  // another daemon gets the same table
  return link_.Start(socket_path_, own_descriptors().Single(OwnKind::kTickets),
                     own_descriptors().Single(OwnKind::kPagemap),
                     [this](DaemonLink::Answer& answer) { return AcceptMounts(answer); });
}

Error Runtime::AcceptMounts(DaemonLink::Answer& answer) {
  const uint32_t count = answer.reply->mount_count;
  if (count > local::kMaxVolumes || answer.descriptor_count != count) {
    return {EPROTO, "hello: a volume page is missing"};
  }
  // Tickets and mappings name a volume by its number: with another configuration this program's are worth nothing.
  for (uint32_t i = 0; i < volume_count(); ++i) {
    if (i >= count || answer.reply->mounts[i].volume != volumes_[i].uuid()) {
      return {EPROTO, "hello: this daemon has other volumes; start the program again"};
    }
  }
  for (uint32_t i = 0; i < count; ++i) {
    PMIRROR_RETURN_IF_ERROR(AcceptMount(i, answer.reply->mounts[i], answer.descriptors[i].get()));
  }
  volume_count_.store(count, std::memory_order_release);
  return Error::Ok();
}

// The volume's page, or the one that takes its place: in a forked child, and after another daemon's start.
Error Runtime::AcceptMount(uint32_t index, const local::Mount& mount, int fd) {
  void* page = kernel::Mmap(nullptr, sizeof(VolumePage), PROT_READ, MAP_SHARED, fd, 0);
  if (page == MAP_FAILED) {
    return Error::FromErrno("map a volume page");
  }
  const auto* volume_page = static_cast<const VolumePage*>(page);
  if (volume_page->magic != kVolumePageMagic || volume_page->version != 1) {
    kernel::Munmap(reinterpret_cast<uintptr_t>(page), sizeof(VolumePage));
    return {EPROTO, "hello: a volume page of another version"};
  }
  if (volumes_[index].attached()) {
    return volumes_[index].Replace(mount, volume_page);
  }
  volumes_[index].Attach(link_, index, mount, volume_page);
  return Error::Ok();
}

Volume* Runtime::VolumeOfDevice(uint64_t device) {
  for (uint32_t i = 0; i < volume_count(); ++i) {
    if (volumes_[i].device() == device) {
      return &volumes_[i];
    }
  }
  return nullptr;
}

Volume* Runtime::VolumeOfDescriptor(int fd, uint64_t& inode) {
  struct stat status;
  const int saved_errno = errno;
  if (volume_count() == 0 || fd < 0 || ::fstat(fd, &status) != 0 || !S_ISREG(status.st_mode)) {
    errno = saved_errno;
    return nullptr;
  }
  inode = status.st_ino;
  return VolumeOfDevice(status.st_dev);
}

Error Runtime::MakeReady(Volume& volume) {
  if (staging_ == nullptr) {
    Result<std::unique_ptr<StagingPool>> staging = StagingPool::Create(kStagingBufferBytes);
    if (!staging.ok()) {
      return staging.error();
    }
    staging_ = std::move(staging).value();
  }
  return volume.MakeReady(*staging_);
}

void Runtime::Unpin(uint32_t file, bool holding_map_lock) {
  FileEntry& entry = files_.at(file);
  if (entry.pins.fetch_sub(1, std::memory_order_acq_rel) != 1) {
    return;
  }
  const SignalBlock signals;
  if (!holding_map_lock) {
    map_lock_.Lock();
  }
  if (entry.pins.load(std::memory_order_acquire) == 0 && entry.id.load(std::memory_order_acquire) != 0) {
    const uint32_t volume = entry.volume.load(std::memory_order_relaxed);
    const FileId id = entry.file_id();
    own_descriptors().Close(entry.backing.exchange(0, std::memory_order_acq_rel));
    if (OrderPage* order = entry.order.exchange(nullptr, std::memory_order_acq_rel); order != nullptr) {
      kernel::Munmap(reinterpret_cast<uintptr_t>(order), kPageSize);
    }
    entry.store_maps.store(0, std::memory_order_relaxed);
    if (const int before = entry.unserved.exchange(0, std::memory_order_relaxed);
        before != 0 && before != ESTALE) {
      unserved_.fetch_sub(1, std::memory_order_relaxed);
    }
    entry.id.store(0, std::memory_order_release);
    const Error told = link_.Ask(local::RequestKind::kCloseBacking, [&](local::Request& request) {
      request.volume = volume;
      request.file = Raw(id);
    });
    if (!told.ok()) {
      LogLine(LogLevel::kDebug).Text(told.doing).Field("errno", static_cast<uint64_t>(told.code));
    }
  }
  if (!holding_map_lock) {
    map_lock_.Unlock();
  }
}

}  // namespace pmirror::interpose
