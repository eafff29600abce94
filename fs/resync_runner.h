// SPDX-License-Identifier: BSD-3-Clause
// Does what a resync of one replica takes (recovery/resync_machine.h, docs/internals/resync.md): the shell of that machine.
//
// Thread-safe; Run() is called by one thread at a time.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "fs/in_sync_set.h"
#include "fs/resync_peer.h"
#include "fs/volume_replicator.h"
#include "recovery/local_tree.h"
#include "recovery/resync_machine.h"
#include "recovery/tree_plan.h"

namespace pmirror::fs {

class ResyncRunner {
 public:
  struct Options {
    size_t replica = 0;
    int backing_root = -1;  // directory; stays open for the runner's life
    std::chrono::nanoseconds
        deadline{};  // a silence of the replica shorter than this does not end the resync
    // A number that grows while programs sync: then the resync leaves them half of the time.
    std::function<uint64_t()> activity;
  };
  struct Progress {
    bool running = false;
    const char* phase = "";
    recovery::ResyncCounts counts;
    double bytes_per_second = 0;  // compared
  };

  // All must outlive the runner.
  ResyncRunner(Options options, VolumeReplicator& replicator, InSyncSet& set)
      : options_(std::move(options)), replicator_(replicator), set_(set) {}

  // OK: the replica is a member again. Otherwise it is neither member nor joiner, and its copy says of itself that it is a mixture:
  // kFailedPrecondition, when another attempt would end in the same way until somebody does something about it.
  // `counts`: of what was done.
  absl::Status Run(ResyncPeer& peer, recovery::ResyncCounts& counts);

  Progress progress() const;

 private:
  using Machine = recovery::ResyncMachine;

  absl::Status RunSteps(Machine& machine, ResyncPeer& peer);
  absl::Status RunStep(Machine& machine, ResyncPeer& peer);
  absl::Status Begin(ResyncPeer& peer);
  absl::Status ChangeTree(ResyncPeer& peer);
  absl::Status MarkChanged(const recovery::TreePlan& plan);
  absl::Status Join(ResyncPeer& peer);
  absl::Status ListFiles(Machine& machine);
  absl::Status Compare(Machine& machine, ResyncPeer& peer);
  absl::Status Send(Machine& machine);
  absl::Status End(ResyncPeer& peer);
  std::shared_ptr<FileState> Open(FileId file);
  absl::StatusOr<UniqueFd> OpenKnown(FileId file) const;
  absl::StatusOr<recovery::Inventory> TakeInventory();
  void Publish(const Machine& machine);
  void GiveWay(std::chrono::steady_clock::duration worked);

  const Options options_;
  VolumeReplicator& replicator_;
  InSyncSet& set_;

  // Of the run under way.
  std::unique_ptr<recovery::LocalTree> tree_;
  std::optional<uint64_t> walked_at_;   // operation up to which tree_ and regular_ are right
  std::map<FileId, uint64_t> regular_;  // files that the walk found, with their sizes
  recovery::MarkMap::Settle settle_;
  std::shared_ptr<FileState> file_;  // at hand
  bool joined_ = false;
  uint64_t activity_ = 0;
  std::chrono::steady_clock::time_point begun_;

  mutable std::mutex mutex_;
  Progress progress_;  // guarded by mutex_
};

}  // namespace pmirror::fs
