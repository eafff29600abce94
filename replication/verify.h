// SPDX-License-Identifier: BSD-3-Clause
// Flush and verify (docs/internals/programs.md): whether what replicas hold of a capture is what was captured, by
// checksums that the replicas read back from their files.
//
// A difference counts only when the replica says that no newer capture has been applied to those bytes: then
// there is no false alarm, whatever other threads and processes store and sync meanwhile.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "replication/data_session.h"
#include "replication/replicate.h"
#include "replication/volume_page.h"

namespace pmirror {

// What the latest capture copied of one extent.
struct CopiedExtent {
  Extent extent;     // length: bytes that there were
  uint32_t crc = 0;  // CRC32C of them
};

// Passes copies on and keeps their checksums. A capture that is taken again starts again. One thread's.
class ChecksummedSource : public ByteSource {
 public:
  static constexpr size_t kMaxExtents = kMaxVerifyRanges;
  // `extents` as they will be captured; both must outlive the object. Requires: at most kMaxExtents.
  ChecksummedSource(ByteSource& source, std::span<const Extent> extents);

  Result<size_t> Copy(Extent extent, std::span<std::byte> out) override;
  // In the order of the extents; those of which nothing was copied have length 0.
  std::span<const CopiedExtent> copied() const { return std::span(copied_).first(extents_.size()); }

 private:
  ByteSource& source_;
  const std::span<const Extent> extents_;
  std::array<CopiedExtent, kMaxExtents> copied_{};
};

struct VerifyRequest {
  FileId file = FileId::kNone;
  uint64_t order = 0;  // of the capture
  std::span<const CopiedExtent> copied;
};

struct VerifyResult {
  enum class Verdict {
    kEqual,    // every member that was asked holds the captured bytes, and at least one was asked
    kDiffers,  // `replica` holds other bytes in `extent`, and no newer capture has reached them
    kAgain,    // something newer has been applied, or the connection broke: capture and verify again
    kNobody,   // the in-sync set is empty
  };
  Verdict verdict = Verdict::kNobody;
  size_t replica = kMaxReplicas;  // of kDiffers, and of an error that one replica gave; kMaxReplicas: none
  Extent extent;
};

// Asks every member of the in-sync set. Waits as a sync does (patience.h), and tells `observer` likewise. Errors:
// EIO (no answer in time; the replica's storage failed when it read), ESTALE (fenced), E2BIG (more bytes or extents than
// one frame may name), or what the observer's Interrupted() said. Allocation-free, async-signal-safe.
Error Verify(const VolumePage& page, std::span<DataSession* const> sessions, SyncObserver& observer,
             const VerifyRequest& request, VerifyResult& result);

}  // namespace pmirror
