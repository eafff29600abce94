// SPDX-License-Identifier: BSD-3-Clause
// What a Replication needs around it, for tests: a volume page, one file with its order counter and bytes in
// memory, staging, sessions to fake replicas, and an observer that counts.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <vector>

#include "replication/replicate.h"
#include "tests/unit/replication/counting_persist.h"
#include "tests/unit/replication/fake_replica.h"

#if defined(__SANITIZE_THREAD__)
#define PMIRROR_TEST_TSAN 1
#else
#define PMIRROR_TEST_TSAN 0
#endif

namespace pmirror {

class CountingObserver : public SyncObserver {
 public:
  void Suspended(FileId) override { ++suspended; }
  void Resumed(FileId) override { ++resumed; }
  void Failed(FileId, int error) override {
    ++failed;
    last_error = error;
  }
  void Recaptured() override { ++recaptured; }

  std::atomic<int> suspended{0}, resumed{0}, failed{0}, last_error{0}, recaptured{0};
};

// Bytes in memory that end where the vector ends.
class MemorySource : public ByteSource {
 public:
  explicit MemorySource(size_t bytes) : memory(bytes) {}
  Result<size_t> Copy(Extent extent, std::span<std::byte> out) override {
    ++copies;
    if (error != 0) {
      return Error{error, "copy in a test"};
    }
    if (extent.offset >= memory.size()) {
      return size_t{0};
    }
    const size_t there = std::min<size_t>(extent.length, memory.size() - extent.offset);
    std::memcpy(out.data(), memory.data() + extent.offset, there);
    return there;
  }

  std::vector<std::byte> memory;
  int error = 0;
  std::atomic<int> copies{0};
};

struct ReplicationRig {
  static constexpr FileId kFile{77};
  static constexpr uint64_t kForever =
      60'000'000'000;                              // ns: the deadline of tests in which nothing may time out
  static constexpr uint64_t kShort = 100'000'000;  // ns: of those in which something has to

  explicit ReplicationRig(size_t replica_count, size_t staging_bytes = 256 * 1024)
      : page_memory(std::make_unique<VolumePage>()),
        page(*page_memory),
        source(64 * 1024),
        pool(std::move(StagingPool::Create(staging_bytes).value())) {
    for (size_t i = 0; i < replica_count; ++i) {
      replicas.push_back(std::make_unique<FakeReplica>());
      owned_sessions.push_back(std::move(DataSession::Create(*replicas.back()).value()));
      sessions.push_back(owned_sessions.back().get());
    }
    page.epoch = 3;
    page.state = static_cast<uint32_t>(VolumeState::kServing);
    page.on_loss = static_cast<uint32_t>(OnLoss::kSuspend);
    ConfigureReplicas(page, replica_count);
    page.deadline_ns = kForever;
    page.suspend_ns = kForever;
    SetMembers(static_cast<uint8_t>((1U << replica_count) - 1), 0, 1);
    page.slots[0].file = Raw(kFile);
    order.next = 1;
    replication = std::make_unique<Replication>(page, sessions, *pool, observer);
  }

  void SetMembers(uint8_t members, uint8_t joiners, uint64_t version) {
    page.set = SetWord::Make(members, joiners, SetVersion{version}).raw;
  }
  CaptureTarget target() { return {.file = kFile, .order = &order, .slot = &page.slots[0]}; }
  void Fill(uint8_t value) { std::fill(source.memory.begin(), source.memory.end(), std::byte{value}); }
  // A list, not a vector: tests call this while signals come, whose handlers must not have interrupted an allocator.
  Error Replicate(std::initializer_list<Extent> extents, WaitLevel level = WaitLevel::kDurable,
                  LocalPersist* local = nullptr) {
    return replication->Replicate(target(), {extents.begin(), extents.size()}, source, level, local);
  }
  Error Replicate(const std::vector<Extent>& extents, WaitLevel level = WaitLevel::kDurable,
                  LocalPersist* local = nullptr) {
    return replication->Replicate(target(), extents, source, level, local);
  }
  void ExpectNoFaults() {
    for (const auto& replica : replicas) {
      EXPECT_EQ(replica->faults(), 0U);
    }
  }

  std::unique_ptr<VolumePage> page_memory;
  VolumePage& page;
  OrderPage order{};
  MemorySource source;
  CountingObserver observer;
  std::unique_ptr<StagingPool> pool;
  std::vector<std::unique_ptr<FakeReplica>> replicas;
  std::vector<std::unique_ptr<DataSession>> owned_sessions;
  std::vector<DataSession*> sessions;
  std::unique_ptr<Replication> replication;
};

}  // namespace pmirror
