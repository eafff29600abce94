// SPDX-License-Identifier: BSD-3-Clause
// P7: a sync allocates nothing. The allocator of this test program counts; the sanitizers bring their own, so
// they do not run it.
#include <gtest/gtest.h>

#include "tests/unit/replication/replication_rig.h"

#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)

namespace {

// Of the thread that syncs only: the fake replica allocates as it likes.
constinit thread_local bool t_counting = false;
constinit thread_local int t_allocations = 0;

}  // namespace

extern "C" {
void* __libc_malloc(size_t size);                 // NOLINT(bugprone-reserved-identifier)
void* __libc_calloc(size_t count, size_t size);   // NOLINT(bugprone-reserved-identifier)
void* __libc_realloc(void* memory, size_t size);  // NOLINT(bugprone-reserved-identifier)
void __libc_free(void* memory);                   // NOLINT(bugprone-reserved-identifier)

void* malloc(size_t size) {
  t_allocations += t_counting ? 1 : 0;
  return __libc_malloc(size);
}
void* calloc(size_t nmemb, size_t size) {
  t_allocations += t_counting ? 1 : 0;
  return __libc_calloc(nmemb, size);
}
void* realloc(void* ptr, size_t size) {
  t_allocations += t_counting ? 1 : 0;
  return __libc_realloc(ptr, size);
}
void free(void* ptr) {
  t_allocations += t_counting && ptr != nullptr ? 1 : 0;
  __libc_free(ptr);
}
}

namespace pmirror {
namespace {

int AllocationsOf(ReplicationRig& rig, std::span<const Extent> extents) {
  t_allocations = 0;
  t_counting = true;
  const Error error =
      rig.replication->Replicate(rig.target(), extents, rig.source, WaitLevel::kDurable, nullptr);
  t_counting = false;
  EXPECT_TRUE(error.ok());
  return t_allocations;
}

TEST(Allocation, TheCounterCounts) {
  t_allocations = 0;
  t_counting = true;
  void* volatile memory = ::operator new(1);  // volatile: not optimised away
  ::operator delete(memory);
  t_counting = false;
  EXPECT_EQ(t_allocations, 2);
}

TEST(Allocation, P7_ASyncOnAConnectedSessionAllocatesNothing) {
  ReplicationRig rig(2, 64 * 1024);
  rig.source.memory.resize(1 << 20);
  const Extent small{0, 64};
  const Extent large{0, 1 << 20};
  ASSERT_TRUE(rig.sessions[0]->EnsureConnected(Deadline::After(std::chrono::seconds(60))).ok());
  ASSERT_TRUE(rig.sessions[1]->EnsureConnected(Deadline::After(std::chrono::seconds(60))).ok());
  EXPECT_EQ(AllocationsOf(rig, {&small, 1}), 0);
  EXPECT_EQ(AllocationsOf(rig, {&large, 1}), 0);
  EXPECT_EQ(AllocationsOf(rig, {}), 0);
}

TEST(Allocation, P7_ARecaptureAllocatesNothing) {
  ReplicationRig rig(1);
  rig.replicas[0]->SetScript([](const FakeReplica::Frame& frame) {
    return FakeReplica::Answer{.reaction = frame.header.order < 6 ? FakeReplica::Reaction::kRefuse
                                                                  : FakeReplica::Reaction::kApply};
  });
  ASSERT_TRUE(rig.sessions[0]->EnsureConnected(Deadline::After(std::chrono::seconds(60))).ok());
  const Extent extent{0, 4096};
  EXPECT_EQ(AllocationsOf(rig, {&extent, 1}), 0);
}

}  // namespace
}  // namespace pmirror

#else

TEST(Allocation, P7_ASyncAllocatesNothing) {
  GTEST_SKIP() << "the sanitizer's allocator cannot be counted here";
}

#endif
