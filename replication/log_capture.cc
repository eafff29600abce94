// SPDX-License-Identifier: BSD-3-Clause
// One capture, step by step, and the look at the RPO. See log_capture.h.
#include "replication/log_capture.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>

#include "replication/crc32c.h"
#include "replication/futex_mutex.h"
#include "replication/replica_mask.h"
#include "replication/signal_guard.h"

namespace pmirror {
namespace {

constexpr uint64_t kSplitAt = 64;  // bytes: pieces end on cache lines of the file, as frames do
constexpr uint32_t kMaxPieceRanges = 512;

}  // namespace

// As much from there on as one capture holds.
LogCapture::Piece LogCapture::NextPiece(std::span<const Extent> extents, uint64_t done) {
  Piece piece{.bytes = 0, .extents = 0, .done = done, .last = 0};
  while (piece.extents < extents.size() && piece.extents < kMaxPieceRanges) {
    const Extent& extent = extents[piece.extents];
    const uint64_t begin = extent.offset + (piece.extents == 0 ? done : 0);
    const size_t room = kMaxCapture - piece.bytes;
    if (room <= sizeof(WireRange) + kSplitAt) {
      break;
    }
    uint64_t end = extent.end();
    if (end - begin > room - sizeof(WireRange)) {
      end = (begin + room - sizeof(WireRange)) / kSplitAt * kSplitAt;
    }
    piece.bytes += sizeof(WireRange) + (end - begin);
    piece.last = end - begin;
    ++piece.extents;
    if (end != extent.end()) {
      break;
    }
  }
  return piece;
}

Result<bool> LogCapture::Capture(const CaptureTarget& target, std::span<const Extent> extents,
                                 ByteSource& source, uint8_t replicas) {
  uint64_t done = 0;
  const bool any = !extents.empty();
  while (!extents.empty()) {
    const Piece piece = NextPiece(extents, done);
    if (target.group && (piece.extents != extents.size() || piece.last != extents.back().length)) {
      return Error{E2BIG, "replicate: the group does not fit one capture"};  // a cut could fall between two
    }
    bool ended = false;
    const Result<Took> took = CapturePiece(target, extents, piece, source, ended);
    if (!took.ok()) {
      return took.error();
    }
    if (took.value() == Took::kAgain) {
      if (GivenUp()) {
        return false;
      }
      continue;
    }
    NoteActive(replicas);
    const uint64_t before_last = piece.extents == 1 ? done : 0;
    extents = extents.subspan(piece.extents - 1);
    done = before_last + piece.last;
    if (ended || done == extents.front().length) {  // an extent may reach as far as files can
      extents = extents.subspan(1);
      done = 0;
    }
    if (!extents.empty()) {
      patience_.Progress();
    }
  }
  if (any) {
    clock_.syncs.fetch_add(1, std::memory_order_relaxed);
  }
  return true;
}

bool LogCapture::GivenUp() {
  return patience_.RanOut() ||
         page_.state.load(std::memory_order_acquire) == static_cast<uint32_t>(VolumeState::kFenced);
}

// The order of the steps is docs/internals/rpo.md, 1 to 5.
Result<LogCapture::Took> LogCapture::CapturePiece(const CaptureTarget& target,
                                                  std::span<const Extent> extents, const Piece& piece,
                                                  ByteSource& source, bool& ended) {
  const std::atomic<uint64_t>& generation = target.slot->size_generation;
  const uint64_t seen = generation.load(std::memory_order_seq_cst);
  if (seen % 2 != 0) {  // a size operation is under way
    const SignalWindow window(SignalWindow::kNow);
    FutexWait(&generation, static_cast<uint32_t>(seen), patience_.Slice(), FutexScope::kShared);
    return Took::kAgain;
  }
  const uint32_t rooms = writer_.room_word();
  const std::optional<CaptureWriter::Room> room = writer_.Reserve(piece.bytes);
  if (!room.has_value()) {
    if (writer_.Full(piece.bytes)) {
      WakeDaemon();
      const SignalWindow window(SignalWindow::kNow);
      FutexWait(writer_.room_address(), rooms, patience_.Slice(), FutexScope::kShared);
    }
    return Took::kAgain;
  }
  CaptureWriter::Entry entry{.file = target.file,
                             .number = clock_.next.fetch_add(1, std::memory_order_seq_cst)};
  auto* const ranges = new (room->bytes.data()) WireRange[piece.extents];
  std::byte* const payload = room->bytes.data() + piece.extents * sizeof(WireRange);
  for (size_t i = 0; i < piece.extents; ++i) {
    const uint64_t begin = extents[i].offset + (i == 0 ? piece.done : 0);
    const uint64_t end = i + 1 == piece.extents ? begin + piece.last : extents[i].end();
    const Result<size_t> count =
        source.CopyWithCrc({begin, end - begin}, {payload + entry.payload_bytes, end - begin}, entry.crc);
    if (!count.ok()) {
      writer_.Abandon(*room);
      return count.error();
    }
    ended = count.value() < end - begin;
    if (count.value() != 0) {
      ranges[entry.range_count++] = {.offset = begin, .length = count.value()};
      entry.payload_bytes += static_cast<uint32_t>(count.value());
    }
  }
  if (generation.load(std::memory_order_seq_cst) != seen || CutSince(entry.number)) {
    writer_.Abandon(*room);
    return Took::kAgain;
  }
  if (entry.range_count == 0) {
    writer_.Abandon(*room);
    return Took::kAll;
  }
  entry.skip = static_cast<uint32_t>((piece.extents - entry.range_count) * sizeof(WireRange));
  if (entry.skip != 0) {  // the ranges lie right before the payload
    std::memmove(room->bytes.data() + entry.skip, ranges, entry.range_count * sizeof(WireRange));
  }
  entry.crc = Crc32c(entry.crc, room->bytes.subspan(entry.skip, entry.range_count * sizeof(WireRange)));
  clock_.bytes.fetch_add(entry.payload_bytes, std::memory_order_relaxed);
  return writer_.Commit(*room, entry) ? Took::kAll : Took::kAgain;
}

bool LogCapture::CutSince(uint64_t number) const {
  const uint64_t cut = page_.cut.load(std::memory_order_seq_cst);
  return cut % 2 != 0 || cut / 2 > number;
}

void LogCapture::NoteActive(uint8_t replicas) {
  ForEach(replicas, [&](size_t replica) {
    std::atomic<uint64_t>& since = clock_.active_since[replica];
    uint64_t idle = 0;
    if (since.load(std::memory_order_seq_cst) == 0 &&
        since.compare_exchange_strong(idle, static_cast<uint64_t>(Deadline::Now().count()))) {
      WakeDaemon();
    }
  });
}

void LogCapture::WakeDaemon() {
  if (clock_.wake.exchange(1, std::memory_order_seq_cst) == 0) {
    FutexWake(&clock_.wake, 1, FutexScope::kShared);
  }
}

ReplicaMask LogCapture::Lagging(ReplicaMask replicas) const {
  ReplicaMask lagging = 0;
  ForEach(replicas, [&](size_t replica) {
    const TrailLimits& limits = page_.trail[replica];
    const uint64_t since = clock_.active_since[replica].load(std::memory_order_acquire);
    if (limits.on_lag == static_cast<uint32_t>(OnLag::kProceed) || since == 0) {
      return;  // since 0: it has all, whatever was counted meanwhile
    }
    const auto now = static_cast<uint64_t>(Deadline::Now().count());
    const bool lags =
        (limits.rpo_ns != 0 && now > since + limits.rpo_ns) ||
        clock_.bytes.load(std::memory_order_relaxed) > limits.bytes.load(std::memory_order_acquire) ||
        clock_.syncs.load(std::memory_order_relaxed) > limits.syncs.load(std::memory_order_acquire);
    lagging |= lags ? Bit(replica) : ReplicaMask{0};
  });
  return lagging;
}

uint64_t LogCapture::Shipped(ReplicaMask replicas) const {
  uint64_t sum = 0;
  ForEach(replicas, [&](size_t replica) {
    sum += clock_.active_since[replica].load(std::memory_order_acquire) +
           page_.trail[replica].bytes.load(std::memory_order_acquire) +
           page_.trail[replica].syncs.load(std::memory_order_acquire);
  });
  return sum;
}

void LogCapture::AwaitShipping(ReplicaMask lagging, uint32_t seen_acks) {
  const uint64_t before = Shipped(lagging);
  WakeDaemon();
  const SignalWindow window(SignalWindow::kNow);
  FutexWait(&page_.trail_acks, seen_acks, patience_.Slice(), FutexScope::kShared);
  if (Shipped(lagging) != before) {
    patience_.Progress();
  }
}

}  // namespace pmirror
