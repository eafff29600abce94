// SPDX-License-Identifier: BSD-3-Clause
// libpmirror: the functions of pmirror.h, by way of the preload library where it is loaded, else by the
// system's own calls on the mount. Asynchronous flushes are in api_async.cc, subscriptions in api_events.cc.
#include <dlfcn.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <new>

#include "interpose/api_parts.h"
#include "interpose/describe_volume.h"
#include "interpose/pmirror.h"

namespace pmirror::interpose {
namespace {

constexpr uintptr_t kPage = 4096;

// Null without the preload library.
const PreloadTable* FindPreload() {
  using Entry = const PreloadTable* (*)();
  const auto entry = reinterpret_cast<Entry>(::dlsym(RTLD_DEFAULT, "pmirror_preload_entry"));
  const PreloadTable* table = entry != nullptr ? entry() : nullptr;
  return table != nullptr && table->version == kPreloadTableVersion ? table : nullptr;
}

// Looked up when the library is loaded: later calls may be in signal handlers.
const PreloadTable* const kPreload = FindPreload();

// Without the preload library.
struct LastError {
  int error = 0;
  int action = PMIRROR_ACTION_NONE;
  pmirror_range range{nullptr, 0};
};
thread_local LastError g_last;

int Sync(const void* address, size_t length, int action) {
  const uintptr_t start = reinterpret_cast<uintptr_t>(address) & ~(kPage - 1);
  const uintptr_t past = reinterpret_cast<uintptr_t>(address) + length;
  const int result = ::msync(reinterpret_cast<void*>(start), past - start, MS_SYNC);
  if (result != 0) {
    g_last = {errno, action, {address, length}};
  }
  return result;
}

// Which file is mapped at an address, by the kernel's own word.
struct MappedFileOf {
  uint64_t device = 0;
  uint64_t inode = 0;
  uint64_t offset = 0;  // of the address
};

bool FindMapping(const void* address, MappedFileOf& found) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> maps(std::fopen("/proc/self/maps", "re"),
                                                             &std::fclose);
  const auto at = reinterpret_cast<uintptr_t>(address);
  char line[512];
  bool begins = true;
  while (maps != nullptr && std::fgets(line, sizeof(line), maps.get()) != nullptr) {
    unsigned long start = 0;
    unsigned long past = 0;
    unsigned long offset = 0;
    unsigned long inode = 0;
    unsigned major = 0;
    unsigned minor = 0;
    const bool parsed = begins && std::sscanf(line, "%lx-%lx %*s %lx %x:%x %lu", &start, &past, &offset,
                                              &major, &minor, &inode) == 6;
    begins = line[std::char_traits<char>::length(line) - 1] == '\n';  // a long path fills several reads
    if (parsed && start <= at && at < past) {
      found = {.device = gnu_dev_makedev(major, minor), .inode = inode, .offset = offset + (at - start)};
      return inode != 0;
    }
  }
  return false;
}

// Through the daemon. 0 or an errno.
int AskAttributes(const void* address, pmirror_attributes& out) try {
  MappedFileOf mapped;
  if (!FindMapping(address, mapped)) {
    return ENXIO;
  }
  const auto observation = std::make_unique<Observation>();
  if (const int error = Observe(mapped.device, *observation); error != 0) {
    return error;
  }
  for (uint32_t i = 0; i < observation->reply.mount_count; ++i) {
    const local::Mount& mount = observation->reply.mounts[i];
    const MappedPage page(observation->pages[i]);
    if (mount.device == mapped.device && page.get() != nullptr) {
      DescribeVolume(*page.get(), Carrier::kMount, out);
      CopyText(out.volume, sizeof(out.volume), mount.name);
      out.file = mapped.inode;
      out.offset = mapped.offset;
      return 0;
    }
  }
  return ENXIO;
} catch (const std::bad_alloc&) {
  return ENOMEM;
}

}  // namespace

const PreloadTable* Preload() { return kPreload != nullptr && kPreload->active() ? kPreload : nullptr; }

}  // namespace pmirror::interpose

using namespace pmirror::interpose;  // NOLINT: the C API of it

extern "C" {

void* pmirror_map(int fd, size_t length, off_t offset, int writable) {
  const int protection = PROT_READ | (writable != 0 ? PROT_WRITE : 0);
  void* mapped = ::mmap(nullptr, length, protection, MAP_SHARED, fd, offset);
  return mapped == MAP_FAILED ? nullptr : mapped;
}

int pmirror_sync(const void* address, size_t length) { return Sync(address, length, PMIRROR_ACTION_SYNC); }

int pmirror_flush(const struct pmirror_range* ranges, size_t count) {
  if (const PreloadTable* preload = Preload()) {
    return preload->flush(ranges, count);
  }
  int result = 0;
  for (size_t i = 0; i < count; ++i) {
    if (Sync(ranges[i].address, ranges[i].length, PMIRROR_ACTION_FLUSH) != 0) {
      result = -1;
    }
  }
  return result;
}

int pmirror_flush_verify(const struct pmirror_range* ranges, size_t count) {
  if (const PreloadTable* preload = Preload()) {
    return preload->flush_verify(ranges, count);
  }
  errno = ENOTSUP;
  return -1;
}

int pmirror_flush_atomic(const struct pmirror_range* ranges, size_t count) {
  if (const PreloadTable* preload = Preload()) {
    return preload->flush_atomic(ranges, count);
  }
  errno = ENOTSUP;
  return -1;
}

int pmirror_error(const char** what) {
  if (const PreloadTable* preload = Preload()) {
    return preload->error(what);
  }
  if (what != nullptr) {
    *what = g_last.error != 0 ? "msync" : "";
  }
  return g_last.error;
}

int pmirror_get_error_info(struct pmirror_error_info* info) {
  pmirror_error_info full{};
  full.replica = -1;
  if (const PreloadTable* preload = Preload()) {
    preload->error_info(&full);
  } else {
    full.error = g_last.error;
    full.action = g_last.action;
    full.range = g_last.range;
    CopyText(full.text, sizeof(full.text), g_last.error != 0 ? "msync" : "");
  }
  if (!CopyOut(&full, sizeof(full), offsetof(pmirror_error_info, action), info)) {
    errno = EINVAL;
    return -1;
  }
  return 0;
}

int pmirror_is_replicated(const void* address, size_t length) {
  const PreloadTable* preload = Preload();
  return preload != nullptr ? preload->is_replicated(address, length) : 0;
}

int pmirror_get_attributes(const void* address, struct pmirror_attributes* out) {
  pmirror_attributes full{};
  const PreloadTable* preload = Preload();
  int error = preload != nullptr ? preload->attributes(address, &full) : AskAttributes(address, full);
  if (error == 0 && !CopyOut(&full, sizeof(full), offsetof(struct pmirror_attributes, preloaded), out)) {
    error = EINVAL;
  }
  errno = error != 0 ? error : errno;
  return error != 0 ? -1 : 0;
}
}
