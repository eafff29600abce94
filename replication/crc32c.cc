// SPDX-License-Identifier: BSD-3-Clause
// The crc32 instruction has a latency of three cycles and a throughput of one: three independent streams keep
// it busy. Their results are joined by advancing a CRC over the bytes of the streams behind it, which is a
// multiplication by a constant and so four table look-ups.
#include "replication/crc32c.h"

#include <array>
#include <cstring>

namespace pmirror {
namespace {

constexpr uint32_t kPolynomial = 0x82f63b78;  // reflected

// --- constants, computed by the compiler ---

// a * b modulo the polynomial; bit 31 is x^0.
constexpr uint32_t Multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (uint32_t mask = 1u << 31; mask != 0; mask >>= 1) {
    if ((a & mask) != 0) {
      product ^= b;
    }
    b = (b & 1) != 0 ? (b >> 1) ^ kPolynomial : b >> 1;
  }
  return product;
}

// What a CRC is multiplied with when `bytes` zero bytes follow.
constexpr uint32_t AdvanceFactor(size_t bytes) {
  uint32_t factor = 1u << 31;
  uint32_t square = 1u << 23;  // x^8
  for (; bytes != 0; bytes >>= 1) {
    if ((bytes & 1) != 0) {
      factor = Multiply(factor, square);
    }
    square = Multiply(square, square);
  }
  return factor;
}

using ByteTable = std::array<uint32_t, 256>;

// Table k advances byte k of a CRC over `kBytes` bytes.
template <size_t kBytes>
struct Shift {
  static constexpr std::array<ByteTable, 4> Make() {
    std::array<ByteTable, 4> tables{};
    const uint32_t factor = AdvanceFactor(kBytes);
    for (uint32_t k = 0; k < 4; ++k) {
      for (uint32_t byte = 0; byte < 256; ++byte) {
        tables[k][byte] = Multiply(byte << (8 * k), factor);
      }
    }
    return tables;
  }
  static constexpr std::array<ByteTable, 4> kTables = Make();

  static uint32_t Apply(uint32_t crc) {
    return kTables[0][crc & 0xff] ^ kTables[1][(crc >> 8) & 0xff] ^ kTables[2][(crc >> 16) & 0xff] ^
           kTables[3][crc >> 24];
  }
};

// Table k: the CRC of a byte followed by k zero bytes.
constexpr std::array<ByteTable, 8> MakeSliceTables() {
  std::array<ByteTable, 8> tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) {
      crc = (crc & 1) != 0 ? (crc >> 1) ^ kPolynomial : crc >> 1;
    }
    tables[0][byte] = crc;
  }
  for (size_t k = 1; k < 8; ++k) {
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const uint32_t before = tables[k - 1][byte];
      tables[k][byte] = (before >> 8) ^ tables[0][before & 0xff];
    }
  }
  return tables;
}
constexpr std::array<ByteTable, 8> kSlice = MakeSliceTables();

// --- access to memory ---

// One load of eight bytes. Volatile: the compiler may not load the word a second time after the program has
// changed it.
inline uint64_t LoadWord(const std::byte* at) {
  using Word [[gnu::aligned(1), gnu::may_alias]] = uint64_t;
  return *reinterpret_cast<const volatile Word*>(at);
}
inline uint8_t LoadByte(const std::byte* at) { return *reinterpret_cast<const volatile uint8_t*>(at); }
// Without a copy the destination is null: neither written nor moved.
template <bool kCopy, typename Word>
inline void Store(std::byte* to, size_t at, Word word) {
  if constexpr (kCopy) {
    std::memcpy(to + at, &word, sizeof word);
  }
}
template <bool kCopy>
inline void Advance(std::byte*& to, const std::byte*& from, size_t& left, size_t bytes) {
  from += bytes;
  left -= bytes;
  if constexpr (kCopy) {
    to += bytes;
  }
}
inline size_t BytesToAlignment(const std::byte* at) {
  return (8 - (reinterpret_cast<uintptr_t>(at) & 7)) & 7;
}

// --- tables ---

inline uint32_t TableByte(uint32_t state, uint8_t byte) {
  return (state >> 8) ^ kSlice[0][(state ^ byte) & 0xff];
}
inline uint32_t TableWord(uint32_t state, uint64_t word) {
  word ^= state;
  uint32_t next = 0;
  for (size_t i = 0; i < 8; ++i) {
    next ^= kSlice[7 - i][(word >> (8 * i)) & 0xff];
  }
  return next;
}

template <bool kCopy>
uint32_t Portable(uint32_t crc, std::byte* to, const std::byte* from, size_t left) {
  uint32_t state = ~crc;
  size_t head = BytesToAlignment(from);
  for (head = head < left ? head : left; head != 0; --head, Advance<kCopy>(to, from, left, 1)) {
    const uint8_t byte = LoadByte(from);
    Store<kCopy>(to, 0, byte);
    state = TableByte(state, byte);
  }
  for (; left >= 8; Advance<kCopy>(to, from, left, 8)) {
    const uint64_t word = LoadWord(from);
    Store<kCopy>(to, 0, word);
    state = TableWord(state, word);
  }
  for (; left != 0; Advance<kCopy>(to, from, left, 1)) {
    const uint8_t byte = LoadByte(from);
    Store<kCopy>(to, 0, byte);
    state = TableByte(state, byte);
  }
  return ~state;
}

#if defined(__x86_64__)

// --- the instruction ---

#define PMIRROR_TARGET_CRC __attribute__((target("sse4.2")))

// Three streams of kBytes each, one after the other in memory.
template <bool kCopy, size_t kBytes>
PMIRROR_TARGET_CRC inline uint64_t ThreeStreams(uint64_t first, std::byte* to, const std::byte* from) {
  static_assert(kBytes % 8 == 0);
  uint64_t second = 0;
  uint64_t third = 0;
  for (size_t at = 0; at < kBytes; at += 8) {
    const uint64_t a = LoadWord(from + at);
    const uint64_t b = LoadWord(from + at + kBytes);
    const uint64_t c = LoadWord(from + at + 2 * kBytes);
    Store<kCopy>(to, at, a);
    Store<kCopy>(to, at + kBytes, b);
    Store<kCopy>(to, at + 2 * kBytes, c);
    first = __builtin_ia32_crc32di(first, a);
    second = __builtin_ia32_crc32di(second, b);
    third = __builtin_ia32_crc32di(third, c);
  }
  const uint32_t joined = Shift<kBytes>::Apply(static_cast<uint32_t>(first)) ^ static_cast<uint32_t>(second);
  return Shift<kBytes>::Apply(joined) ^ static_cast<uint32_t>(third);
}

constexpr size_t kLongStream = 1360;  // three fill a page but for two words
constexpr size_t kShortStream = 256;

template <bool kCopy>
PMIRROR_TARGET_CRC uint32_t Hardware(uint32_t crc, std::byte* to, const std::byte* from, size_t left) {
  uint64_t state = ~crc;
  size_t head = BytesToAlignment(from);
  for (head = head < left ? head : left; head != 0; --head, Advance<kCopy>(to, from, left, 1)) {
    const uint8_t byte = LoadByte(from);
    Store<kCopy>(to, 0, byte);
    state = __builtin_ia32_crc32qi(static_cast<uint32_t>(state), byte);
  }
  for (; left >= 3 * kLongStream; Advance<kCopy>(to, from, left, 3 * kLongStream)) {
    state = ThreeStreams<kCopy, kLongStream>(state, to, from);
  }
  for (; left >= 3 * kShortStream; Advance<kCopy>(to, from, left, 3 * kShortStream)) {
    state = ThreeStreams<kCopy, kShortStream>(state, to, from);
  }
  for (; left >= 8; Advance<kCopy>(to, from, left, 8)) {
    const uint64_t word = LoadWord(from);
    Store<kCopy>(to, 0, word);
    state = __builtin_ia32_crc32di(state, word);
  }
  for (; left != 0; Advance<kCopy>(to, from, left, 1)) {
    const uint8_t byte = LoadByte(from);
    Store<kCopy>(to, 0, byte);
    state = __builtin_ia32_crc32qi(static_cast<uint32_t>(state), byte);
  }
  return ~static_cast<uint32_t>(state);
}

// One load and a bit test: libgcc fills the answer in before any constructor of ours runs.
inline bool HasInstruction() { return __builtin_cpu_supports("sse4.2") != 0; }

#else

inline bool HasInstruction() { return false; }
template <bool kCopy>
uint32_t Hardware(uint32_t crc, std::byte* to, const std::byte* from, size_t left) {
  return Portable<kCopy>(crc, to, from, left);
}

#endif

template <bool kCopy>
uint32_t Dispatch(uint32_t crc, std::byte* to, const std::byte* from, size_t left) {
  return HasInstruction() ? Hardware<kCopy>(crc, to, from, left) : Portable<kCopy>(crc, to, from, left);
}

}  // namespace

uint32_t Crc32c(uint32_t crc, std::span<const std::byte> data) {
  return Dispatch<false>(crc, nullptr, data.data(), data.size());
}

uint32_t CopyAndCrc32c(uint32_t crc, std::byte* destination, std::span<const std::byte> source) {
  return Dispatch<true>(crc, destination, source.data(), source.size());
}

uint32_t Crc32cPortable(uint32_t crc, std::span<const std::byte> data) {
  return Portable<false>(crc, nullptr, data.data(), data.size());
}

uint32_t CopyAndCrc32cPortable(uint32_t crc, std::byte* destination, std::span<const std::byte> source) {
  return Portable<true>(crc, destination, source.data(), source.size());
}

}  // namespace pmirror
