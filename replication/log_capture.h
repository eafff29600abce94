// SPDX-License-Identifier: BSD-3-Clause
// The capture of a sync's extents to this process's capture log, for the replicas that trail; and whether those are within their RPO
// (docs/internals/rpo.md). Used by one sync; async-signal-safe and allocation-free.
#pragma once

#include <cstdint>
#include <span>

#include "replication/capture_log.h"
#include "replication/patience.h"
#include "replication/replica_mask.h"
#include "replication/replicate.h"
#include "replication/result.h"
#include "replication/volume_page.h"

namespace pmirror {

class LogCapture {
 public:
  // Requires: signals are blocked (signal_guard.h).
  LogCapture(const VolumePage& page, CaptureOutlet outlet, Patience& patience)
      : page_(page), clock_(*outlet.clock), writer_(*outlet.log), patience_(patience) {}

  // True: every byte is in the log. False: patience has run out, or the volume is fenced; what is there already may be shipped all the same.
  // Errors: those of the source.
  Result<bool> Capture(const CaptureTarget& target, std::span<const Extent> extents, ByteSource& source,
                       uint8_t replicas);

  // Those of them that lag more than they may.
  ReplicaMask Lagging(ReplicaMask replicas) const;
  // Has the daemon ship, and waits a while for that to have helped those. `seen_acks`: VolumePage::trail_acks from before Lagging(). Requires:
  // as above.
  void AwaitShipping(ReplicaMask lagging, uint32_t seen_acks);

 private:
  enum class Took { kAll, kAgain };
  struct Piece {
    size_t bytes = 0;    // of ranges and payload
    size_t extents = 0;  // that it covers, the last one perhaps in part
    uint64_t done = 0;   // bytes of the first one that lie before it
    uint64_t last = 0;   // bytes of the last one that belong to it
  };
  static Piece NextPiece(std::span<const Extent> extents, uint64_t done);
  // `ended`: the file ends within the piece's last extent.
  Result<Took> CapturePiece(const CaptureTarget& target, std::span<const Extent> extents, const Piece& piece,
                            ByteSource& source, bool& ended);
  bool CutSince(uint64_t number) const;
  bool GivenUp();
  uint64_t Shipped(ReplicaMask replicas) const;
  void NoteActive(uint8_t replicas);
  void WakeDaemon();

  const VolumePage& page_;
  CaptureClock& clock_;
  CaptureWriter& writer_;
  Patience& patience_;
};

}  // namespace pmirror
