// SPDX-License-Identifier: BSD-3-Clause
// The copy that survives SIGBUS.
#include "interpose/guarded_memory.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <numeric>
#include <vector>

#include "interpose/sigbus.h"
#include "replication/types.h"
#include "replication/unique_fd.h"

namespace pmirror::interpose {
namespace {

class GuardedMemory : public ::testing::Test {
 protected:
  void SetUp() override {
    InstallSigbusHandler();
    file_.Reset(::memfd_create("guarded", MFD_CLOEXEC));
    ASSERT_EQ(::ftruncate(file_.get(), 4 * kPageSize), 0);
    map_ = static_cast<char*>(
        ::mmap(nullptr, 4 * kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, file_.get(), 0));
    ASSERT_NE(map_, MAP_FAILED);
    for (size_t i = 0; i < 4 * kPageSize; ++i) {
      map_[i] = static_cast<char>(i * 7 + i / 256);
    }
  }
  void TearDown() override { ::munmap(map_, 4 * kPageSize); }

  UniqueFd file_;
  char* map_ = nullptr;
};

TEST_F(GuardedMemory, CopiesAnyLengthFromAnyAlignment) {
  std::vector<char> out(400);
  for (size_t from = 0; from < 20; ++from) {
    for (size_t to = 0; to < 3; ++to) {
      for (size_t length = 0; length < 300; ++length) {
        std::fill(out.begin(), out.end(), '#');
        ASSERT_EQ(pmirror_guarded_copy(out.data() + to, map_ + from, length), length);
        ASSERT_EQ(std::memcmp(out.data() + to, map_ + from, length), 0);
        ASSERT_EQ(out[to + length], '#');
      }
    }
  }
}

TEST_F(GuardedMemory, Trap8TruncatedFileEndsTheCopyEarly) {
  ASSERT_EQ(::ftruncate(file_.get(), 2 * kPageSize), 0);
  std::vector<char> out(4 * kPageSize);
  EXPECT_EQ(pmirror_guarded_copy(out.data(), map_, 4 * kPageSize), 2 * kPageSize);
  EXPECT_EQ(std::memcmp(out.data(), map_, 2 * kPageSize), 0);
  EXPECT_EQ(pmirror_guarded_copy(out.data(), map_ + 2 * kPageSize + 3, 5), 0u);
}

TEST_F(GuardedMemory, TouchChangesNothingAndToldOfAFault) {
  const std::vector<char> before(map_, map_ + kPageSize);
  EXPECT_TRUE(pmirror_guarded_touch(map_));
  EXPECT_EQ(std::memcmp(before.data(), map_, kPageSize), 0);
  ASSERT_EQ(::ftruncate(file_.get(), kPageSize), 0);
  EXPECT_FALSE(pmirror_guarded_touch(map_ + kPageSize));
}

TEST_F(GuardedMemory, InstructionsElsewhereAreNotOurs) {
  EXPECT_EQ(FixupFor(reinterpret_cast<uintptr_t>(&std::memcpy)), 0u);
  EXPECT_EQ(FixupFor(reinterpret_cast<uintptr_t>(pmirror_guarded_copy_end)), 0u);
}

}  // namespace
}  // namespace pmirror::interpose
