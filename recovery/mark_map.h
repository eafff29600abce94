// SPDX-License-Identifier: BSD-3-Clause
// The durable map of which files may differ on which replica of a volume (docs/internals/resync.md, "marks").
//
// A mark may be there without need, which costs a comparison. It is never missing where it is needed, which would cost data: what
// sets marks is durable before it returns; what clears them is lazy, and a crash may lose it; whatever is doubtful about the file is
// read as "everything is marked". recovery/mark_log.h has the file.
//
// Thread-safe. in_use is called without a lock of the map.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "recovery/log_storage.h"
#include "recovery/mark_log.h"
#include "replication/types.h"

namespace pmirror::recovery {

class MarkMap {
 public:
  using Identity = MarkIdentity;
  // Whether anybody can store to the file: it is open for writing, or mapped so.
  using InUse = std::function<bool(FileId)>;

  struct Opened {
    std::unique_ptr<MarkMap> map;
    std::string doubt;  // empty, or why everything is marked: a sentence with the file and the reason
  };

  // What was marked, and not in use, at one moment. A value; it may be dropped, and used once or more.
  class Settle {
   public:
    bool empty() const { return files_.empty() && gone_.empty(); }

   private:
    friend class MarkMap;
    uint64_t point_ = 0;
    std::vector<FileId> files_;
    std::vector<FileId> gone_;
  };

  // Opens the map of this node's copy, or makes it, and records durably that mount `mount_number` uses it.
  //
  // Everything is marked for every replica, and `doubt` says why, when the file is damaged, of another version, volume or generation;
  // when it is missing although the volume was mounted before; and when it did not live through every mount up to this one (it comes
  // from a backup, or another node was the primary meanwhile). For a replica that is new in `identity` everything is marked; one that left
  // is dropped. The first mount has no doubt, and everything marked.
  //
  // Requires: it is called before the volume's record says `mount_number` (so a mount number that was used has been seen by the map);
  // a mount that was given up in between may be tried again with the same number.
  // Errors: kInvalidArgument (an identity with more than 8 replicas, a name that is empty, long or there twice); what the storage gives when it
  // cannot write or open the file. The file then says what it said, of the old mount or already of this one.
  static absl::StatusOr<Opened> Open(const std::string& path, const Identity& identity, uint64_t mount_number,
                                     LogStorage& storage = LogStorage::Real());
  // Tries to Flush().
  ~MarkMap();

  // A replica more, from now on; everything is marked for it. Durable when it returns OK; after an error the map has no such replica. Answers its
  // index. kInvalidArgument as Open; kAlreadyExists: there is one of that name. Requires: it is called by one thread at a time.
  absl::StatusOr<size_t> AddReplica(const std::string& name);

  // The replica has left the volume: nothing is marked for it any more. Its index stays its own. Lazy, like all that clears.
  void DropReplica(size_t replica);

  // The file is marked for every replica, durably, when it returns OK: without I/O when it is marked already, else one write and one fdatasync
  // that concurrent callers share. After an error (kResourceExhausted on a full disk) nothing is promised: the file must not be stored
  // to; the map stays usable, and a later call tries again.
  // Requires: in_use(file) is true already, and remains so until the last store (else a settle could fall between).
  absl::Status Mark(FileId file);
  // Likewise, but in this process only, without I/O: for a file whose id says that it was made in this mount. After a crash the files made since
  // base_mount() are in doubt all the same, because their ids say so.
  // Requires: as Mark.
  void Note(FileId file);
  // Everything may differ on that replica: durable when it returns OK. After an error it holds for this process.
  absl::Status MarkAll(size_t replica);

  bool AllMarked(size_t replica) const;
  // Files with a mark of their own, in no order, also while AllMarked.
  std::vector<FileId> Marked(size_t replica) const;

  // Whether the marks name every file by which a copy may differ whose record says that it followed mount `followed_mount` last. Marks were
  // cleared because the replica had the bytes in mount base_mount(): a record of an older mount (a copy from a backup) or of one to
  // come does not belong to these marks. The caller answers "no" with MarkAll.
  bool NamesEverything(size_t replica, uint64_t followed_mount) const;
  // The last mount in which marks of the replica were cleared; 0: never.
  uint64_t base_mount(size_t replica) const;

  // Clearing, in three steps, because programs store meanwhile:
  //   1. settle = BeginSettle(in_use)
  //   2. the caller makes everything before that durable: a barrier on the replicas, syncfs here
  //   3. EndSettle(settle, replicas): bit i set for every replica i that is in sync, was so all the time, and got the barrier
  // A mark goes when it was there at 1, its file was not in use at 1, and Mark() was not called on it since. (in_use is asked at 1 and not at 3: a
  // file that was closed between 2 and 3 has stores that 2 did not cover.)
  Settle BeginSettle(const InUse& in_use);
  // No I/O: goes to the file with the next Mark, Flush or close. Requires: the replicas' records follow this mount.
  void EndSettle(const Settle& settle, uint8_t replicas);

  // The replica was compared completely, or proven equal at the mount: like EndSettle for it, and not everything is marked any more unless MarkAll was
  // called since. `settle` began before Marked() was read for the comparison; step 2 came behind the last byte that was sent. An error means that a
  // crash would forget it; in this process it holds. Requires: the replica's record follows this mount.
  absl::Status Resynced(size_t replica, const Settle& settle);

  // The file left the volume. Its marks go with the next settle that begins after this call, which makes the removal durable before (a power
  // cut can bring the file back until then).
  void Forget(FileId file);

  // What was cleared is in the file, durably, when it returns OK.
  absl::Status Flush();

 private:
  struct Entry {
    uint8_t marked = 0;   // for which replicas
    uint8_t durable = 0;  // of these: a crash would not lose it
    bool gone = false;    // the file left the volume
    uint64_t stamp = 0;   // clock_ at the last Mark
    uint64_t batch = 0;   // number of the batch that brings the mark to the file
  };
  // What goes to the file in one write, with one result for everybody who waits for it.
  struct Batch {
    uint64_t number = 0;
    std::vector<MarkRecord> records;
    bool done = false;
    absl::Status result;
  };
  struct Replica {
    bool all = false;
    bool all_durable = false;
    uint64_t all_stamp = 0;  // clock_ at the last MarkAll
    uint64_t all_batch = 0;  // number of the batch that brings it to the file
    uint64_t base = 0;
  };

  MarkMap(std::string path, std::unique_ptr<MarkLog> log, const MarkState& state);

  // These require mutex_; WriteBatch leaves it while it writes.
  MarkState State() const;
  void ClearFile(FileId file, uint8_t replicas, uint64_t point);
  void RaiseBase(size_t replica);
  absl::Status Wait(std::unique_lock<std::mutex>& lock, std::shared_ptr<Batch> batch);
  void WriteBatch(std::unique_lock<std::mutex>& lock);

  const std::string path_;
  const uint64_t mount_number_;
  const std::unique_ptr<MarkLog> log_;  // used by the thread that made writing_

  mutable std::mutex mutex_;  // guards everything below
  MarkIdentity identity_;
  uint8_t everyone_;  // a bit for every replica
  std::condition_variable changed_;
  std::unordered_map<FileId, Entry> files_;
  std::vector<Replica> replicas_;
  uint64_t clock_ = 1;                 // one more with every settle that begins
  std::shared_ptr<Batch> collecting_;  // the next to be written
  std::shared_ptr<Batch> writing_;     // null, or what a thread writes now
  uint64_t finished_ = 0;              // number of the last batch that has a result
  bool behind_ =
      false;  // a batch failed: the file lacks what it would have said, appending would leave a gap
};

}  // namespace pmirror::recovery
