// SPDX-License-Identifier: BSD-3-Clause
// Turns a list of extents, of any number and size, into frames: copies their bytes into a staging buffer
// until the buffer or the frame is full. One pass over the extents is one capture. No allocation; the list of
// a frame's ranges lies in the staging buffer too, because a signal handler's stack may be small.
#pragma once

#include <cstdint>
#include <span>

#include "replication/frame.h"
#include "replication/replicate.h"
#include "replication/result.h"
#include "replication/types.h"

namespace pmirror {

// One frame's content; the spans lie in the staging buffer.
struct StagedFrame {
  std::span<const WireRange> ranges;
  std::span<const std::byte> payload;
  uint32_t payload_crc = 0;
  bool last = false;  // the extents are used up
};

class FrameFiller {
 public:
  // Both must outlive the filler.
  FrameFiller(std::span<const Extent> extents, ByteSource& source) : extents_(extents), source_(source) {}

  // Copies what comes next. `frame_budget`: bytes that the frame with its header may have, at least
  // kMinFrameBudget. The frame is empty when the file has ended before all extents that were left. Errors:
  // those of the source.
  Result<StagedFrame> Fill(std::span<std::byte> staging, size_t frame_budget);

 private:
  struct Frame;
  uint64_t PieceLength(const Frame& frame, Extent rest) const;
  Error CopyPiece(Frame& frame, Extent piece);

  std::span<const Extent> extents_;  // from the current one on
  uint64_t done_ = 0;                // bytes of the current one
  ByteSource& source_;
};

}  // namespace pmirror
