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

uint32_t CrcOf(const std::string& text) { return Crc32c(0, std::as_bytes(std::span(text))); }

BlockChecksums Sums(const UniqueFd& fd, Extent extent, uint32_t block) {
  absl::StatusOr<BlockChecksums> sums = ChecksumBlocks(fd.get(), extent, block);
  EXPECT_TRUE(sums.ok()) << sums.status();
  return sums.ok() ? *std::move(sums) : BlockChecksums{};
}

TEST(BlockChecksumsTest, EachBlockHasTheCrcOfItsBytesAndTheLastIsCutAtTheEnd) {
  const UniqueFd fd = File(0);
  Put(fd, 0, "aaaabbbbcc");
  const BlockChecksums sums = Sums(fd, {0, 100}, 4);
  EXPECT_THAT(sums.crc, ElementsAre(CrcOf("aaaa"), CrcOf("bbbb"), CrcOf("cc")));
  EXPECT_EQ(sums.size, 10u);
}

TEST(BlockChecksumsTest, ARangeInTheMiddleBeginsAndEndsWhereItSays) {
  const UniqueFd fd = File(0);
  Put(fd, 0, "aaaabbbbcc");
  EXPECT_THAT(Sums(fd, {2, 5}, 4).crc, ElementsAre(CrcOf("aabb"), CrcOf("b")));
}

TEST(BlockChecksumsTest, HolesCountAsZeros) {
  const UniqueFd sparse = File(16384);
  const UniqueFd written = File(0);
  Put(sparse, 9000, "x");
  std::string zeros(16384, '\0');
  zeros[9000] = 'x';
  Put(written, 0, zeros);
  EXPECT_EQ(Sums(sparse, {0, 16384}, 1000).crc, Sums(written, {0, 16384}, 1000).crc);
  EXPECT_EQ(Sums(sparse, {0, 16384}, 1000).crc.size(), 17u);
}

TEST(BlockChecksumsTest, ARangeBeyondTheEndHasNoBlocks) {
  EXPECT_THAT(Sums(File(100), {4096, 4096}, 4096).crc, IsEmpty());
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
