// SPDX-License-Identifier: BSD-3-Clause
// The frame reader. See frame_reader.h.
#include "server/frame_reader.h"

#include <algorithm>
#include <cstring>

#include "replication/crc32c.h"

namespace pmirror::server {

FrameReader::FrameReader() : buffer_(std::make_unique_for_overwrite<std::byte[]>(kCapacity)) {
  ranges_.reserve(kMaxRanges);
}

bool FrameReader::PeekHeader(FrameHeader& header) const {
  if (held() < sizeof header) {
    return false;
  }
  std::memcpy(&header, buffer_.get() + begin_, sizeof header);
  return true;
}

FrameReader::Result FrameReader::Next(Frame& frame, HeaderFault& fault) {
  fault = HeaderFault::kOk;
  FrameHeader& header = frame.header;
  if (!PeekHeader(header)) {
    return Result::kIncomplete;
  }
  if ((fault = CheckHeader(header)) != HeaderFault::kOk) {
    return Result::kMalformed;
  }
  if (held() < FrameBytes(header)) {
    return Result::kIncomplete;
  }
  const std::byte* at = buffer_.get() + begin_ + sizeof header;
  ranges_.resize(header.range_count);
  std::memcpy(ranges_.data(), at, ranges_.size() * sizeof(WireRange));
  at += ranges_.size() * sizeof(WireRange);
  const std::span extension(at, header.extension_length);
  frame.ranges = ranges_;
  frame.payload = std::span(at + header.extension_length, header.payload_length);
  if (HeaderCrc(header, frame.ranges, extension) != header.header_crc ||
      Crc32c(0, frame.payload) != header.payload_crc) {
    return Result::kChecksum;
  }
  begin_ += FrameBytes(header);
  return Result::kFrame;
}

std::span<std::byte> FrameReader::Space() {
  if (begin_ == end_) {
    begin_ = end_ = 0;
  }
  FrameHeader header;
  const size_t wanted =
      PeekHeader(header) && CheckHeader(header) == HeaderFault::kOk ? FrameBytes(header) : sizeof header;
  const size_t missing = wanted > held() ? wanted - held() : 0;
  if (kCapacity - end_ < std::max(missing, kReadAhead / 2)) {
    std::memmove(buffer_.get(), buffer_.get() + begin_, held());
    end_ -= begin_;
    begin_ = 0;
  }
  const size_t room = kCapacity - end_;
  return {buffer_.get() + end_, std::min(room, std::max(missing, kReadAhead))};
}

bool FrameReader::Ready(size_t most) const {
  FrameHeader header;
  return PeekHeader(header) && CheckHeader(header) == HeaderFault::kOk && FrameBytes(header) <= most &&
         FrameBytes(header) <= held();
}

}  // namespace pmirror::server
