// SPDX-License-Identifier: BSD-3-Clause
// Block checksums: equal bytes give equal sums whether they are holes or written zeros; ends are cut, bounds
// are refused.
#include "recovery/block_checksums.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <span>
#include <string>

#include "replication/crc32c.h"
#include "replication/unique_fd.h"

namespace pmirror::recovery {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

UniqueFd File(uint64_t size) {
  UniqueFd fd(::memfd_create("checksums", MFD_CLOEXEC));
  EXPECT_EQ(::ftruncate(fd.get(), static_cast<off_t>(size)), 0);
  return fd;
}

void Put(const UniqueFd& fd, uint64_t offset, const std::string& text) {
  ASSERT_EQ(::pwrite(fd.get(), text.data(), text.size(), static_cast<off_t>(offset)),
            static_cast<ssize_t>(text.size()));
}

BlockSum Of(const std::string& text) { return SumOf(std::as_bytes(std::span(text))); }

BlockChecksums Sums(const UniqueFd& fd, Extent extent, uint32_t block) {
  absl::StatusOr<BlockChecksums> sums = ChecksumBlocks(fd.get(), extent, block);
  EXPECT_TRUE(sums.ok()) << sums.status();
  return sums.ok() ? *std::move(sums) : BlockChecksums{};
}

TEST(BlockChecksumsTest, EachBlockHasTheSumOfItsBytesAndTheLastIsCutAtTheEnd) {
  const UniqueFd fd = File(0);
  Put(fd, 0, "aaaabbbbcc");
  const BlockChecksums sums = Sums(fd, {0, 100}, 4);
  EXPECT_THAT(sums.sums, ElementsAre(Of("aaaa"), Of("bbbb"), Of("cc")));
  EXPECT_EQ(sums.size, 10u);
}

TEST(BlockChecksumsTest, ARangeInTheMiddleBeginsAndEndsWhereItSays) {
  const UniqueFd fd = File(0);
  Put(fd, 0, "aaaabbbbcc");
  EXPECT_THAT(Sums(fd, {2, 5}, 4).sums, ElementsAre(Of("aabb"), Of("b")));
}

// What travels between two versions: "abc" as the reference implementation gives it, and two blocks that CRC32C takes for one.
TEST(BlockChecksumsTest, P5_TheSumIsTheSameEverywhereAndTellsApartWhatACrcDoesNot) {
  EXPECT_EQ(Of("abc"), (BlockSum{.high = 0x06b05ab6733a6185, .low = 0x78af5f94892f3950}));
  std::vector<std::byte> one(4096);
  std::vector<std::byte> other(4096);
  // CRC32C is linear: a multiple of its polynomial changes nothing of it.
  constexpr uint64_t kPolynomial = 0x105EC76F1;  // bit-reversed, with the highest power
  for (size_t bit = 0; bit < 33; ++bit) {
    if ((kPolynomial >> bit & 1) != 0) {
      other[100 + bit / 8] ^= std::byte{static_cast<uint8_t>(1U << bit % 8)};
    }
  }
  EXPECT_EQ(Crc32c(0, one), Crc32c(0, other));
  EXPECT_NE(SumOf(one), SumOf(other));
}

TEST(BlockChecksumsTest, HolesCountAsZeros) {
  const UniqueFd sparse = File(16384);
  const UniqueFd written = File(0);
  Put(sparse, 9000, "x");
  std::string zeros(16384, '\0');
  zeros[9000] = 'x';
  Put(written, 0, zeros);
  EXPECT_EQ(Sums(sparse, {0, 16384}, 1000).sums, Sums(written, {0, 16384}, 1000).sums);
  EXPECT_EQ(Sums(sparse, {0, 16384}, 1000).sums.size(), 17u);
}

TEST(BlockChecksumsTest, ARangeBeyondTheEndHasNoBlocks) {
  EXPECT_THAT(Sums(File(100), {4096, 4096}, 4096).sums, IsEmpty());
}

TEST(BlockChecksumsTest, P9_BlockSizesAndCountsOutOfBoundsAreRefused) {
  const UniqueFd fd = File(100);
  EXPECT_EQ(ChecksumBlocks(fd.get(), {0, 100}, 0).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ChecksumBlocks(fd.get(), {0, 100}, kMaxChecksumBlock + 1).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ChecksumBlocks(fd.get(), {0, uint64_t{1} << 40}, 1).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace pmirror::recovery
