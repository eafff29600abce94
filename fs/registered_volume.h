// SPDX-License-Identifier: BSD-3-Clause
// One mounted volume in the registry of programs.
#pragma once

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <utility>

#include "fs/client_table.h"
#include "fs/client_volume.h"
#include "fs/foreign_capture.h"

namespace pmirror::fs {

// How many processes have each file of a volume mapped for writing; tells the volume of each change, in the order of the changes.
class WritingMappers {
 public:
  explicit WritingMappers(ClientVolume& volume) : volume_(volume) {}

  // One process more, one process less.
  void Add(ReplicatedFile& file) {
    std::lock_guard lock(mutex_);
    volume_.SetWritingMappers(file, ++processes_[file.id()]);
  }
  void Remove(ReplicatedFile& file) {
    std::lock_guard lock(mutex_);
    const auto found = processes_.find(file.id());
    if (found == processes_.end()) {
      return;
    }
    const size_t left = --found->second;
    if (left == 0) {
      processes_.erase(found);
    }
    volume_.SetWritingMappers(file, left);
  }

 private:
  ClientVolume& volume_;
  std::mutex mutex_;                    // held across SetWritingMappers (client_process.h)
  std::map<FileId, size_t> processes_;  // guarded by mutex_
};

struct RegisteredVolume {
  RegisteredVolume(ClientVolume& client_volume, const ClientTable& processes, size_t index)
      : volume(client_volume), mappers(client_volume), stores(processes, index) {}

  ClientVolume& volume;
  WritingMappers mappers;
  ForeignCapture stores;
};

// The volumes of a node, by their index in a hello reply. Grows beside those who read it, and never shrinks. Thread-safe, but for Add, which one thread calls at a
// time.
class RegisteredVolumes {
 public:
  size_t size() const { return size_.load(std::memory_order_acquire); }
  bool empty() const { return size() == 0; }
  RegisteredVolume& operator[](size_t index) { return *volumes_[index]; }
  const RegisteredVolume& operator[](size_t index) const { return *volumes_[index]; }
  std::span<const std::unique_ptr<RegisteredVolume>> All() const { return {volumes_.data(), size()}; }
  // Requires: size() < local::kMaxVolumes.
  void Add(std::unique_ptr<RegisteredVolume> volume) {
    volumes_[size()] = std::move(volume);
    size_.fetch_add(1, std::memory_order_release);
  }

 private:
  std::array<std::unique_ptr<RegisteredVolume>, local::kMaxVolumes> volumes_;
  std::atomic<size_t> size_{0};
};

}  // namespace pmirror::fs
