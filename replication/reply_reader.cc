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

template <typename Body>
ReplyReader::Next ReplyReader::DecodeBody(std::span<const std::byte> payload, Body& body, Next kind) {
  if (payload.size() != sizeof body) {
    return Next::kFault;
  }
  std::memcpy(&body, payload.data(), sizeof body);
  return kind;
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
      return DecodeBody(payload, ack_, Next::kAck);
    case FrameKind::kRefusal:
      return DecodeBody(payload, refusal_, Next::kRefusal);
    case FrameKind::kHelloAck:
      return DecodeBody(payload, hello_ack_, Next::kHelloAck);
    case FrameKind::kVerified:
      return DecodeBody(payload, verified_, Next::kVerified);
    case FrameKind::kConfirmed:
      return DecodeBody(payload, confirmed_, Next::kConfirmed);
    case FrameKind::kHeartbeat:
      return Next::kOther;
    default:
      return Next::kFault;
  }
}

}  // namespace pmirror
