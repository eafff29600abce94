// SPDX-License-Identifier: BSD-3-Clause
// CRC32C against published vectors, and the instruction against the tables at every length around the block
// sizes.
#include "replication/crc32c.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string_view>
#include <vector>

namespace pmirror {
namespace {

std::span<const std::byte> Bytes(std::string_view text) { return std::as_bytes(std::span(text)); }

std::vector<std::byte> RandomBytes(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::byte> bytes(count);
  for (std::byte& byte : bytes) {
    byte = static_cast<std::byte>(random());
  }
  return bytes;
}

// RFC 3720, appendix B.4.
TEST(Crc32c, PublishedVectorsAreMet) {
  const std::vector<std::byte> zeros(32, std::byte{0});
  const std::vector<std::byte> ones(32, std::byte{0xff});
  std::vector<std::byte> rising(32);
  std::vector<std::byte> falling(32);
  for (size_t i = 0; i < 32; ++i) {
    rising[i] = static_cast<std::byte>(i);
    falling[i] = static_cast<std::byte>(31 - i);
  }
  EXPECT_EQ(Crc32c(0, Bytes("123456789")), 0xe3069283u);
  EXPECT_EQ(Crc32c(0, zeros), 0x8a9136aau);
  EXPECT_EQ(Crc32c(0, ones), 0x62a8ab43u);
  EXPECT_EQ(Crc32c(0, rising), 0x46dd794eu);
  EXPECT_EQ(Crc32c(0, falling), 0x113fdb5cu);
  EXPECT_EQ(Crc32cPortable(0, Bytes("123456789")), 0xe3069283u);
}

TEST(Crc32c, NoBytesLeaveTheCrcAsItWas) {
  EXPECT_EQ(Crc32c(0, {}), 0u);
  EXPECT_EQ(Crc32c(0x12345678, {}), 0x12345678u);
}

TEST(Crc32c, EveryLengthAndAlignmentAgreesWithTheTables) {
  const std::vector<std::byte> bytes = RandomBytes(20000, 1);
  const auto check = [&](size_t offset, size_t length) {
    const auto part = std::span(bytes).subspan(offset, length);
    ASSERT_EQ(Crc32c(7, part), Crc32cPortable(7, part)) << "offset " << offset << " length " << length;
  };
  for (size_t offset = 0; offset < 9; ++offset) {
    for (size_t length = 0; length < 1700; length += offset == 0 ? 1 : 13) {
      check(offset, length);
    }
    for (const size_t length : {4079u, 4080u, 4081u, 4096u, 8160u, 8192u, 16384u, 19990u}) {
      check(offset, length);
    }
  }
}

TEST(Crc32c, PartsChainToTheWhole) {
  const std::vector<std::byte> bytes = RandomBytes(9000, 2);
  const uint32_t whole = Crc32c(0, bytes);
  for (size_t cut = 0; cut <= bytes.size(); cut += 37) {
    const auto all = std::span<const std::byte>(bytes);
    ASSERT_EQ(Crc32c(Crc32c(0, all.first(cut)), all.subspan(cut)), whole) << cut;
  }
}

TEST(Crc32c, CopyStoresTheBytesNothingElseAndTheirCrc) {
  const std::vector<std::byte> bytes = RandomBytes(9100, 3);
  for (const size_t offset : {0u, 1u, 5u}) {
    for (const size_t length : {0u, 1u, 7u, 8u, 9u, 64u, 767u, 768u, 800u, 4080u, 4096u, 9000u}) {
      const auto source = std::span<const std::byte>(bytes).subspan(offset, length);
      for (const bool portable : {false, true}) {
        std::vector<std::byte> copy(length + 2, std::byte{0xee});
        const uint32_t crc = portable ? CopyAndCrc32cPortable(9, copy.data() + 1, source)
                                      : CopyAndCrc32c(9, copy.data() + 1, source);
        ASSERT_EQ(crc, Crc32c(9, source)) << length;
        ASSERT_EQ(std::memcmp(copy.data() + 1, source.data(), length), 0) << length;
        ASSERT_EQ(copy.front(), std::byte{0xee});
        ASSERT_EQ(copy.back(), std::byte{0xee}) << length;
      }
    }
  }
}

TEST(Crc32c, OneFlippedBitAnywhereChangesIt) {
  std::vector<std::byte> bytes = RandomBytes(900, 4);
  const uint32_t whole = Crc32c(0, bytes);
  for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
    ASSERT_NE(Crc32c(0, bytes), whole) << bit;
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
  }
}

}  // namespace
}  // namespace pmirror
