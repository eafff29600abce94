// SPDX-License-Identifier: BSD-3-Clause
// Cuts the byte stream that comes from a replica into replies. No I/O, no allocation; one owner at a time.
//
// Replies are small: acknowledgements, refusals, heartbeats. What claims to be larger than the buffer, or
// fails a check, is a fault, after which nothing more can be read from that connection.
#pragma once

#include <array>
#include <cstddef>
#include <span>

#include "replication/frame.h"

namespace pmirror {

class ReplyReader {
 public:
  enum class Next {
    kNone,       // no whole frame here: receive more
    kAck,        // ack() and header() are valid until the next call
    kRefusal,    // refusal() and header() are
    kHelloAck,   // hello_ack() and header() are; the first frame of a connection only
    kVerified,   // verified() and header() are
    kConfirmed,  // confirmed() and header() are
    kOther,      // a frame that a sender may ignore (heartbeat)
    kFault,      // magic, lengths, CRC or kind are wrong
  };

  // Where to receive to; never empty when Take() has returned kNone.
  std::span<std::byte> Room() { return std::span(buffer_).subspan(end_); }
  void Filled(size_t bytes) { end_ += bytes; }
  Next Take();
  // A new connection: what is left of the old one's bytes goes.
  void Reset() { begin_ = end_ = 0; }

  const FrameHeader& header() const { return header_; }
  const AckBody& ack() const { return ack_; }
  const RefusalBody& refusal() const { return refusal_; }
  const HelloAckBody& hello_ack() const { return hello_ack_; }
  const VerifiedBody& verified() const { return verified_; }
  const ConfirmedBody& confirmed() const { return confirmed_; }

 private:
  static constexpr size_t kBufferBytes = 8192;
  static constexpr size_t kMaxReplyPayload = 1024;
  static_assert(sizeof(FrameHeader) + kMaxExtension + kMaxReplyPayload <= kBufferBytes);

  void MoveToFront();
  Next Decode(std::span<const std::byte> frame);
  template <typename Body>
  static Next DecodeBody(std::span<const std::byte> payload, Body& body, Next kind);

  std::array<std::byte, kBufferBytes> buffer_;
  size_t begin_ = 0;  // bytes [begin_, end_) of the buffer are received and not yet taken
  size_t end_ = 0;
  FrameHeader header_{};
  AckBody ack_{};
  RefusalBody refusal_{};
  HelloAckBody hello_ack_{};
  VerifiedBody verified_{};
  ConfirmedBody confirmed_{};
};

}  // namespace pmirror
