// SPDX-License-Identifier: BSD-3-Clause
// See staging.h. The set of free buffers is one word: bits to take and give back with, and the futex to sleep
// on.
#include "replication/staging.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <bit>
#include <climits>
#include <cstdint>
#include <new>

#include "replication/futex_mutex.h"
#include "replication/signal_guard.h"
#include "replication/types.h"

namespace pmirror {
namespace {

constexpr uint32_t kAllFree = (uint32_t{1} << kStagingBuffers) - 1;
static_assert(kStagingBuffers < 32);

}  // namespace

struct StagingPool::Impl {
  std::byte* memory = nullptr;
  size_t buffer_bytes = 0;
  std::atomic<uint32_t> free{kAllFree};
  std::atomic<uint32_t> waiting{0};  // takers asleep or about to be: giving back costs no system call without

  ~Impl() {
    if (memory != nullptr) {
      ::syscall(SYS_munmap, memory, buffer_bytes * kStagingBuffers);
    }
  }

  // A free buffer's index, or -1.
  int TryTake() {
    uint32_t seen = free.load(std::memory_order_relaxed);
    while (seen != 0) {
      const int index = std::countr_zero(seen);
      if (free.compare_exchange_weak(seen, seen & ~(uint32_t{1} << index), std::memory_order_seq_cst)) {
        return index;
      }
    }
    return -1;
  }

  void GiveBack(size_t index) {
    free.fetch_or(uint32_t{1} << index, std::memory_order_seq_cst);
    if (waiting.load(std::memory_order_seq_cst) != 0) {
      FutexWake(&free, INT_MAX, FutexScope::kPrivate);
    }
  }

  int TakeWaiting(Deadline deadline) {
    waiting.fetch_add(1, std::memory_order_seq_cst);
    int index = -1;
    while ((index = TryTake()) < 0 && !deadline.Expired()) {
      const SignalWindow window(SignalWindow::kNow);
      FutexWait(&free, 0, deadline, FutexScope::kPrivate);
    }
    waiting.fetch_sub(1, std::memory_order_seq_cst);
    return index;
  }
};

StagingPool::StagingPool(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
StagingPool::~StagingPool() = default;

Result<std::unique_ptr<StagingPool>> StagingPool::Create(size_t buffer_bytes) {
  if (buffer_bytes == 0 || buffer_bytes % kPageSize != 0) {
    return Error{EINVAL, "size the staging buffers in whole pages"};
  }
  std::unique_ptr<Impl> impl(new (std::nothrow) Impl);
  if (impl == nullptr) {
    return Error{ENOMEM, "allocate the staging pool"};
  }
  // The system call itself: mmap may be the program's, or ours that watches the program's.
  const long memory = ::syscall(SYS_mmap, nullptr, buffer_bytes * kStagingBuffers, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == -1) {
    return Error::FromErrno("map the staging buffers");
  }
  impl->memory = reinterpret_cast<std::byte*>(memory);
  impl->buffer_bytes = buffer_bytes;
  std::unique_ptr<StagingPool> pool(new (std::nothrow) StagingPool(std::move(impl)));
  if (pool == nullptr) {
    return Error{ENOMEM, "allocate the staging pool"};
  }
  return pool;
}

Result<StagingPool::Buffer> StagingPool::Take(Deadline deadline) {
  int index = impl_->TryTake();
  if (index < 0) {
    const SignalBlock block;
    index = impl_->TakeWaiting(deadline);
  }
  if (index < 0) {
    return Error{ETIMEDOUT, "wait for a free staging buffer"};
  }
  Buffer buffer;
  buffer.pool_ = this;
  buffer.index_ = static_cast<size_t>(index);
  return buffer;
}

StagingPool::Buffer::Buffer(Buffer&& other) noexcept
    : pool_(std::exchange(other.pool_, nullptr)), index_(other.index_) {}

StagingPool::Buffer& StagingPool::Buffer::operator=(Buffer&& other) noexcept {
  if (this != &other) {
    if (pool_ != nullptr) {
      pool_->impl_->GiveBack(index_);
    }
    pool_ = std::exchange(other.pool_, nullptr);
    index_ = other.index_;
  }
  return *this;
}

StagingPool::Buffer::~Buffer() {
  if (pool_ != nullptr) {
    pool_->impl_->GiveBack(index_);
  }
}

void StagingPool::ResetAfterFork() {
  impl_->waiting.store(0, std::memory_order_relaxed);
  impl_->free.store(kAllFree, std::memory_order_release);
}

std::span<std::byte> StagingPool::Buffer::bytes() const {
  if (pool_ == nullptr) {
    return {};
  }
  return {pool_->impl_->memory + index_ * pool_->impl_->buffer_bytes, pool_->impl_->buffer_bytes};
}

}  // namespace pmirror
