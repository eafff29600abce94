// SPDX-License-Identifier: BSD-3-Clause
// The functions of libpmem and libpmem2 that are taken over, as their manual pages declare them. Declared
// here and not included, so that pmirror builds and loads without them.
#pragma once

#include <cstddef>

struct pmem2_map;

extern "C" {
void pmem_persist(const void* address, size_t length);
void pmem_flush(const void* address, size_t length);
void pmem_drain();
int pmem_msync(const void* address, size_t length);
void pmem_deep_flush(const void* address, size_t length);
int pmem_deep_drain(const void* address, size_t length);
int pmem_deep_persist(const void* address, size_t length);
void* pmem_memmove(void* to, const void* from, size_t length, unsigned flags);
void* pmem_memcpy(void* to, const void* from, size_t length, unsigned flags);
void* pmem_memset(void* to, int value, size_t length, unsigned flags);
void* pmem_memmove_persist(void* to, const void* from, size_t length);
void* pmem_memcpy_persist(void* to, const void* from, size_t length);
void* pmem_memset_persist(void* to, int value, size_t length);
void* pmem_memmove_nodrain(void* to, const void* from, size_t length);
void* pmem_memcpy_nodrain(void* to, const void* from, size_t length);
void* pmem_memset_nodrain(void* to, int value, size_t length);
int pmem_has_auto_flush();

using pmem2_persist_fn = void (*)(const void*, size_t);
using pmem2_flush_fn = void (*)(const void*, size_t);
using pmem2_drain_fn = void (*)();
using pmem2_memmove_fn = void* (*)(void*, const void*, size_t, unsigned);
using pmem2_memcpy_fn = void* (*)(void*, const void*, size_t, unsigned);
using pmem2_memset_fn = void* (*)(void*, int, size_t, unsigned);
pmem2_persist_fn pmem2_get_persist_fn(pmem2_map* map);
pmem2_flush_fn pmem2_get_flush_fn(pmem2_map* map);
pmem2_drain_fn pmem2_get_drain_fn(pmem2_map* map);
pmem2_memmove_fn pmem2_get_memmove_fn(pmem2_map* map);
pmem2_memcpy_fn pmem2_get_memcpy_fn(pmem2_map* map);
pmem2_memset_fn pmem2_get_memset_fn(pmem2_map* map);
int pmem2_map_get_store_granularity(pmem2_map* map);
int pmem2_deep_flush(pmem2_map* map, void* address, size_t length);
}

namespace pmirror::interpose {

constexpr unsigned kPmemNoDrain = 1u << 0;  // PMEM_F_MEM_NODRAIN, PMEM2_F_MEM_NODRAIN
constexpr unsigned kPmemNoFlush = 1u << 5;  // PMEM_F_MEM_NOFLUSH, PMEM2_F_MEM_NOFLUSH
constexpr int kGranularityByte =
    0;  // PMEM2_GRANULARITY_BYTE: no flush needed, an application may never call one
constexpr int kGranularityCacheLine = 1;

}  // namespace pmirror::interpose
