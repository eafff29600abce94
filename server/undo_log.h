// SPDX-License-Identifier: BSD-3-Clause
// The way back to a replica's last consistency point while a resync makes a mixture of its files (docs/internals/resync.md, "Promotable
// meanwhile"). Before a byte of a file that was there changes for the first time, the old one is in the log, durably; RollBack
// (undo_rollback.h) brings it all back.
//
// In `.pmirror/undo` of the backing directory: `log`, and `kept/<id>`, another name of each regular file that has lost its last one.
//
// Where the log cannot be written (no room, or a failing disk) it is given up: removed, durably, before the change goes on that it
// could not take. From then on the copy is not promotable until the resync has ended, and reason() says so.
//
// Thread-safe. The calls for one file are made under its BackingFile::mutex, those for names under the volume's namespace lock.
// ---
// For maintainers. Names are not logged one by one. The whole tree as it was is written when the log begins (the resync walks it
// anyhow), and a way back is a plan from whatever is there to it (recovery/tree_plan.h). So an operation of the tree costs nothing but the
// keeping of files, and a rollback is as good at any point as from the start: it needs no mark of its progress. For the same
// reason a range of a file is saved once: what it holds later was never at the consistency point.
//
// A link among the kept comes before the unlink that it is for, in one file system, whose journal keeps their order.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "recovery/log_storage.h"
#include "replication/apply_order.h"
#include "replication/namespace_op.h"
#include "server/backing_file.h"
#include "server/backing_index.h"
#include "server/range_set.h"
#include "server/undo_format.h"
#include "server/undo_log_file.h"

namespace pmirror::server {

// `.pmirror/undo/log` of a backing directory.
std::string UndoLogPath(const std::string& backing);
// `.pmirror/undo/kept`, made when it is missing.
absl::StatusOr<UniqueFd> OpenKept(int own_directory, const std::string& backing);
// Removes the log, durably, and then what was kept. OK when there is none.
absl::Status RemoveUndoLog(int own_directory, const std::string& backing, recovery::LogStorage& storage);

class UndoLog {
 public:
  struct Options {
    std::string volume;   // its name, for events
    std::string backing;  // the backing directory
    // Of the file system, in per cent: the log leaves it free.
    unsigned reserve = 5;
    recovery::LogStorage* storage = &recovery::LogStorage::Real();
  };
  // Not active. `index` must outlive it.
  UndoLog(const BackingIndex& index, Options options) : index_(index), options_(std::move(options)) {}

  // Makes a log that leads to what the tree is now, durably, in place of one that may be there. `id` is not 0. Requires: nobody changes
  // the tree or a file meanwhile, everything in them is durable, and the log is not active. An error leaves it so.
  absl::Status Begin(const UndoPoint& point, uint64_t id);
  // Goes on with the log `id`. kNotFound: there is none; kDataLoss: it is damaged. Requires as Begin.
  absl::Status Continue(uint64_t id);
  // Removes it, durably. Waits for calls below that have begun; later ones do nothing.
  absl::Status End();
  // Why there is no log from here on, for reason().
  void GiveUpWithout(const std::string& why);

  bool active() const { return active_.load(std::memory_order_acquire); }
  uint64_t id() const;                     // of the log; 0: not active
  std::string reason() const;              // why it is not active although a resync runs; may be empty
  std::optional<UndoPoint> point() const;  // where it leads; nothing while it is not active

  // --- before changes; 0, or an errno: the change must not be made. Nothing to do while it is not active ---

  // Bytes are about to be written. Requires: file.mutex is held, its descriptor is open.
  int BeforeWrite(const BackingFile& file, std::span<const ApplyPiece> pieces);
  // The same for kTruncate and kAllocate.
  int BeforeSizeChange(const BackingFile& file, const NamespaceOp& op);
  // The last name of a regular file is about to go.
  int BeforeLoss(int directory, const char* name, FileId id);
  // It is gone, and nobody can write to it any more.
  void Lost(FileId id);
  // Whether the object, whose inode that is, has a name among the kept, which no program ever saw.
  bool Keeps(FileId id, uint64_t inode) const;
  // The disk is full: gives the log up. Whether there was one, so that there may be room now. 0 or an errno as above.
  int MakeRoom(bool& made);

 private:
  // A regular file that was there. `saved` is guarded by the file's BackingFile::mutex.
  struct File {
    uint64_t size = 0;  // then
    RangeSet saved;
  };

  absl::Status Make(const UndoPoint& point, uint64_t id);
  absl::Status Write(const UndoPoint& point, uint64_t id, const recovery::Inventory& tree);
  void Remember(const recovery::Inventory& tree);
  absl::Status LoadKept();
  std::shared_ptr<File> Find(FileId id) const;
  absl::Status Save(const BackingFile& file, std::span<const Extent> ranges);
  int SaveOrGiveUp(const BackingFile& file, std::span<const Extent> ranges);
  absl::Status CheckRoom(uint64_t bytes) const;
  int GiveUp(const std::string& why);

  const BackingIndex& index_;
  const Options options_;
  std::atomic<bool> active_ = false;
  mutable std::shared_mutex use_mutex_;  // shared: a change is being taken; exclusive: begin and end
  std::unique_ptr<UndoLogFile> log_;     // guarded by use_mutex_
  UniqueFd kept_;                        // likewise
  UndoPoint point_;                      // likewise

  std::mutex give_up_mutex_;                                   // before mutex_
  mutable std::mutex mutex_;                                   // guards what follows
  std::unordered_map<uint64_t, std::shared_ptr<File>> files_;  // by id; without those that are kept
  std::string reason_;
};

}  // namespace pmirror::server
