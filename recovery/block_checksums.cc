// SPDX-License-Identifier: BSD-3-Clause
// Reading a range block by block, stepping over holes.
#include "recovery/block_checksums.h"

#define XXH_INLINE_ALL  // no library at run time
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>

#include "absl/status/status.h"

namespace pmirror::recovery {
namespace {

// Where data begins at or after `offset`; the file's end when there is none, `offset` itself where the file
// system cannot tell.
uint64_t NextData(int fd, uint64_t offset, uint64_t size) {
  const off_t data = ::lseek(fd, static_cast<off_t>(offset), SEEK_DATA);
  if (data >= 0) {
    return static_cast<uint64_t>(data);
  }
  return errno == ENXIO ? size : offset;
}

// Fills `to` from `offset`; zeros beyond the end of a file that has shrunk meanwhile.
absl::Status ReadBlock(int fd, uint64_t offset, std::span<std::byte> to) {
  size_t done = 0;
  while (done < to.size()) {
    const ssize_t got = ::pread(fd, to.data() + done, to.size() - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) {
      continue;
    }
    if (got < 0) {
      return absl::ErrnoToStatus(errno, fmt::format("cannot read {} bytes at {}", to.size(), offset));
    }
    if (got == 0) {
      std::fill(to.begin() + static_cast<ptrdiff_t>(done), to.end(), std::byte{0});
      break;
    }
    done += static_cast<size_t>(got);
  }
  return absl::OkStatus();
}

}  // namespace

BlockSum SumOf(std::span<const std::byte> bytes) {
  const XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  return {.high = hash.high64, .low = hash.low64};
}

absl::StatusOr<BlockChecksums> ChecksumBlocks(int fd, Extent extent, uint32_t block) {
  if (block == 0 || block > kMaxChecksumBlock || extent.length / block > kMaxChecksumBlocks) {
    return absl::InvalidArgumentError(
        fmt::format("{} bytes in blocks of {}: allowed are blocks of 1 to {} bytes, at most {} of them",
                    extent.length, block, kMaxChecksumBlock, kMaxChecksumBlocks));
  }
  struct stat attributes {};
  if (::fstat(fd, &attributes) != 0) {
    return absl::ErrnoToStatus(errno, "cannot stat the file");
  }
  BlockChecksums result;
  result.size = static_cast<uint64_t>(attributes.st_size);
  const uint64_t end = extent.offset > result.size ? extent.offset : std::min(extent.end(), result.size);
  std::vector<std::byte> buffer(block);
  uint64_t data = 0;  // nothing but holes between the current offset and here
  for (uint64_t offset = extent.offset; offset < end; offset += block) {
    const std::span<std::byte> bytes(buffer.data(), std::min<uint64_t>(block, end - offset));
    data = data <= offset ? NextData(fd, offset, result.size) : data;
    if (data >= offset + bytes.size()) {
      std::fill(bytes.begin(), bytes.end(), std::byte{0});
    } else if (absl::Status status = ReadBlock(fd, offset, bytes); !status.ok()) {
      return status;
    }
    result.sums.push_back(SumOf(bytes));
  }
  return result;
}

}  // namespace pmirror::recovery
