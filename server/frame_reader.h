// SPDX-License-Identifier: BSD-3-Clause
// Cuts a stream of bytes into frames and checks them: lengths first, then checksums. No I/O: its owner reads
// from the socket into Space().
//
// One bounded buffer holds the frame under way and what arrived behind it, so that many small frames cost one
// read. Not thread-safe.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "replication/frame.h"

namespace pmirror::server {

class FrameReader {
 public:
  FrameReader();

  struct Frame {
    FrameHeader header;
    std::span<const WireRange> ranges;
    std::span<const std::byte> payload;
  };
  enum class Result {
    kFrame,       // `frame` is set; its spans are valid until the next call of any method but the const ones
    kIncomplete,  // read more
    kMalformed,   // no frame of ours: `fault` says why; nothing behind it can be found any more
    kChecksum,    // damaged on its way; likewise
  };
  Result Next(Frame& frame, HeaderFault& fault);

  // Where the next bytes go: at least one, enough for the frame under way, and not much more than that.
  std::span<std::byte> Space();
  void Filled(size_t bytes) { end_ += bytes; }

  // A whole frame of at most `most` bytes is waiting.
  bool Ready(size_t most) const;

 private:
  size_t held() const { return end_ - begin_; }
  bool PeekHeader(FrameHeader& header) const;

  static constexpr size_t kReadAhead = 64 * 1024;  // bytes behind a large frame that may have to be moved
  static constexpr size_t kCapacity = kMaxFrame + kReadAhead;

  std::unique_ptr<std::byte[]> buffer_;
  size_t begin_ = 0;
  size_t end_ = 0;
  std::vector<WireRange> ranges_;  // of the last frame: in the buffer they need not be aligned
};

}  // namespace pmirror::server
