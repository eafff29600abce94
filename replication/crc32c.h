// SPDX-License-Identifier: BSD-3-Clause
// CRC32C (Castagnoli), the checksum of the data protocol and of durable records: with the CPU's crc32
// instruction where there is one, with tables otherwise. Every function is pure, async-signal-safe and
// without allocation; the tables are constants of the binary.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace pmirror {

// The CRC of what `crc` covers followed by `data`; start with 0. Crc32c(Crc32c(0, a), b) is the CRC of a and
// b one after the other.
uint32_t Crc32c(uint32_t crc, std::span<const std::byte> data);

// Copies `source` to `destination` and returns the CRC of the bytes that were stored, in one pass. The source
// may change meanwhile: each byte is loaded once, and the CRC is that of the copy. Aligned 8-byte words of
// the source are loaded whole (promise P2: never torn). Requires: the two do not overlap.
uint32_t CopyAndCrc32c(uint32_t crc, std::byte* destination, std::span<const std::byte> source);

// The table implementations, for machines without the instruction and for the test that compares the two.
uint32_t Crc32cPortable(uint32_t crc, std::span<const std::byte> data);
uint32_t CopyAndCrc32cPortable(uint32_t crc, std::byte* destination, std::span<const std::byte> source);

}  // namespace pmirror
