// SPDX-License-Identifier: BSD-3-Clause
// The header checks: every field out of its range is named, every changed bit is found by the CRC.
#include "replication/frame.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <string>
#include <vector>

namespace pmirror {
namespace {

FrameHeader GoodHeader() {
  FrameHeader header{};
  header.magic = kFrameMagic;
  header.version = kFrameVersion;
  header.kind = static_cast<uint8_t>(FrameKind::kDataImage);
  header.flags = kFlagAckWanted;
  header.epoch = 1;
  header.session = 2;
  header.sequence = 3;
  header.file = 4;
  header.order = 5;
  header.range_count = 1;
  header.payload_length = 8;
  header.header_crc = 0xffffffff;
  return header;
}

TEST(CheckHeader, AGoodHeaderPasses) { EXPECT_EQ(CheckHeader(GoodHeader()), HeaderFault::kOk); }

TEST(CheckHeader, EachFaultIsNamed) {
  struct Case {
    HeaderFault expected;
    void (*damage)(FrameHeader&);
  };
  const Case cases[] = {
      {HeaderFault::kMagic, [](FrameHeader& h) { h.magic ^= 1; }},
      {HeaderFault::kVersion, [](FrameHeader& h) { h.version = kFrameVersion + 1; }},
      {HeaderFault::kVersion, [](FrameHeader& h) { h.version = 0; }},
      {HeaderFault::kKind, [](FrameHeader& h) { h.kind = 0; }},
      {HeaderFault::kKind, [](FrameHeader& h) { h.kind = 14; }},
      {HeaderFault::kFlags, [](FrameHeader& h) { h.flags = kKnownFlags + 1; }},
      {HeaderFault::kLengths, [](FrameHeader& h) { h.range_count = kMaxRanges + 1; }},
      {HeaderFault::kLengths, [](FrameHeader& h) { h.extension_length = kMaxExtension + 1; }},
      {HeaderFault::kLengths, [](FrameHeader& h) { h.payload_length = kMaxPayload + 1; }},
      {HeaderFault::kReserved, [](FrameHeader& h) { h.reserved = 1; }},
  };
  for (const Case& one : cases) {
    FrameHeader header = GoodHeader();
    one.damage(header);
    EXPECT_EQ(CheckHeader(header), one.expected) << Name(one.expected);
    EXPECT_STRNE(Name(one.expected), "unknown");
  }
}

TEST(CheckHeader, TheLimitsThemselvesPass) {
  FrameHeader header = GoodHeader();
  header.range_count = kMaxRanges;
  header.extension_length = kMaxExtension;
  header.payload_length = kMaxPayload;
  EXPECT_EQ(CheckHeader(header), HeaderFault::kOk);
  EXPECT_EQ(FrameBytes(header), kMaxFrame);
}

TEST(HeaderCrc, EveryFlippedBitOfHeaderRangesAndExtensionIsSeenAndTheFieldItselfIsNot) {
  FrameHeader header = GoodHeader();
  std::array<WireRange, 2> ranges{{{0, 4}, {4096, 4}}};
  std::array<std::byte, 5> extension{};
  const uint32_t good = HeaderCrc(header, ranges, extension);
  const auto flip = [&](std::span<std::byte> part, size_t bit, bool counts) {
    part[bit / 8] ^= std::byte{1} << (bit % 8);
    EXPECT_EQ(HeaderCrc(header, ranges, extension) != good, counts) << "bit " << bit;
    part[bit / 8] ^= std::byte{1} << (bit % 8);
  };
  for (size_t bit = 0; bit < sizeof header * 8; ++bit) {
    flip(std::as_writable_bytes(std::span(&header, 1)), bit, bit / 8 < offsetof(FrameHeader, header_crc));
  }
  for (size_t bit = 0; bit < sizeof ranges * 8; ++bit) {
    flip(std::as_writable_bytes(std::span(ranges)), bit, true);
  }
  for (size_t bit = 0; bit < sizeof extension * 8; ++bit) {
    flip(extension, bit, true);
  }
}

TEST(Names, EveryKindAndCodeHasItsOwn) {
  for (int kind = 1; kind <= 13; ++kind) {
    EXPECT_STRNE(Name(static_cast<FrameKind>(kind)), "unknown") << kind;
  }
  for (int code = 1; code <= 8; ++code) {
    EXPECT_STRNE(Name(static_cast<RefusalCode>(code)), "unknown") << code;
  }
}

}  // namespace
}  // namespace pmirror
