// SPDX-License-Identifier: BSD-3-Clause
// The replicated files that this process has mapped, in fixed memory. An entry lives while pieces of the file
// are mapped or a sync uses it.
//
// Threads: entries are made and freed under the runtime's map lock; Pin and lookups are lock-free and
// async-signal-safe.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "interpose/own_descriptors.h"
#include "replication/order_page.h"
#include "replication/types.h"
#include "replication/volume_page.h"

namespace pmirror::interpose {

constexpr uint32_t kMaxFiles = 4096;
constexpr uint32_t kNoFile = UINT32_MAX;

struct FileEntry {
  std::atomic<uint64_t> id{0};  // FileId; 0: free
  std::atomic<uint32_t> volume{0};
  std::atomic<uint32_t> pins{0};          // syncs that use it, and one for all mappings together
  std::atomic<uint32_t> store_maps{0};    // 1 once a mapping of it could be stored to
  std::atomic<uint64_t> mapped_bytes{0};  // guarded by the map lock
  std::atomic<OwnDescriptors::Handle> backing{0};
  std::atomic<OrderPage*> order{nullptr};  // null while only read-only descriptors mapped it
  std::atomic<const FileSlot*> slot{nullptr};
  std::atomic<int> unserved{0};  // errno for which a new daemon did not take the file over (relink.cc)

  FileId file_id() const { return FileId{id.load(std::memory_order_acquire)}; }
};

class FileTable {
 public:
  constexpr FileTable() = default;

  FileEntry& at(uint32_t index) { return entries_[index]; }
  const FileEntry& at(uint32_t index) const { return entries_[index]; }
  uint32_t limit() const { return limit_.load(std::memory_order_acquire); }

  // Index of the live entry; kNoFile when there is none.
  uint32_t Find(uint32_t volume, FileId id) const {
    const uint32_t past = limit();
    for (uint32_t i = 0; i < past; ++i) {
      if (entries_[i].id.load(std::memory_order_acquire) == Raw(id) &&
          entries_[i].volume.load(std::memory_order_relaxed) == volume) {
        return i;
      }
    }
    return kNoFile;
  }

  // Under the map lock: the entry, made when there is none. kNoFile: full.
  uint32_t FindOrMake(uint32_t volume, FileId id) {
    if (const uint32_t found = Find(volume, id); found != kNoFile) {
      return found;
    }
    for (uint32_t i = 0; i < kMaxFiles; ++i) {
      FileEntry& entry = entries_[i];
      if (entry.id.load(std::memory_order_acquire) == 0) {
        entry.volume.store(volume, std::memory_order_relaxed);
        entry.id.store(Raw(id), std::memory_order_release);
        if (i >= limit()) {
          limit_.store(i + 1, std::memory_order_release);
        }
        return i;
      }
    }
    return kNoFile;
  }

  // Keeps a live entry from being freed. False when it is not live.
  bool Pin(uint32_t index) {
    std::atomic<uint32_t>& pins = entries_[index].pins;
    uint32_t seen = pins.load(std::memory_order_relaxed);
    while (seen != 0) {
      if (pins.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel)) {
        return true;
      }
    }
    return false;
  }

 private:
  std::atomic<uint32_t> limit_{0};
  std::array<FileEntry, kMaxFiles> entries_{};
};

}  // namespace pmirror::interpose
