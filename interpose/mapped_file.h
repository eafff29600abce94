// SPDX-License-Identifier: BSD-3-Clause
// One replicated file of this process in the hands of one sync: its mappings are scanned and copied from.
// Lives on the stack of the syncing thread, which has pinned the file's entry. Async-signal-safe, no
// allocation.
#pragma once

#include "interpose/runtime.h"
#include "interpose/sync_range.h"
#include "replication/replicate.h"

namespace pmirror::interpose {

// Scans one mapping (or a part of one) up to the end of the file and adds what was stored as ranges of the
// file; ranges without data in the backing file (holes nobody has written) are left out. Adds the whole
// mapping when it is not tracked or the scan failed.
void ScanMapping(const Mapping& whole, int backing_fd, ExtentList& extents);

class MappedFile : public SyncedFile, private ByteSource {
 public:
  // `hint` is a mapping of the file that the sync came through; it may be gone by now.
  MappedFile(Runtime& runtime, uint32_t file, const Mapping& hint)
      : runtime_(runtime), entry_(runtime.files().at(file)), file_(file), hint_(hint) {}

  FileId id() const { return entry_.file_id(); }
  Volume& volume() { return runtime_.volume(entry_.volume.load(std::memory_order_relaxed)); }

  void ScanAndProtect(Extent range, ExtentList& extents) override;
  uint64_t Size() override;
  // The size as the volume page has it: no system call; may be smaller than the file for one that grew.
  uint64_t KnownSize() const {
    return entry_.slot.load(std::memory_order_acquire)->size.load(std::memory_order_acquire);
  }
  Error Capture(std::span<const Extent> extents, LocalPersist* local) override;
  // The same, all or nothing on each replica. E2BIG: it does not fit one frame.
  Error CaptureGroup(std::span<const Extent> extents, LocalPersist* local);
  // As Capture, and then compared with what the replicas read back (replication/verify.h). Errors: as Capture; EILSEQ:
  // `result` says where and which replica; EAGAIN: newer captures of others landed every time; EHOSTDOWN: nobody is in
  // sync to be asked. Requires: at most ChecksummedSource::kMaxExtents.
  Error CaptureVerified(std::span<const Extent> extents, LocalPersist* local, VerifyResult& result);
  bool Alone() override;
  bool OnlyTrails() override;
  bool OthersMayBeDirty() override;
  Error SyncOthers(Extent range) override;
  Deadline WaitDeadline() override { return volume().WaitDeadline(); }

 private:
  // How a capture differs from a plain one.
  struct Manner {
    bool group = false;         // CaptureTarget::group
    uint64_t* taken = nullptr;  // CaptureTarget::taken
  };
  Error CaptureOnce(std::span<const Extent> extents, ByteSource& source, LocalPersist* local, Manner manner);
  Error VerifyOnce(const VerifyRequest& request, VerifyResult& result);
  Error SyncOthersOnce(Extent range, Deadline deadline);
  Error Unserved() const;
  bool NothingInDoubt();
  Result<size_t> Copy(Extent extent, std::span<std::byte> out) override;
  size_t CopyFromMapping(Extent extent, std::byte* out);
  bool FindMapping(uint64_t offset, Mapping& found) const;

  Runtime& runtime_;
  FileEntry& entry_;
  uint32_t file_;
  Mapping hint_;
};

}  // namespace pmirror::interpose
