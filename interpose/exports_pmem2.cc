// SPDX-License-Identifier: BSD-3-Clause
// libpmem2 hands out functions; for a replicated map it hands out ours. A function is used for the map it was
// asked for, so ours need nothing of libpmem2's: copies are plain, local durability is the node's persistence
// domain's business (flush.cc).
#include <cerrno>
#include <cstring>

#include "interpose/cache_flush.h"
#include "interpose/flush.h"
#include "interpose/next_call.h"
#include "interpose/pmem_calls.h"
#include "interpose/sync.h"

namespace pmirror::interpose {
namespace {

uintptr_t Number(const void* address) { return reinterpret_cast<uintptr_t>(address); }

void FlushAndMaybeDrain(const void* address, size_t length, unsigned flags) {
  Runtime* runtime = Runtime::Get();
  if (runtime == nullptr || length == 0 || (flags & kPmemNoFlush) != 0) {
    return;
  }
  Error result = Flush(*runtime, Number(address), length);
  if (result.ok() && (flags & kPmemNoDrain) == 0) {
    result = Drain(*runtime);
  }
  RaiseOnError(result, address);
}

void Persist(const void* address, size_t length) { FlushAndMaybeDrain(address, length, 0); }

void FlushOnly(const void* address, size_t length) { FlushAndMaybeDrain(address, length, kPmemNoDrain); }

void DrainOnly() {
  DrainCaches();
  Runtime* runtime = Runtime::Get();
  if (runtime != nullptr && !NothingToDrain()) {
    RaiseOnError(Drain(*runtime), nullptr);
  }
}

void* Copy(void* to, const void* from, size_t length, unsigned flags) {
  std::memmove(to, from, length);
  FlushAndMaybeDrain(to, length, flags);
  return to;
}

void* Set(void* to, int value, size_t length, unsigned flags) {
  std::memset(to, value, length);
  FlushAndMaybeDrain(to, length, flags);
  return to;
}

bool IsReplicatedMap(pmem2_map* map) {
  Runtime* runtime = Runtime::Get();
  const auto address_of =
      reinterpret_cast<void* (*)(pmem2_map*)>(AddressIn(Library::kLibpmem2, "pmem2_map_get_address"));
  const auto size_of =
      reinterpret_cast<size_t (*)(pmem2_map*)>(AddressIn(Library::kLibpmem2, "pmem2_map_get_size"));
  return runtime != nullptr && !runtime->maps().empty() && address_of != nullptr && size_of != nullptr &&
         IsReplicated(*runtime, Number(address_of(map)), size_of(map));
}

template <typename Getter, typename Function>
Function Choose(Call call, Getter* getter, pmem2_map* map, Function ours) {
  const Function real = Next(call, getter)(map);
  return real != nullptr && IsReplicatedMap(map) ? ours : real;
}

}  // namespace

// The parameters' names in libc's headers are reserved ones.
// NOLINTBEGIN(readability-inconsistent-declaration-parameter-name)
extern "C" {

pmem2_persist_fn pmem2_get_persist_fn(pmem2_map* map) {
  return Choose(Call::k_pmem2_get_persist_fn, &::pmem2_get_persist_fn, map, &Persist);
}

pmem2_flush_fn pmem2_get_flush_fn(pmem2_map* map) {
  return Choose(Call::k_pmem2_get_flush_fn, &::pmem2_get_flush_fn, map, &FlushOnly);
}

pmem2_drain_fn pmem2_get_drain_fn(pmem2_map* map) {
  return Choose(Call::k_pmem2_get_drain_fn, &::pmem2_get_drain_fn, map, &DrainOnly);
}

pmem2_memmove_fn pmem2_get_memmove_fn(pmem2_map* map) {
  return Choose(Call::k_pmem2_get_memmove_fn, &::pmem2_get_memmove_fn, map, &Copy);
}

pmem2_memcpy_fn pmem2_get_memcpy_fn(pmem2_map* map) {
  return Choose(Call::k_pmem2_get_memcpy_fn, &::pmem2_get_memcpy_fn, map, &Copy);
}

pmem2_memset_fn pmem2_get_memset_fn(pmem2_map* map) {
  return Choose(Call::k_pmem2_get_memset_fn, &::pmem2_get_memset_fn, map, &Set);
}

// At byte granularity a program may never flush, and with it goes the only sign of what it has finished
// storing.
int pmem2_map_get_store_granularity(pmem2_map* map) {
  const int real = Next(Call::k_pmem2_map_get_store_granularity, &::pmem2_map_get_store_granularity)(map);
  return real == kGranularityByte && IsReplicatedMap(map) ? kGranularityCacheLine : real;
}

int pmem2_deep_flush(pmem2_map* map, void* address, size_t length) {
  const int result = Next(Call::k_pmem2_deep_flush, &::pmem2_deep_flush)(map, address, length);
  Runtime* runtime = Runtime::Get();
  if (result != 0 || runtime == nullptr || length == 0 || !IsReplicated(*runtime, Number(address), length)) {
    return result;
  }
  Error replicated = Flush(*runtime, Number(address), length);
  if (replicated.ok()) {
    replicated = Drain(*runtime);
  }
  return replicated.ok() ? 0 : -ErrnoOf(replicated);  // libpmem2 returns negative errno values
}
}
// NOLINTEND(readability-inconsistent-declaration-parameter-name)

}  // namespace pmirror::interpose
