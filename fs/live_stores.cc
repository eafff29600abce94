// SPDX-License-Identifier: BSD-3-Clause
// See live_stores.h.
#include "fs/live_stores.h"

#include <cstring>
#include <memory>

namespace pmirror::fs {

absl::Status LiveStores::Flush(FileId id, Extent extent) {
  if (const std::shared_ptr<FileState> file = replicator_.Find(id); file != nullptr) {
    if (const int error = replicator_.BringOver(*file, extent); error != 0) {
      return absl::UnavailableError(std::strerror(error));
    }
  }
  return DeliverAll();
}

// The order matters: what a program or a handle has changed is dirty until it was captured and sent, or appended to the log; so the log, and the
// captures for a replica that trails, are looked at last.
absl::StatusOr<std::vector<bool>> LiveStores::Dirty(FileId id, std::span<const Extent> ranges) {
  std::vector<bool> dirty(ranges.size());
  if (const std::shared_ptr<FileState> file = replicator_.Find(id); file != nullptr) {
    for (size_t i = 0; i < ranges.size(); ++i) {
      dirty[i] = replicator_.Dirty(*file, ranges[i]);
    }
  }
  if (absl::Status status = DeliverAll(); !status.ok()) {
    return status;
  }
  return dirty;
}

// Batches are left their pace: one cut after the other would send back what programs capture, again and again.
absl::Status LiveStores::DeliverAll() {
  if (given_up_()) {
    return absl::CancelledError("the check is to end");
  }
  if (set_.trailing(replica_)) {
    replicator_.WithTreeAtRest([](uint64_t) {});  // whoever has changed the tree has said so
    const Deadline::Duration begun = Deadline::Now();
    const bool shipped =
        trailer_ != nullptr && trailer_->Flush(Deadline::After(patience_), Trailer::Pace::kAsEver).ok();
    waited_ += Deadline::Now() - begun;
    if (!shipped) {
      return absl::UnavailableError("a replica that trails does not catch up");
    }
  } else if (const int error = replicator_.DeliverTree(replica_, Deadline::After(patience_)); error != 0) {
    return absl::UnavailableError(std::strerror(error));
  }
  if (set_.set().raw != begun_with_.raw) {
    return absl::AbortedError("the in-sync set has moved");
  }
  return absl::OkStatus();
}

}  // namespace pmirror::fs
