// SPDX-License-Identifier: BSD-3-Clause
// Applies data images to the backing files of a replica: all of a frame or nothing of it.
//
// Everything that can go wrong for want of space is found out before the first byte is written (storage is
// reserved under the pages of the frame), so that a full disk has no partial effect and a store to a mapping
// never meets a hole (trap 9). File systems without fallocate(2) cannot promise that: there a full disk may
// leave part of a frame, which the refusal makes the sender send again.
//
// Thread-safe; frames of different files do not wait for each other.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "replication/frame.h"
#include "server/file_table.h"
#include "server/group_journal.h"
#include "server/outcome.h"
#include "server/persistence.h"
#include "server/undo_log.h"

namespace pmirror::server {

class DataApplier {
 public:
  // All must outlive the applier. `undo`: takes the bytes that are about to change; null: nobody does. `groups`: makes frames
  // that are groups whole across a crash; null: they are applied as others.
  DataApplier(FileTable& files, PersistenceDomain& domain, UndoLog* undo = nullptr,
              GroupJournal* groups = nullptr)
      : files_(files), domain_(domain), undo_(undo), groups_(groups) {}

  // The errno of a group that could neither be made whole nor taken back: nothing more is applied. 0: none.
  int broken() const { return broken_.load(std::memory_order_acquire); }

  enum class Wait { kNo, kForOperation };
  struct Applied {
    Outcome outcome;
    Wait wait = Wait::kNo;  // kForOperation: nothing was done; a size operation has to arrive first
    std::shared_ptr<BackingFile> file;  // written to: what a barrier has to make durable
  };

  // Applies a data image that the receiver admitted. `applied_operation`: the highest operation number that
  // is applied and recorded.
  Applied Apply(const FrameHeader& header, std::span<const WireRange> ranges,
                std::span<const std::byte> payload, uint64_t applied_operation);

  // Lays bytes of a batch over the file, whatever its order says: nobody else writes to a copy that trails. No bytes: the file is made at
  // least `offset` bytes long.
  Outcome Lay(const std::shared_ptr<BackingFile>& file, uint64_t offset, std::span<const std::byte> bytes);

  // What the file holds in each of `ranges`, and the newest capture that was applied to any of them, as one
  // state: no frame is applied in between. The bytes are read through the file after the system was asked to
  // forget its clean pages, so that they come from the storage as far as one can have that (not on tmpfs, nor
  // where somebody maps the page); what is not durable yet is read from memory. kIoError: the storage failed.
  Outcome Verify(FileId id, std::span<const WireRange> ranges, VerifiedBody& verified);

  // Which blocks of the range hold what the sums say, and that no older frame may change them from here on: in one step
  // (docs/internals/resync.md). kRecapture: the order number says nothing any more, or another size operation comes first.
  Outcome Confirm(const FrameHeader& header, const WireRange& range, std::span<const BlockSum16> sums,
                  uint64_t applied_operation, ConfirmedBody& confirmed, std::shared_ptr<BackingFile>& file);

 private:
  int WriteGroup(BackingFile& file, std::span<const ApplyPiece> pieces, std::span<const std::byte> payload);
  int Prepare(BackingFile& file, std::span<const ApplyPiece> pieces);
  int Reserve(BackingFile& file, std::span<const ApplyPiece> pieces);

  FileTable& files_;
  PersistenceDomain& domain_;
  UndoLog* const undo_;
  GroupJournal* const groups_;
  std::atomic<int> broken_ = 0;
};

}  // namespace pmirror::server
