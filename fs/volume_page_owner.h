// SPDX-License-Identifier: BSD-3-Clause
// The daemon's side of a volume page: creates it, sets its fields, and hands out file slots. Thread-safe.
#pragma once

#include <mutex>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "fs/page_listener.h"
#include "fs/shared_object.h"
#include "replication/deadline.h"
#include "replication/persistence.h"
#include "replication/replica_mask.h"
#include "replication/tracker.h"
#include "replication/volume_page.h"

namespace pmirror::fs {

class VolumePageOwner {
 public:
  struct Settings {
    Epoch epoch{};
    OnLoss on_loss = OnLoss::kSuspend;
    uint32_t replica_count = 0;
    uint64_t deadline_ns = 0;
    uint64_t suspend_ns = 0;
    Domain domain = Domain::kFile;
    Tracking tracking = Tracking::kNone;
    std::vector<std::string> replica_names = {};  // of their nodes, by index
    bool unproven = false;                        // no replica's copy can be good before it has been compared
    ReplicaMask filling = 0;  // those that are filled for the first time: no sync needs them yet
  };
  static absl::StatusOr<std::unique_ptr<VolumePageOwner>> Create(const Settings& settings);

  const VolumePage& page() const { return *page_; }
  int fd() const { return page_.fd(); }

  // False when the page says so already, or that the volume is fenced: that is for ever.
  bool SetState(VolumeState state);
  // Publishes a new in-sync set under the next version and wakes who waits for a change.
  void SetMembers(uint8_t members, uint8_t joiners, uint8_t trailing = 0);

  // A replica more, for the first time in this mount or again; no sync needs it before Require().
  void Configure(size_t replica, const std::string& node);
  // It has been filled: from now on no sync succeeds without it. False when it has left the volume meanwhile: then nobody needs it.
  bool Require(size_t replica);
  // It has left the volume.
  void Dismiss(size_t replica);

  // Replicas that trail (docs/internals/rpo.md). The limits are fixed: before the replica counts for the first time.
  void SetTrailLimits(size_t replica, uint64_t rpo_ns, OnLag on_lag);
  // The replica is older than its RPO, or is not any more; for listeners alone, the page does not say.
  void SetLagging(size_t replica, bool lagging);
  // What may be captured, ever, before a sync has to wait. Wakes who waits.
  void AllowCaptures(size_t replica, uint64_t bytes, uint64_t syncs);
  void AnnounceCut() { page_->cut.fetch_or(1, std::memory_order_seq_cst); }
  void PublishCut(uint64_t number) { page_->cut.store(number * 2, std::memory_order_seq_cst); }
  // Returns when the set is not `seen` any more, or at the deadline, or for no reason.
  void AwaitChange(SetWord seen, Deadline deadline) const;

  // From here on `listener` is told of each change, until StopListening() has returned.
  void Listen(PageListener& listener);
  void StopListening(PageListener& listener);

  // RESOURCE_EXHAUSTED when kMaxFileSlots files are open.
  absl::StatusOr<uint32_t> TakeSlot(FileId file, uint64_t size_generation, uint64_t size);
  void FreeSlot(uint32_t slot);
  FileSlot& slot(uint32_t index) { return page_->slots[index]; }

  // Half-steps of a size operation. Requires: the caller holds the file's size lock.
  void BeginSizeOperation(uint32_t slot);
  void AbandonSizeOperation(uint32_t slot);
  void EndSizeOperation(uint32_t slot, uint64_t generation, uint64_t size);

 private:
  explicit VolumePageOwner(SharedObject<VolumePage> page) : page_(std::move(page)) {}

  SharedObject<VolumePage> page_;
  std::mutex mutex_;
  std::vector<PageListener*> listeners_;  // guarded by mutex_
  uint8_t lagging_ = 0;                   // guarded by mutex_; bit a replica
  std::vector<uint32_t> free_slots_;      // guarded by mutex_; reused last in, first out
  uint32_t used_slots_ = 0;               // guarded by mutex_; slots ever used
};

}  // namespace pmirror::fs
