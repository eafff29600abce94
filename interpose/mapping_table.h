// SPDX-License-Identifier: BSD-3-Clause
// Which addresses of this process are mappings of replicated files. A sorted array in fixed memory; entries
// never overlap.
//
// Threads and signals: readers (Find, Next, empty) are lock-free and async-signal-safe; they copy an entry
// out and retry when a writer was at work. Writers exclude each other by the caller's lock and run with
// signals blocked, so that no reader can interrupt a writer on its own thread. Invariants: addresses and
// lengths are page aligned; entries are sorted; two neighbours that continue each other in address and offset
// and agree in everything else are one entry.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "replication/types.h"

namespace pmirror::interpose {

constexpr size_t kMaxMappings = 16384;
constexpr size_t kMappingWords = 5;

// Mapping::flags
constexpr uint32_t kMapShared = 1;       // MAP_SHARED of a writable descriptor: stores reach the file
constexpr uint32_t kMapReadable = 2;     // PROT_READ now
constexpr uint32_t kMapWritable = 4;     // PROT_WRITE now
constexpr uint32_t kMapStored = 8;       // PROT_WRITE at some time: there may be stores
constexpr uint32_t kMapDontFork = 16;    // MADV_DONTFORK: a child does not have it
constexpr uint32_t kMapExecutable = 32;  // PROT_EXEC now
constexpr uint32_t kMapObserver = 64;    // MAP_SHARED of a read-only descriptor: others' stores show in it

struct Mapping {
  uintptr_t address = 0;
  size_t length = 0;      // bytes
  uint64_t offset = 0;    // in the file, of `address`
  uint32_t file = 0;      // index in the FileTable
  uint32_t flags = 0;     // kMap*
  uint32_t tracking = 0;  // Tracking of this mapping
  uint32_t reserved = 0;

  uintptr_t end() const { return address + length; }
  bool Contains(uintptr_t at) const { return address <= at && at < end(); }
  uint64_t OffsetOf(uintptr_t at) const { return offset + (at - address); }
  Extent extent() const { return {offset, length}; }
  // The part of it in [start, past). Requires: they overlap.
  Mapping Clip(uintptr_t start, uintptr_t past) const {
    Mapping part = *this;
    part.address = start > address ? start : address;
    part.length = (past < end() ? past : end()) - part.address;
    part.offset = OffsetOf(part.address);
    return part;
  }
};
static_assert(sizeof(Mapping) == kMappingWords * sizeof(uint64_t));

class MappingTable {
 public:
  constexpr MappingTable() = default;

  bool empty() const { return count_.load(std::memory_order_acquire) == 0; }
  size_t size() const { return count_.load(std::memory_order_acquire); }

  // The entry that contains `address`.
  bool Find(uintptr_t address, Mapping& found) const;
  // The first entry that ends after `address`: iterate with Next(found.end(), found).
  bool Next(uintptr_t address, Mapping& found) const;
  // The first entry that overlaps [start, past).
  bool FirstOverlap(uintptr_t start, uintptr_t past, Mapping& found) const {
    return start < past && Next(start, found) && found.address < past;
  }

  // Writers. Insert requires that nothing overlaps; false when the table is full (also Remove and SetFlags,
  // which may split an entry: then nothing changed).
  bool Insert(const Mapping& mapping);
  bool Remove(uintptr_t start, uintptr_t past);
  bool SetFlags(uintptr_t start, uintptr_t past, uint32_t set, uint32_t clear);
  // Room for `pieces` more entries.
  bool HasRoom(size_t pieces) const { return size() + pieces <= kMaxMappings; }

  // In a forked child, or after one: makes readers trust the table again when a writer was cut off by a fork
  // it did not know of.
  void ResetInChild() {
    if (sequence_.load(std::memory_order_relaxed) % 2 != 0) {
      sequence_.fetch_add(1, std::memory_order_release);
    }
  }

 private:
  struct Slot {
    std::array<std::atomic<uint64_t>, kMappingWords> words{};
  };
  class Change;  // an odd sequence for its lifetime

  Mapping Load(size_t index) const;
  void Store(size_t index, const Mapping& mapping);
  void Open(size_t index, size_t count);                     // makes a gap of `count` slots
  void Close(size_t index, size_t count);                    // removes slots
  size_t LowerBound(uintptr_t address, size_t count) const;  // first entry whose end is after `address`
  bool SplitAt(uintptr_t address);
  void MergeAt(size_t index);  // with its successor, when they continue each other

  std::atomic<uint64_t> sequence_{0};  // odd while a writer is at work
  std::atomic<size_t> count_{0};
  std::array<Slot, kMaxMappings> slots_{};
};

}  // namespace pmirror::interpose
