// SPDX-License-Identifier: BSD-3-Clause
// Compares the copies of a volume all the time, a little at a time, without being asked and without stopping anybody
// (docs/internals/verify.md). What it finds it tells CopyFindings.
//
// Thread-safe; one thread of its own does the work.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "fs/copy_findings.h"
#include "fs/in_sync_set.h"
#include "fs/remote_tree.h"
#include "fs/trailer.h"
#include "fs/volume_replicator.h"
#include "proto/control_client.h"
#include "recovery/check_round.h"
#include "recovery/local_tree.h"
#include "recovery/page_proof.h"

namespace pmirror::fs {

class BackgroundCheck {
 public:
  struct CopyOf {
    std::string node;
    std::vector<std::string> control;  // addresses of its daemon
  };
  struct Options {
    std::string volume_name;
    Uuid volume{};
    int backing_root = -1;                       // directory; stays open for the check's life
    std::chrono::nanoseconds period{};           // in which it goes once through all files
    std::chrono::nanoseconds deadline{};         // of the volume
    std::vector<CopyOf> copies{};                // by index
    std::function<bool(size_t replica)> counts;  // its copy is to be equal to ours, and it answers
  };

  // All must outlive the check; `trailer` may be null.
  BackgroundCheck(Options options, VolumeReplicator& replicator, const InSyncSet& set, Trailer* trailer,
                  CopyFindings& findings, EventSink& events);
  ~BackgroundCheck();  // as Stop()

  void Start();
  // Begins no further comparison; what is under way ends within the volume's deadline, when a replica does not take what it lacks.
  void RequestStop();
  void Stop();

 private:
  using Clock = std::chrono::steady_clock;
  class Original;
  struct Copy {
    std::unique_ptr<proto::ControlClient> client;
    std::unique_ptr<RemoteTree> tree;
  };

  void Run();
  void GoRound(recovery::CheckRound& round, Clock::duration worked);
  bool RestBeforeStep(Clock::time_point due);
  void Look(const recovery::CheckRound::Step& step);
  bool Compare(size_t replica, const recovery::CheckRound::Step& step, const recovery::BlockChecksums& ours);
  void LookAgain();
  absl::StatusOr<recovery::SettledRange> Settle(size_t replica, FileId file, Extent extent);
  bool MayLook() const;
  void NoteError(const std::string& path, const std::string& node, const absl::Status& status);
  bool RestUntil(Clock::time_point time);
  bool stopping() const;

  const Options options_;
  VolumeReplicator& replicator_;
  const InSyncSet& set_;
  Trailer* const trailer_;
  CopyFindings& findings_;
  EventSink& events_;
  const std::chrono::nanoseconds patience_;
  std::vector<Copy> copies_;
  // Of the thread:
  std::unique_ptr<Original> original_;
  Clock::time_point next_look_again_;  // at places that are known to differ
  Clock::duration waited_{};           // in the step under way: for batches, which is no work

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace pmirror::fs
