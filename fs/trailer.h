// SPDX-License-Identifier: BSD-3-Clause
// Ships the batches of a volume to the replicas that trail, and says how old they are (docs/internals/rpo.md). A thread for each replica, and
// one that hears the programs.
//
// Thread-safe.
// ---
// For maintainers. Lock order: cutting_, then the volume's namespace lock (within a cut), then mutex_.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "fs/cutter.h"
#include "replication/deadline.h"
#include "replication/rpo.h"
#include "replication/types.h"

namespace pmirror::fs {

// The way of a batch to one replica, and what its fate means. Called on the replica's thread.
class BatchCarrier {
 public:
  enum class Fate {
    kApplied,
    kLost,    // no answer before the deadline: again
    kFull,    // the replica has no room: again, later
    kUnfit,   // the copy is not what the batch was made for: a resync has to bring it back
    kFenced,  // it follows a newer primary
  };
  virtual ~BatchCarrier() = default;
  virtual Fate Ship(size_t replica, uint64_t number, std::span<const std::byte> batch, Deadline deadline) = 0;
  virtual void TrailEnded(size_t replica, Fate why) = 0;
  // It is older than its RPO, or is not any more (also because it trails no more). From other threads too, under the trailer's lock: quick.
  virtual void LagMoved(size_t replica, bool beyond) = 0;
};

class Trailer {
 public:
  struct Options {
    uint64_t mount_number = 0;
    std::vector<std::optional<Rpo>> rpo;  // of each replica; none: it never trails
    std::chrono::nanoseconds deadline{};  // of the volume
  };
  // All must outlive the trailer.
  Trailer(Options options, Cutter& cutter, VolumePageOwner& page, const OperationLog& log,
          Cutter::AtRest at_rest, BatchCarrier& carrier);
  ~Trailer();
  void Start();
  void Stop();

  bool Wants(size_t replica) const {
    return replica < options_.rpo.size() && options_.rpo[replica].has_value();
  }

  // Requires: Wants(replica).
  const Rpo& rpo(size_t replica) const { return *options_.rpo[replica]; }

  // A replica more that may trail. Before its bit is set in the page's masks.
  void Add(size_t replica, Rpo rpo);

  // From now on what is captured is kept for it: before the set word says that it trails.
  void Collect(size_t replica);
  // It trails, has applied operations up to `operation`, and gets batches from 1 on.
  void Begin(size_t replica, uint64_t operation);
  // It does not trail any more; what was kept for it goes.
  void End(size_t replica);

  // It gets batches: more than that what it will get is kept.
  bool Ships(size_t replica) const;
  // Whether a copy that says so of itself is the one we ship to.
  bool Follows(size_t replica, uint64_t batch) const;

  // Everything captured before the call is on every replica that trails. DEADLINE_EXCEEDED. kNow: batches are cut and shipped for it at once,
  // kAsEver: it is waited for what goes its way.
  enum class Pace { kNow, kAsEver };
  absl::Status Flush(Deadline deadline, Pace pace = Pace::kNow);
  // An operation was appended to the volume's log: the trailing replicas lack it. Requires: as Cutter::NoteOperation.
  void NoteOperation(uint64_t number);
  // Operations up to this one are on every replica that trails; UINT64_MAX when none does.
  uint64_t operations_shipped() const;

  struct Status {
    bool trails = false;
    bool breached = false;  // it lags more than it may
    uint64_t lag_ns = 0, lag_bytes = 0, lag_syncs = 0, breach_ns = 0, point_age_ns = 0;
    uint64_t batches = 0, batch_bytes = 0, captured_bytes = 0;
  };
  Status status(size_t replica) const;

 private:
  enum class Phase { kOff, kCollecting, kTrailing };
  struct Replica {
    Phase phase = Phase::kOff;
    uint64_t turn = 0;  // counted up whenever the phase changes
    recovery::BatchBuilder pending;
    Cutter::Point point;  // of the last cut that `pending` holds
    uint64_t acked_batch = 0;
    Cutter::Point acked;  // of the last batch that was acknowledged
    std::optional<Deadline::Duration> breach_since;
    bool lag_told = false;                           // that it is older than its RPO
    std::optional<Deadline::Duration> within_since;  // of one of which that was told
    Status counts;
    std::thread thread;
  };

  void Watch();
  void Serve(size_t replica);
  void CutNow();
  bool HaveRoom(std::vector<size_t>& unfit);
  void Distribute(const Cutter::Cut& cut, std::vector<size_t>& unfit);
  void ShipPending(std::unique_lock<std::mutex>& lock, size_t replica);
  void Acknowledged(size_t replica, const Cutter::Point& point, uint64_t bytes);
  void AllowAfter(size_t replica, const Cutter::Point& point);
  bool Lags(size_t replica, int parts) const;
  void NoteBreach(Replica& state, bool breached);
  void NoteLag(size_t replica, bool beyond);
  void SetPhase(size_t replica, Phase phase);
  bool AllOff() const;
  std::chrono::nanoseconds Interval(size_t replica) const;
  bool Nothing(size_t replica) const;

  Options options_;  // of an RPO: not read before its replica has a phase
  Cutter& cutter_;
  VolumePageOwner& page_;
  const OperationLog& log_;
  const Cutter::AtRest at_rest_;
  BatchCarrier& carrier_;

  std::atomic<bool> active_{
      false};           // some replica is in a phase other than kOff, or was; written under cutting_
  std::mutex cutting_;  // one cut at a time, and its distribution; before mutex_
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::array<Replica, kMaxReplicas>
      replicas_;  // guarded by mutex_ (threads: by Start and Stop), as all below
  bool stopping_ = false;
  uint64_t urgent_ = 0;  // counted up by who cannot wait for the interval
  std::thread watcher_;
};

}  // namespace pmirror::fs
