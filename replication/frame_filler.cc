// SPDX-License-Identifier: BSD-3-Clause
// See frame_filler.h.
#include "replication/frame_filler.h"

#include <algorithm>
#include <cassert>
#include <new>

namespace pmirror {
namespace {

constexpr uint64_t kSplitAt = 64;        // bytes: pieces end on cache lines of the file
constexpr size_t kCrcSlice = 64 * 1024;  // copied bytes that are still in the cache when their CRC is taken
constexpr size_t kRangesPart = 16;       // at most one byte in so many of the buffer is for ranges

}  // namespace

struct FrameFiller::Frame {
  std::span<WireRange> ranges;   // room for them
  std::span<std::byte> payload;  // likewise
  size_t budget = 0;             // bytes of the frame left
  size_t range_count = 0;
  size_t payload_bytes = 0;
  uint32_t crc = 0;
};

Result<StagedFrame> FrameFiller::Fill(std::span<std::byte> staging, size_t frame_budget) {
  assert(frame_budget >= kMinFrameBudget && staging.size() >= kPageSize);
  const size_t room_for = std::min<size_t>(kMaxRanges, staging.size() / kRangesPart / sizeof(WireRange));
  auto* const ranges = new (staging.data()) WireRange[room_for];
  Frame frame;
  frame.ranges = {ranges, room_for};
  frame.payload = staging.subspan(room_for * sizeof(WireRange));
  frame.payload = frame.payload.first(std::min<size_t>(frame.payload.size(), kMaxPayload));
  frame.budget = frame_budget - sizeof(FrameHeader);
  while (!extents_.empty()) {
    const Extent rest{extents_.front().offset + done_, extents_.front().length - done_};
    if (!rest.empty()) {
      const uint64_t length = PieceLength(frame, rest);
      if (length == 0) {
        break;  // full
      }
      PMIRROR_RETURN_IF_ERROR(CopyPiece(frame, {rest.offset, length}));
    }
    if (done_ == extents_.front().length) {
      extents_ = extents_.subspan(1);
      done_ = 0;
    }
  }
  return StagedFrame{.ranges = frame.ranges.first(frame.range_count),
                     .payload = frame.payload.first(frame.payload_bytes),
                     .payload_crc = frame.crc,
                     .last = extents_.empty()};
}

// How much of `rest` goes into the frame as one range; 0 when the frame is full.
uint64_t FrameFiller::PieceLength(const Frame& frame, Extent rest) const {
  if (frame.range_count == frame.ranges.size() || frame.budget <= sizeof(WireRange)) {
    return 0;
  }
  const size_t room = std::min(frame.payload.size() - frame.payload_bytes, frame.budget - sizeof(WireRange));
  if (rest.length <= room) {
    return rest.length;
  }
  const uint64_t end = (rest.offset + room) / kSplitAt * kSplitAt;
  return end > rest.offset ? end - rest.offset : 0;
}

// Where the file ends early, the rest of the extent goes.
Error FrameFiller::CopyPiece(Frame& frame, Extent piece) {
  uint64_t copied = 0;
  bool ended = false;
  while (copied < piece.length && !ended) {
    const Extent slice{piece.offset + copied, std::min<uint64_t>(piece.length - copied, kCrcSlice)};
    const auto out = frame.payload.subspan(frame.payload_bytes, slice.length);
    const Result<size_t> count = source_.CopyWithCrc(slice, out, frame.crc);
    if (!count.ok()) {
      return count.error();
    }
    copied += count.value();
    frame.payload_bytes += count.value();
    ended = count.value() < slice.length;
  }
  if (copied > 0) {
    frame.ranges[frame.range_count++] = {.offset = piece.offset, .length = copied};
    frame.budget -= sizeof(WireRange) + copied;
  }
  done_ = ended ? extents_.front().length : done_ + copied;
  return Error::Ok();
}

}  // namespace pmirror
