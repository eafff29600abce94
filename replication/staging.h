// SPDX-License-Identifier: BSD-3-Clause
// A fixed set of equal buffers in which captured bytes rest until the transport has them. Memory is mapped
// once (mmap, not the heap); taking and giving back never allocates. Async-signal-safe. A taker that finds
// none free waits until its deadline; a thread holds at most one buffer, and gives it back before it waits
// for an acknowledgement.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "replication/deadline.h"
#include "replication/result.h"

namespace pmirror {

constexpr size_t kStagingBuffers = 8;

class StagingPool {
 public:
  // `buffer_bytes`: multiple of the page size.
  static Result<std::unique_ptr<StagingPool>> Create(size_t buffer_bytes);
  ~StagingPool();
  StagingPool(const StagingPool&) = delete;
  StagingPool& operator=(const StagingPool&) = delete;

  class Buffer {  // RAII
   public:
    Buffer() = default;
    Buffer(Buffer&& other) noexcept;
    Buffer& operator=(Buffer&& other) noexcept;
    ~Buffer();
    std::span<std::byte> bytes() const;

   private:
    friend class StagingPool;
    StagingPool* pool_ = nullptr;
    size_t index_ = 0;
  };
  // ETIMEDOUT when none came free.
  Result<Buffer> Take(Deadline deadline);

  // All buffers are free again. For the child of a fork: those who held one do not exist there.
  void ResetAfterFork();

 private:
  struct Impl;
  explicit StagingPool(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace pmirror
