// SPDX-License-Identifier: BSD-3-Clause
// The wire format of the data protocol: one frame is header, ranges, extension, payload. The same on every transport.
//
//   FrameHeader (96 bytes) | range_count x WireRange | extension_length bytes | payload_length bytes
//
// All integers are little-endian (hosts of another byte order are refused at build time). header_crc covers the header with that field
// zero, the ranges and the extension; payload_crc covers the payload, which is the bytes of the ranges one after the other for a data
// image, and a body named by the kind otherwise. A receiver reads the header, checks it with CheckHeader() and only then reads on.
// Extensions a receiver does not know are skipped, so that nodes can be upgraded one at a time. Reserved fields are zero and checked.
// docs/internals/data-protocol.md has the table of kinds, who sends them, and a worked example.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

#include "replication/types.h"

namespace pmirror {

static_assert(std::endian::native == std::endian::little, "the wire format is written with plain stores");

enum class FrameKind : uint8_t {
  kHello = 1,      // opener -> replica: first frame of a connection; payload HelloBody
  kHelloAck = 2,   // replica -> opener: payload HelloAckBody
  kDataImage = 3,  // sender -> replica: bytes of ranges of one file under one order number
  kNamespaceOp =
      4,  // daemon -> replica: one change of the tree; payload namespace_op.h; header.order is its operation number
  kBarrier =
      5,     // sender -> replica: make durable what this session sent, and all of `file` if named; no payload
  kAck = 6,  // replica -> sender: payload AckBody
  kRefusal = 7,    // replica -> sender: one frame was not applied; payload RefusalBody
  kHeartbeat = 8,  // daemon <-> replica: answered by an ack
  kGrant = 9,      // daemon -> replica: session `order` may write `file`; no payload
  kRevoke = 10,    // daemon -> replica: session `order` may no longer write `file` (kNone: the session ends)
  kVerify = 11,    // sender -> replica: read these ranges of `file` back and say what they hold; no payload
  kBatch =
      12,  // daemon -> replica that trails: bytes `ranges[0]` of batch `order`; kFlagContinues: not the last ones
  kVerified = 13,  // replica -> sender: the answer to kVerify; payload VerifiedBody
  // 14 belongs to recovery reads.
  kConfirm =
      15,  // daemon -> replica: checksums of blocks of `file` under an order number; payload: a BlockSum16 for each
  kConfirmed = 16,  // replica -> daemon: the answer to kConfirm; payload ConfirmedBody
};

// FrameHeader::flags
constexpr uint8_t kFlagAckWanted = 1;   // acknowledge at once instead of when convenient
constexpr uint8_t kFlagBarrier = 2;     // after applying, do what kBarrier does; implies ack wanted
constexpr uint8_t kFlagRecaptured = 4;  // the ranges were sent before and not acknowledged
constexpr uint8_t kFlagContinues = 8;   // more frames of the same capture (same file and order) follow
constexpr uint8_t kFlagGroup =
    16;  // data image: all of it or nothing, also when the replica crashes while it applies it
constexpr uint8_t kKnownFlags = 31;

constexpr uint32_t kFrameMagic = 0x31524d50;  // "PMR1" in memory order
constexpr uint16_t kFrameVersion = 1;

struct FrameHeader {
  uint32_t magic;        // kFrameMagic
  uint16_t version;      // kFrameVersion
  uint8_t kind;          // FrameKind
  uint8_t flags;         // kFlag*
  uint64_t epoch;        // of the sender; the replica refuses an older one
  uint64_t set_version;  // of the in-sync set the sender used
  uint64_t session;      // SessionId
  uint64_t
      sequence;  // position in the session, from 1, no gaps within a connection; 0 for hello, acks and refusals
  uint64_t durable_sequence;  // highest sequence the sender of this frame knows to be durable
  uint64_t file;              // FileId; 0 where the kind names no file
  uint64_t
      order;  // order number (data image, confirm), operation number (namespace op), session (grant, revoke), abilities (hello ack); else 0
  uint64_t
      size_generation;   // of `file` when the order number was taken: 2 x operation number; 0 for other kinds
  uint32_t range_count;  // 0..kMaxRanges
  uint32_t extension_length;  // bytes, 0..kMaxExtension
  uint32_t payload_length;    // bytes, 0..kMaxPayload
  uint32_t payload_crc;       // CRC32C, 0 when there is no payload
  uint32_t reserved;          // 0
  uint32_t header_crc;        // CRC32C
};
static_assert(sizeof(FrameHeader) == 96 && std::has_unique_object_representations_v<FrameHeader>);

struct WireRange {
  uint64_t offset;  // bytes in the file
  uint64_t length;  // bytes, > 0; offset + length <= INT64_MAX
};
static_assert(sizeof(WireRange) == 16);

constexpr uint32_t kMaxRanges = 1024;
constexpr uint32_t kMaxExtension = 4096;
constexpr uint32_t kMaxPayload = 1 << 20;  // senders split what is larger under one order number
constexpr uint32_t kMaxFrame =
    sizeof(FrameHeader) + kMaxRanges * sizeof(WireRange) + kMaxExtension + kMaxPayload;

enum class SessionKind : uint32_t {
  kDaemon = 1,   // may send every kind; one a volume and replica
  kProcess = 2,  // may send data images of granted files and barriers
};

struct HelloBody {
  std::byte volume[16];    // Uuid
  std::byte ticket[16];    // one-time secret from the control protocol
  uint64_t next_sequence;  // sequence of the first frame that will follow; > 1 when a session is resumed
  uint32_t kind;           // SessionKind
  uint32_t reserved;       // 0
};
static_assert(sizeof(HelloBody) == 48);

struct HelloAckBody {
  uint64_t received_sequence;  // of this session, from earlier connections
  uint64_t durable_sequence;
  uint64_t operation_received;  // highest namespace operation number applied (daemon sessions)
  uint64_t credit_limit;        // see AckBody; counted from 0 for this connection
};
static_assert(sizeof(HelloAckBody) == 32);

struct AckBody {
  uint64_t received_sequence;  // every frame up to here was checked, and applied or refused
  uint64_t durable_sequence;   // every applied frame up to here is in the replica's persistence domain
  uint64_t operation_durable;  // highest namespace operation number that is durable
  uint64_t credit_limit;       // total frame bytes (all parts) the sender may have sent on this connection
};
static_assert(sizeof(AckBody) == 32);

enum class RefusalCode : uint32_t {
  kRecapture = 1,   // nobody's fault: capture the ranges again under a new order number
  kNoSpace = 2,     // the replica's file system is full; nothing of the frame was applied
  kNoSuchFile = 3,  // the replica has no object of that id
  kNotGranted = 4,  // this session may not write that file, or not send that kind
  kOldEpoch = 5,    // the sender's epoch was superseded; the session is closed
  kOutOfRange = 6,  // a range ends past the largest file the replica's file system can hold
  kIoError = 7,     // the replica's storage failed; error_number says how
  kBlocked = 8,     // an earlier namespace operation was refused and has to be repeated first
};

struct RefusalBody {
  uint64_t sequence;     // of the refused frame
  uint64_t file;         // as in the refused frame
  uint64_t order;        // as in the refused frame: tells a sender which capture to repeat
  uint32_t code;         // RefusalCode
  int32_t error_number;  // errno on the replica, 0 where code says all
};
static_assert(sizeof(RefusalBody) == 32);

constexpr uint32_t kMaxVerifyRanges = 128;     // of one kVerify
constexpr uint64_t kMaxVerifyBytes = 2 << 20;  // of all its ranges together

struct VerifiedBody {
  uint64_t sequence;  // of the kVerify it answers
  uint64_t file;      // as there
  uint64_t order;  // newest number that was applied to any byte of the ranges; 0: not known to this replica
  uint32_t range_count;  // as there
  uint32_t reserved;     // 0
  uint32_t crc
      [kMaxVerifyRanges];  // CRC32C of what the file holds in each range (up to its end); 0 beyond range_count
};
static_assert(sizeof(VerifiedBody) == 32 + 4 * kMaxVerifyRanges);

// FrameHeader::order of a hello ack: what this replica answers that not every version does.
constexpr uint64_t kCanConfirm = 1;

constexpr uint32_t kConfirmBlock = 4096;      // bytes; whole ones, at multiples of it
constexpr uint32_t kMaxConfirmBlocks = 1024;  // of the one range of a kConfirm

// XXH3's 128 bits of a block.
struct BlockSum16 {
  uint64_t low;
  uint64_t high;
  friend bool operator==(const BlockSum16&, const BlockSum16&) = default;
};
static_assert(sizeof(BlockSum16) == 16);

struct ConfirmedBody {
  uint64_t sequence;  // of the kConfirm it answers
  uint64_t file;      // as there
  uint64_t
      equal[kMaxConfirmBlocks / 64];  // bit a block, from the lowest of the first word: it holds the same

  bool is_equal(size_t block) const { return (equal[block / 64] >> (block % 64) & 1) != 0; }
};
static_assert(sizeof(ConfirmedBody) == 144);

// What is wrong with a header, in the order of the checks. kOk: lengths may be trusted.
enum class HeaderFault { kOk, kMagic, kVersion, kKind, kFlags, kLengths, kReserved };
HeaderFault CheckHeader(const FrameHeader& header);
const char* Name(HeaderFault fault);
const char* Name(FrameKind kind);
const char* Name(RefusalCode code);

// The header CRC over header (header_crc taken as zero), ranges and extension as they stand in memory.
uint32_t HeaderCrc(const FrameHeader& header, std::span<const WireRange> ranges,
                   std::span<const std::byte> extension);

// Bytes of the whole frame. Requires: CheckHeader(header) == kOk.
constexpr size_t FrameBytes(const FrameHeader& header) {
  return sizeof(FrameHeader) + size_t{header.range_count} * sizeof(WireRange) + header.extension_length +
         header.payload_length;
}

}  // namespace pmirror
