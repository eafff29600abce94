// SPDX-License-Identifier: BSD-3-Clause
// The preload library's side of libpmirror.
#include "interpose/preload_entry.h"

#include <algorithm>
#include <array>
#include <cerrno>

#include "interpose/flush.h"
#include "interpose/sync.h"
#include "interpose/thread_state.h"

namespace pmirror::interpose {
namespace {

// All of [address, address + length) in replicated mappings?
bool Covered(Runtime& runtime, uintptr_t address, size_t length) {
  Mapping mapping;
  uintptr_t at = address;
  while (at < address + length) {
    if (!runtime.maps().Find(at, mapping) || (mapping.flags & kMapShared) == 0) {
      return false;
    }
    at = mapping.end();
  }
  return true;
}

uintptr_t Number(const void* address) { return reinterpret_cast<uintptr_t>(address); }

int FlushRanges(const pmirror_range* ranges, size_t count) {
  Runtime* runtime = Runtime::Get();
  for (size_t i = 0; i < count; ++i) {
    if (runtime == nullptr || !Covered(*runtime, Number(ranges[i].address), ranges[i].length)) {
      errno = EINVAL;
      return -1;
    }
  }
  // Lists that are longer than one capture holds go in several.
  Error result = Error::Ok();
  for (size_t done = 0; done < count;) {
    std::array<FlushedRange, kMaxFlushed> part;
    const size_t some = std::min(count - done, part.size());
    for (size_t i = 0; i < some; ++i) {
      part[i] = {Number(ranges[done + i].address), ranges[done + i].length};
    }
    const Error flushed = FlushNow(*runtime, std::span(part).first(some));
    result = result.ok() ? flushed : result;
    done += some;
  }
  if (!result.ok()) {
    errno = Fail(result);
    return -1;
  }
  return 0;
}

int LastError(const char** what) {
  const ThreadState& thread = thread_state();
  if (what != nullptr) {
    *what = thread.last_doing;
  }
  return thread.last_error;
}

int IsAllReplicated(const void* address, size_t length) {
  Runtime* runtime = Runtime::Get();
  return runtime != nullptr && length != 0 && Covered(*runtime, Number(address), length) ? 1 : 0;
}

bool IsActive() { return Runtime::Get() != nullptr; }

constexpr PreloadTable kTable{kPreloadTableVersion, IsActive, FlushRanges, LastError, IsAllReplicated};

}  // namespace
}  // namespace pmirror::interpose

extern "C" const pmirror::interpose::PreloadTable* pmirror_preload_entry() {
  return &pmirror::interpose::kTable;
}
