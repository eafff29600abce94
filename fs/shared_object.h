// SPDX-License-Identifier: BSD-3-Clause
// One object in a sealed memfd, mapped here and passed to programs by descriptor. The size is sealed, so that nobody can make an access
// fault; kReadOnly additionally denies later writable mappings, so that only the daemon writes.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <new>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "replication/unique_fd.h"

namespace pmirror::fs {

enum class Receivers { kReadWrite, kReadOnly };

// Not a template: the untyped half of SharedObject.
class SharedMemory {
 public:
  static absl::StatusOr<SharedMemory> Create(const char* name, size_t bytes, Receivers receivers);
  // Maps a descriptor that a program made (read-only). Refuses one that is smaller than `bytes` or could shrink.
  static absl::StatusOr<SharedMemory> Receive(UniqueFd fd, size_t bytes);

  SharedMemory() = default;
  SharedMemory(SharedMemory&& other) noexcept
      : fd_(std::move(other.fd_)), address_(std::exchange(other.address_, nullptr)), bytes_(other.bytes_) {}
  SharedMemory& operator=(SharedMemory&& other) noexcept {
    std::swap(fd_, other.fd_);
    std::swap(address_, other.address_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~SharedMemory() {
    if (address_ != nullptr) {
      ::munmap(address_, bytes_);
    }
  }

  void* address() const { return address_; }
  int fd() const { return fd_.get(); }

 private:
  UniqueFd fd_;
  void* address_ = nullptr;
  size_t bytes_ = 0;
};

template <typename T>
class SharedObject {
 public:
  static absl::StatusOr<SharedObject> Create(const char* name, Receivers receivers) {
    absl::StatusOr<SharedMemory> memory = SharedMemory::Create(name, sizeof(T), receivers);
    if (!memory.ok()) {
      return memory.status();
    }
    return SharedObject(*std::move(memory));
  }
  // The memory is zero at creation, which is a valid T for the pages of replication/.
  T* operator->() const { return static_cast<T*>(memory_.address()); }
  T& operator*() const { return *static_cast<T*>(memory_.address()); }
  int fd() const { return memory_.fd(); }

 private:
  explicit SharedObject(SharedMemory memory) : memory_(std::move(memory)) {}
  SharedMemory memory_;
};

}  // namespace pmirror::fs
