// SPDX-License-Identifier: BSD-3-Clause
// What was stored to a volume and has not reached one of its replicas, asked while the volume goes on: nothing is frozen. The argument is in
// docs/internals/verify.md. One thread at a time.
#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "fs/in_sync_set.h"
#include "fs/trailer.h"
#include "fs/volume_replicator.h"
#include "recovery/page_proof.h"

namespace pmirror::fs {

class LiveStores : public recovery::PendingStores {
 public:
  // Of a replica that is a member or trails. `trailer` may be null. `patience`: how long one question may wait for a replica. `given_up`: nobody
  // wants to know any more. All must outlive this.
  LiveStores(
      size_t replica, VolumeReplicator& replicator, const InSyncSet& set, Trailer* trailer,
      std::chrono::nanoseconds patience, std::function<bool()> given_up = [] { return false; })
      : replica_(replica),
        replicator_(replicator),
        set_(set),
        trailer_(trailer),
        patience_(patience),
        given_up_(std::move(given_up)),
        begun_with_(set.set()) {}

  // kUnavailable: a replica does not answer; the bytes stay dirty. Both: kAborted, when anybody has joined or left the set since this was
  // made; kCancelled: given up.
  absl::Status Flush(FileId file, Extent extent) override;
  absl::StatusOr<std::vector<bool>> Dirty(FileId file, std::span<const Extent> ranges) override;
  SetWord begun_with() const { return begun_with_; }
  // How long it was waited for batches, which go at their own pace.
  std::chrono::nanoseconds waited() const { return waited_; }

 private:
  absl::Status DeliverAll();

  const size_t replica_;
  VolumeReplicator& replicator_;
  const InSyncSet& set_;
  Trailer* const trailer_;
  const std::chrono::nanoseconds patience_;
  const std::function<bool()> given_up_;
  const SetWord begun_with_;
  std::chrono::nanoseconds waited_{};
};

}  // namespace pmirror::fs
