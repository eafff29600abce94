// SPDX-License-Identifier: BSD-3-Clause
// Checks and names of the wire format.
#include "replication/frame.h"

#include <cstddef>

#include "replication/crc32c.h"

namespace pmirror {
namespace {

bool KnownKind(uint8_t kind) {
  return (kind >= static_cast<uint8_t>(FrameKind::kHello) &&
          kind <= static_cast<uint8_t>(FrameKind::kVerified)) ||
         kind == static_cast<uint8_t>(FrameKind::kConfirm) ||
         kind == static_cast<uint8_t>(FrameKind::kConfirmed);
}

}  // namespace

HeaderFault CheckHeader(const FrameHeader& header) {
  if (header.magic != kFrameMagic) {
    return HeaderFault::kMagic;
  }
  if (header.version != kFrameVersion) {
    return HeaderFault::kVersion;
  }
  if (!KnownKind(header.kind)) {
    return HeaderFault::kKind;
  }
  if ((header.flags & ~kKnownFlags) != 0) {
    return HeaderFault::kFlags;
  }
  if (header.range_count > kMaxRanges || header.extension_length > kMaxExtension ||
      header.payload_length > kMaxPayload) {
    return HeaderFault::kLengths;
  }
  if (header.reserved != 0) {
    return HeaderFault::kReserved;
  }
  return HeaderFault::kOk;
}

const char* Name(HeaderFault fault) {
  switch (fault) {
    case HeaderFault::kOk:
      return "ok";
    case HeaderFault::kMagic:
      return "magic";
    case HeaderFault::kVersion:
      return "version";
    case HeaderFault::kKind:
      return "kind";
    case HeaderFault::kFlags:
      return "flags";
    case HeaderFault::kLengths:
      return "lengths";
    case HeaderFault::kReserved:
      return "reserved";
  }
  return "unknown";
}

const char* Name(FrameKind kind) {
  switch (kind) {
    case FrameKind::kHello:
      return "hello";
    case FrameKind::kHelloAck:
      return "hello_ack";
    case FrameKind::kDataImage:
      return "data_image";
    case FrameKind::kNamespaceOp:
      return "namespace_op";
    case FrameKind::kBarrier:
      return "barrier";
    case FrameKind::kAck:
      return "ack";
    case FrameKind::kRefusal:
      return "refusal";
    case FrameKind::kHeartbeat:
      return "heartbeat";
    case FrameKind::kGrant:
      return "grant";
    case FrameKind::kRevoke:
      return "revoke";
    case FrameKind::kBatch:
      return "batch";
    case FrameKind::kVerify:
      return "verify";
    case FrameKind::kVerified:
      return "verified";
    case FrameKind::kConfirm:
      return "confirm";
    case FrameKind::kConfirmed:
      return "confirmed";
  }
  return "unknown";
}

const char* Name(RefusalCode code) {
  switch (code) {
    case RefusalCode::kRecapture:
      return "recapture";
    case RefusalCode::kNoSpace:
      return "no_space";
    case RefusalCode::kNoSuchFile:
      return "no_such_file";
    case RefusalCode::kNotGranted:
      return "not_granted";
    case RefusalCode::kOldEpoch:
      return "old_epoch";
    case RefusalCode::kOutOfRange:
      return "out_of_range";
    case RefusalCode::kIoError:
      return "io_error";
    case RefusalCode::kBlocked:
      return "blocked";
  }
  return "unknown";
}

uint32_t HeaderCrc(const FrameHeader& header, std::span<const WireRange> ranges,
                   std::span<const std::byte> extension) {
  FrameHeader zeroed = header;
  zeroed.header_crc = 0;
  uint32_t crc = Crc32c(0, std::as_bytes(std::span(&zeroed, 1)));
  crc = Crc32c(crc, std::as_bytes(ranges));
  return Crc32c(crc, extension);
}

}  // namespace pmirror
