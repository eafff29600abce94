// SPDX-License-Identifier: BSD-3-Clause
// Capture of byte ranges of one file and their way to every member of the in-sync set: steps 4 to 8 of a sync
// (docs/internals/architecture.md). The same code runs in programs (interpose/) and in the daemon (fs/).
//
// Threads: any number at once. Async-signal-safe and allocation-free after construction.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "replication/data_session.h"
#include "replication/order_page.h"
#include "replication/staging.h"
#include "replication/volume_page.h"

namespace pmirror {

// Where the bytes of a file come from: a mapping (program) or the backing descriptor (daemon).
class ByteSource {
 public:
  virtual ~ByteSource() = default;
  // Copies [extent) into `out` (out.size() == extent.length), aligned 8-byte words never torn. Returns how
  // many bytes there were: fewer when the file ends or was truncated meanwhile (never SIGBUS). EIO: the page
  // is poisoned.
  virtual Result<size_t> Copy(Extent extent, std::span<std::byte> out) = 0;
  // The same, and continues `crc` (CRC32C, crc32c.h) over the bytes that it wrote to `out`. For sources that
  // can do both in one pass; this one does one after the other.
  virtual Result<size_t> CopyWithCrc(Extent extent, std::span<std::byte> out, uint32_t& crc);
};

// Reads by pread from a descriptor; coherent with shared mappings of the same file.
class DescriptorSource : public ByteSource {
 public:
  explicit DescriptorSource(int fd) : fd_(fd) {}
  Result<size_t> Copy(Extent extent, std::span<std::byte> out) override;

 private:
  int fd_;
};

// Runs while the replicas work: makes the bytes durable here. Called once per Replicate, after the last frame
// was sent first (or when nothing could be sent), with signals as the caller had them.
class LocalPersist {
 public:
  virtual ~LocalPersist() = default;
  virtual Error Persist() = 0;
};

class CaptureWriter;
struct CaptureClock;

// This process's way to the replicas that trail (capture_log.h). Null: no replica of the volume ever does.
struct CaptureOutlet {
  CaptureClock* clock = nullptr;
  CaptureWriter* log = nullptr;
};

// The file whose ranges are captured.
struct CaptureTarget {
  FileId file = FileId::kNone;
  OrderPage* order = nullptr;
  const FileSlot* slot = nullptr;
  bool group = false;  // all of it or nothing on each replica: E2BIG when it does not fit one frame
  // When set: gets the order number of the frames whose bytes were copied last; 0 when those are in none.
  uint64_t* taken = nullptr;
};

// Told of what happens during a sync that waits; all calls may come from any thread and must be
// async-signal-safe.
class SyncObserver {
 public:
  virtual ~SyncObserver() = default;
  virtual void Suspended(FileId file) = 0;  // the blip deadline passed, waiting on as the owner said
  virtual void Resumed(FileId file) = 0;    // that wait is over, whatever came of it
  virtual void Failed(FileId file, int error) = 0;
  virtual void Recaptured() = 0;
  // A replica cannot apply what it was sent: the sync fails with this errno.
  virtual void Refused(size_t replica, int error) {
    (void)replica;
    (void)error;
  }
  // Asked several times a second while a sync waits: an errno ends it. `suspended`: the deadline has passed.
  virtual int Interrupted(bool suspended) {
    (void)suspended;
    return 0;
  }
};

class Replication {
 public:
  // `page` and `sessions` (one per configured replica, by index; null for one never used) must outlive the
  // object.
  Replication(const VolumePage& page, std::span<DataSession* const> sessions, StagingPool& staging,
              SyncObserver& observer);

  // One that sends to a single replica, whatever the policy says of the others: what a resync brings over. Success then means that this one
  // has it, or is neither a member nor a joiner any more.
  Replication(const VolumePage& page, std::span<DataSession* const> sessions, StagingPool& staging,
              SyncObserver& observer, size_t only);

  // Before the first call of Replicate. Both must outlive the object.
  void UseCaptureLog(CaptureOutlet outlet) { outlet_ = outlet; }

  // Captures `extents` (sorted, not overlapping) of `target` and returns when they are at `level` on every
  // in-sync member. `level` kDurable puts a barrier on the last frame. `local` may be null. An empty
  // `extents` with kDurable sends a barrier alone. Never returns success after a failure of `local`. What
  // does not fit one frame is split at cache lines, so that no aligned 8-byte word is; the ends of an extent
  // are the caller's and should be so, too. The volume's deadline is one without progress: it starts again
  // whenever the replica has let a further part of a large capture through. A joiner counts like a member: it
  // is asked for and waited for. Cancellation of the thread (both types) takes effect when the call returns,
  // not within it. Errors: EIO (policy fail, or suspend ran out; the replica's storage failed), ENOSPC (the
  // replica is full), ESTALE (fenced), ETIMEDOUT never. Under kProceed a replica that left the set is not waited for.
  // For replicas that trail the bytes are captured to the outlet, whatever the level; the call waits when one of them is older than its RPO. After an error nothing may be assumed about what the
  // replicas have: the ranges are still dirty (keep the ticket as redo).
  Error Replicate(const CaptureTarget& target, std::span<const Extent> extents, ByteSource& source,
                  WaitLevel level, LocalPersist* local);

 private:
  const VolumePage& page_;
  std::span<DataSession* const> sessions_;
  StagingPool& staging_;
  SyncObserver& observer_;
  const uint8_t considered_ = UINT8_MAX;  // bit a replica
  CaptureOutlet outlet_;
};

}  // namespace pmirror
