// SPDX-License-Identifier: BSD-3-Clause
// The words of the data protocol as types. Everything here is a value; no function fails, allocates or blocks.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>

namespace pmirror {

// Identity of one object of a volume, equal on every copy, never used twice (docs/internals/architecture.md).
enum class FileId : uint64_t { kNone = 0, kRoot = 1 };
constexpr uint64_t Raw(FileId id) { return static_cast<uint64_t>(id); }

// Number of a volume's current primaryship. A replica refuses frames of an older epoch.
enum class Epoch : uint64_t {};
constexpr uint64_t Raw(Epoch epoch) { return static_cast<uint64_t>(epoch); }

// Version of the in-sync set within an epoch.
enum class SetVersion : uint64_t {};
constexpr uint64_t Raw(SetVersion version) { return static_cast<uint64_t>(version); }

// Identity of a session between one process and one replica.
enum class SessionId : uint64_t {};
constexpr uint64_t Raw(SessionId id) { return static_cast<uint64_t>(id); }

// Position of a frame in its session; the first frame has 1, 0 means "none yet".
using Sequence = uint64_t;

// Place of a capture among all captures of one file, node-wide. See order_page.h for how one is taken.
struct Order {
  uint64_t number = 0;           // unique per file; newer is larger; gaps are normal
  uint64_t size_generation = 0;  // even; how many half-steps of size operations came before
  friend bool operator==(const Order&, const Order&) = default;
};

// A range of a file, in bytes.
struct Extent {
  uint64_t offset = 0;
  uint64_t length = 0;
  constexpr uint64_t end() const { return offset + length; }
  constexpr bool empty() const { return length == 0; }
  constexpr bool Overlaps(const Extent& other) const { return offset < other.end() && other.offset < end(); }
  friend bool operator==(const Extent&, const Extent&) = default;
};

using Uuid = std::array<std::byte, 16>;

constexpr size_t kMaxReplicas = 8;  // of one volume; members are bits of a byte
constexpr size_t kPageSize =
    4096;  // granularity of tracking; nodes with another page size are refused at connect
constexpr size_t kMaxNameBytes = 255;  // of one path component (NAME_MAX)

}  // namespace pmirror
