// SPDX-License-Identifier: BSD-3-Clause
// libpmirror: the functions of pmirror.h, by way of the preload library where it is loaded, else by the
// system's own calls on the mount.
#include <dlfcn.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstdint>

#include "interpose/pmirror.h"
#include "interpose/preload_entry.h"

namespace {

using pmirror::interpose::PreloadTable;

constexpr uintptr_t kPage = 4096;

// Null without the preload library.
const PreloadTable* FindPreload() {
  using Entry = const PreloadTable* (*)();
  const auto entry = reinterpret_cast<Entry>(::dlsym(RTLD_DEFAULT, "pmirror_preload_entry"));
  const PreloadTable* table = entry != nullptr ? entry() : nullptr;
  return table != nullptr && table->version == pmirror::interpose::kPreloadTableVersion ? table : nullptr;
}

// Looked up when the library is loaded: later calls may be in signal handlers.
const PreloadTable* const kPreload = FindPreload();

thread_local int g_last_error = 0;  // without the preload library

int Sync(const void* address, size_t length) {
  const uintptr_t start = reinterpret_cast<uintptr_t>(address) & ~(kPage - 1);
  const uintptr_t past = reinterpret_cast<uintptr_t>(address) + length;
  const int result = ::msync(reinterpret_cast<void*>(start), past - start, MS_SYNC);
  g_last_error = result == 0 ? g_last_error : errno;
  return result;
}

}  // namespace

extern "C" {

void* pmirror_map(int fd, size_t length, off_t offset, int writable) {
  const int protection = PROT_READ | (writable != 0 ? PROT_WRITE : 0);
  void* mapped = ::mmap(nullptr, length, protection, MAP_SHARED, fd, offset);
  return mapped == MAP_FAILED ? nullptr : mapped;
}

int pmirror_sync(const void* address, size_t length) { return Sync(address, length); }

int pmirror_flush(const struct pmirror_range* ranges, size_t count) {
  if (kPreload != nullptr && kPreload->active()) {
    return kPreload->flush(ranges, count);
  }
  int result = 0;
  for (size_t i = 0; i < count; ++i) {
    if (Sync(ranges[i].address, ranges[i].length) != 0) {
      result = -1;
    }
  }
  return result;
}

int pmirror_error(const char** what) {
  if (kPreload != nullptr && kPreload->active()) {
    return kPreload->error(what);
  }
  if (what != nullptr) {
    *what = g_last_error != 0 ? "msync" : "";
  }
  return g_last_error;
}

int pmirror_is_replicated(const void* address, size_t length) {
  return kPreload != nullptr && kPreload->active() ? kPreload->is_replicated(address, length) : 0;
}
}
