// SPDX-License-Identifier: BSD-3-Clause
// The replication state of one open file on the primary: its place on the volume page, its order counter, and what the daemon itself holds
// dirty of it.
//
// Thread-safe. The flag kFileDaemonDirty of the file's slot is up exactly while anything here is dirty, under way or not durable: a program's
// sync that sees it down needs nothing from the daemon (docs/internals/capture-order.md, R4).
// ---
// For maintainers. A range is *dirty* (nobody captures it now), or *under way* (a capture took it up). Whoever syncs captures both: it does
// not wait for the other's capture, whose thread may be held up. A capture that fails gives its ranges back. Lock order: capture_mutex(),
// then mutex_. size_mutex() before both.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

#include "fs/extent_set.h"
#include "fs/known_sizes.h"
#include "fs/patient_mutex.h"
#include "fs/replicator.h"
#include "fs/shared_object.h"
#include "fs/sync_rounds.h"
#include "fs/volume_page_owner.h"
#include "replication/order_page.h"
#include "replication/replicate.h"
#include "replication/unique_fd.h"

namespace pmirror::fs {

class FileState : public ReplicatedFile, public std::enable_shared_from_this<FileState> {
 public:
  // Takes a slot of the page. `size_generation`: no size operation of the file has a later one. Null, with the reason logged by the caller,
  // when the page is full or memory for the counter cannot be had.
  static std::shared_ptr<FileState> Create(FileId id, int backing_fd, uint64_t size_generation,
                                           VolumePageOwner& page);
  ~FileState() override;

  FileId id() const override { return id_; }
  int backing_fd() const { return backing_.get(); }
  uint32_t slot_index() const { return slot_; }
  int order_fd() const { return order_.fd(); }
  CaptureTarget target() { return {.file = id_, .order = &*order_, .slot = &page_.slot(slot_)}; }
  FileSlot& slot() { return page_.slot(slot_); }
  uint64_t size() { return slot().size.load(std::memory_order_acquire); }
  // The file reaches at least to `end` now.
  void Extend(uint64_t end);

  // Somebody has had it open for writing since this object was made: stores to it may come without being told of.
  void MayBeWritten(std::shared_ptr<KnownSizes> sizes);
  bool may_be_written() const { return may_be_written_; }
  // That is recorded (recovery/mark_map.h).
  std::atomic<bool>& marked() { return marked_; }

  // Serialises size operations; held until the replicas have them.
  PatientMutex& size_mutex() { return size_mutex_; }
  // Serialises the taking over of other processes' dirty pages, up to where they are under way here.
  std::mutex& capture_mutex() { return capture_mutex_; }
  // Callers of one kind share rounds: what one of them does locally is what the others want.
  SyncRounds& sync_rounds(bool data_only) { return data_only ? data_rounds_ : full_rounds_; }

  // A write through a handle is under way: from before its local change until its bytes are captured and sent, or dirty here.
  void BeginWrite() { ++writes_; }
  void EndWrite() { --writes_; }
  bool writing() const { return writes_ != 0; }

  void Hold(Extent extent);
  void Hold(const ExtentSet& extents);
  // As Hold(), of what may have been stored to, and mostly has not: worth a comparison (fs/confirmation.h).
  void HoldDoubtful(Extent extent);
  // The file is gone from the volume: nothing of it is dirty any more, nor will be.
  void Forget();
  bool gone() const;
  bool dirty() const;
  bool DirtyIn(Extent range) const;
  // Dirty or under way.
  uint64_t dirty_bytes() const;

  // Ranges that one capture carries, from when it takes them up to its end.
  class Capture {
   public:
    // What is dirty or under way within `range`, and `more` (which the caller has just written, or taken from a process).
    Capture(FileState& file, Extent range, const ExtentSet& more);
    // Without Succeeded(): the ranges are dirty again.
    ~Capture();
    Capture(const Capture&) = delete;
    Capture& operator=(const Capture&) = delete;

    const ExtentSet& extents() const { return extents_; }
    // Of these.
    const ExtentSet& doubtful() const { return doubtful_; }
    void Succeeded() { succeeded_ = true; }

   private:
    FileState& file_;
    const uint64_t number_;
    ExtentSet extents_;
    ExtentSet doubtful_;
    bool succeeded_ = false;
  };

  // The replicas have bytes or operations of the file that are not durable there. A barrier that began after `mark` settles them.
  void NotDurable();
  uint64_t durability_mark() const;
  void Durable(uint64_t mark);

  // A reason from outside to keep the flag up: a scan of other processes' pages, a size operation on its way.
  class RaisedFlag {
   public:
    explicit RaisedFlag(FileState& file);
    ~RaisedFlag();
    RaisedFlag(const RaisedFlag&) = delete;
    RaisedFlag& operator=(const RaisedFlag&) = delete;

   private:
    FileState& file_;
  };

  // Processes that have the file mapped for writing: kFileShared when there are several.
  void SetWritingMappers(size_t processes);
  size_t writing_mappers() const { return writing_mappers_; }

 private:
  FileState(FileId id, UniqueFd backing, uint32_t slot, SharedObject<OrderPage> order, VolumePageOwner& page)
      : id_(id), backing_(std::move(backing)), slot_(slot), order_(std::move(order)), page_(page) {}
  void UpdateFlag();  // Requires: mutex_, as the next one
  void SettleDoubt(const ExtentSet& settled);

  const FileId id_;
  const UniqueFd backing_;
  const uint32_t slot_;
  const SharedObject<OrderPage> order_;
  VolumePageOwner& page_;

  std::atomic<bool> may_be_written_{false};
  std::atomic<bool> marked_{false};
  std::shared_ptr<KnownSizes> sizes_;  // guarded by mutex_

  PatientMutex size_mutex_;
  std::mutex capture_mutex_;
  SyncRounds data_rounds_;
  SyncRounds full_rounds_;

  std::atomic<size_t> writing_mappers_{0};
  std::atomic<uint32_t> writes_{0};  // under way

  mutable std::mutex mutex_;
  ExtentSet dirty_;     // guarded by mutex_, as all below
  ExtentSet doubtful_;  // no more than a hint: what of the dirty bytes may be equal everywhere
  std::map<uint64_t, ExtentSet> under_way_;  // by number of the capture
  uint64_t captures_ = 0;                    // begun so far
  uint64_t changes_ = 0;                     // what NotDurable() has counted
  uint64_t durable_changes_ = 0;             // how many of them a barrier has settled
  uint32_t flag_reasons_ = 0;
  bool gone_ = false;
};

inline FileState& StateOf(ReplicatedFile& file) { return static_cast<FileState&>(file); }

// What a growth of the file turned into contents although it lay behind the end: bytes that a mapping stored there
// (docs/internals/capture-order.md, R5). Empty when the old end is the end of a page.
Extent TailOf(uint64_t old_size, uint64_t new_size);

}  // namespace pmirror::fs
