// SPDX-License-Identifier: BSD-3-Clause
// See reply_reader.h.
#include "replication/reply_reader.h"

#include <cstring>

#include "replication/crc32c.h"

namespace pmirror {

ReplyReader::Next ReplyReader::Take() {
  const size_t there = end_ - begin_;
  if (there < sizeof(FrameHeader)) {
    MoveToFront();
    return Next::kNone;
  }
  std::memcpy(&header_, buffer_.data() + begin_, sizeof(FrameHeader));
  if (CheckHeader(header_) != HeaderFault::kOk || header_.range_count != 0 ||
      header_.payload_length > kMaxReplyPayload) {
    return Next::kFault;
  }
  const size_t whole = FrameBytes(header_);
  if (there < whole) {
    MoveToFront();
    return Next::kNone;
  }
  const std::span<const std::byte> frame = std::span(buffer_).subspan(begin_, whole);
  begin_ += whole;
  return Decode(frame);
}

void ReplyReader::MoveToFront() {
  std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
  end_ -= begin_;
  begin_ = 0;
}

ReplyReader::Next ReplyReader::Decode(std::span<const std::byte> frame) {
  const auto extension = frame.subspan(sizeof(FrameHeader), header_.extension_length);
  const auto payload = frame.last(header_.payload_length);
  if (HeaderCrc(header_, {}, extension) != header_.header_crc) {
    return Next::kFault;
  }
  if (!payload.empty() && Crc32c(0, payload) != header_.payload_crc) {
    return Next::kFault;
  }
  switch (FrameKind{header_.kind}) {
    case FrameKind::kAck:
      if (payload.size() != sizeof ack_) {
        return Next::kFault;
      }
      std::memcpy(&ack_, payload.data(), sizeof ack_);
      return Next::kAck;
    case FrameKind::kRefusal:
      if (payload.size() != sizeof refusal_) {
        return Next::kFault;
      }
      std::memcpy(&refusal_, payload.data(), sizeof refusal_);
      return Next::kRefusal;
    case FrameKind::kHeartbeat:
      return Next::kOther;
    default:
      return Next::kFault;
  }
}

}  // namespace pmirror
