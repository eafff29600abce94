// SPDX-License-Identifier: BSD-3-Clause
// Who ships what when, and what an acknowledgement means for those who wait. See trailer.h.
#include "fs/trailer.h"

#include <algorithm>
#include <utility>

#include "replication/futex_mutex.h"

namespace pmirror::fs {
namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;

constexpr int kBatchesPerRpo = 4;
constexpr nanoseconds kShortestInterval = milliseconds(1);
constexpr nanoseconds kLongestInterval = milliseconds(500);
constexpr nanoseconds kIntervalByAmount = milliseconds(5);  // of an RPO that is no time
constexpr milliseconds kWatchSlice{500};
constexpr milliseconds kLagSettled{1000};
constexpr milliseconds kRetryPause{50};
constexpr milliseconds kFullPause{250};
constexpr double kFullEnough = 0.5;                     // of a capture log
constexpr uint64_t kMostPending = uint64_t{256} << 20;  // bytes kept for one replica; then the logs fill

std::chrono::steady_clock::time_point TimeOf(Deadline deadline) {
  return std::chrono::steady_clock::now() + deadline.Remaining();
}

}  // namespace

Trailer::Trailer(Options options, Cutter& cutter, VolumePageOwner& page, const OperationLog& log,
                 Cutter::AtRest at_rest, BatchCarrier& carrier)
    : options_(std::move(options)),
      cutter_(cutter),
      page_(page),
      log_(log),
      at_rest_(std::move(at_rest)),
      carrier_(carrier) {
  options_.rpo.resize(kMaxReplicas);  // of those to come, too
  for (size_t i = 0; i < options_.rpo.size(); ++i) {
    if (options_.rpo[i].has_value()) {
      page_.SetTrailLimits(i, static_cast<uint64_t>(options_.rpo[i]->time.count()), options_.rpo[i]->on_lag);
    }
  }
}

Trailer::~Trailer() { Stop(); }

void Trailer::Start() {
  watcher_ = std::thread([this] { Watch(); });
  for (size_t i = 0; i < options_.rpo.size(); ++i) {
    if (options_.rpo[i].has_value()) {
      replicas_[i].thread = std::thread([this, i] { Serve(i); });
    }
  }
}

void Trailer::Add(size_t replica, Rpo rpo) {
  page_.SetTrailLimits(replica, static_cast<uint64_t>(rpo.time.count()), rpo.on_lag);
  const std::lock_guard lock(mutex_);
  options_.rpo[replica] = std::move(rpo);
  replicas_[replica].thread = std::thread([this, replica] { Serve(replica); });
}

void Trailer::Stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  cutter_.clock().wake.store(1);
  FutexWake(&cutter_.clock().wake, INT_MAX, FutexScope::kShared);
  if (watcher_.joinable()) {
    watcher_.join();
  }
  for (Replica& replica : replicas_) {
    if (replica.thread.joinable()) {
      replica.thread.join();
    }
  }
}

// --- phases ---

void Trailer::SetPhase(size_t replica, Phase phase) {
  Replica& state = replicas_[replica];
  state.phase = phase;
  ++state.turn;
  state.pending = {};
  state.acked_batch = 0;
  NoteBreach(state, false);
  if (std::exchange(state.lag_told, false)) {
    carrier_.LagMoved(replica, false);
  }
  changed_.notify_all();
}

void Trailer::Collect(size_t replica) {
  const std::lock_guard cutting(cutting_);
  active_.store(true, std::memory_order_seq_cst);
  if (AllOff()) {
    // What the logs still hold is of a time for which nobody collects. From the operations that this cut knows on, all are noted.
    (void)cutter_.Make(at_rest_);
  }
  const std::lock_guard lock(mutex_);
  SetPhase(replica, Phase::kCollecting);
  cutter_.clock().active_since[replica].store(static_cast<uint64_t>(Deadline::Now().count()));
  page_.AllowCaptures(replica, UINT64_MAX, UINT64_MAX);
}

// What it lacks of the operations so far goes before everything that was collected.
void Trailer::Begin(size_t replica, uint64_t operation) {
  const std::lock_guard cutting(cutting_);
  const uint64_t last =
      cutter_.last_operation();  // before mutex_, which NoteOperation takes under the tree's lock
  std::unique_lock lock(mutex_);
  Replica& state = replicas_[replica];
  if (state.phase != Phase::kCollecting) {
    return;
  }
  std::vector<recovery::BatchBuilder::Operation> operations;
  for (uint64_t number = operation + 1; number <= last; ++number) {
    operations.push_back(log_.Get(number));
  }
  const bool whole = std::find(operations.begin(), operations.end(), nullptr) == operations.end();
  if (!whole) {
    SetPhase(replica, Phase::kOff);
    lock.unlock();
    carrier_.TrailEnded(replica, BatchCarrier::Fate::kUnfit);
    return;
  }
  state.pending.Restart(operation + 1, std::move(operations));
  state.phase = Phase::kTrailing;
  state.acked = {.wall = WallNow(),
                 .bytes = cutter_.clock().bytes,
                 .syncs = cutter_.clock().syncs,
                 .last_operation = operation};
  AllowAfter(replica, state.acked);
  ++urgent_;
  changed_.notify_all();
}

void Trailer::End(size_t replica) {
  const std::lock_guard lock(mutex_);
  SetPhase(replica, Phase::kOff);
}

bool Trailer::Ships(size_t replica) const {
  const std::lock_guard lock(mutex_);
  return replicas_[replica].phase == Phase::kTrailing;
}

bool Trailer::Follows(size_t replica, uint64_t batch) const {
  const std::lock_guard lock(mutex_);
  const Replica& state = replicas_[replica];
  return state.phase == Phase::kTrailing && (batch == state.acked_batch || batch == state.acked_batch + 1);
}

void Trailer::NoteOperation(uint64_t number) {
  if (!active_.load(std::memory_order_seq_cst)) {
    return;
  }
  cutter_.NoteOperation(number);
  const uint8_t trailing = LoadSet(page_.page()).trailing();
  for (size_t i = 0; i < options_.rpo.size(); ++i) {
    uint64_t idle = 0;
    if ((trailing & (1U << i)) != 0 && cutter_.clock().active_since[i].compare_exchange_strong(
                                           idle, static_cast<uint64_t>(Deadline::Now().count()))) {
      const std::lock_guard lock(mutex_);
      changed_.notify_all();
    }
  }
}

uint64_t Trailer::operations_shipped() const {
  const std::lock_guard lock(mutex_);
  uint64_t least = UINT64_MAX;
  for (const Replica& replica : replicas_) {
    if (replica.phase == Phase::kTrailing) {
      least = std::min(least, replica.acked.last_operation);
    } else if (replica.phase == Phase::kCollecting) {
      least = 0;
    }
  }
  return least;
}

bool Trailer::AllOff() const {
  const std::lock_guard lock(mutex_);
  return std::all_of(replicas_.begin(), replicas_.end(),
                     [](const Replica& replica) { return replica.phase == Phase::kOff; });
}

// --- what programs say ---

void Trailer::Watch() {
  CaptureClock& clock = cutter_.clock();
  while (true) {
    FutexWait(&clock.wake, 0, Deadline::After(kWatchSlice), FutexScope::kShared);
    const bool woken = clock.wake.exchange(0, std::memory_order_seq_cst) != 0;
    {
      const std::lock_guard cutting(cutting_);
      active_ = active_ && !AllOff();  // operations need not be noted any more
      if (!active_) {
        cutter_.DropClosedLogs();
      }
    }
    if (active_ && cutter_.fill() >= kFullEnough) {
      CutNow();  // also while a batch is on its way: programs need room
    }
    const std::lock_guard lock(mutex_);
    if (stopping_) {
      return;
    }
    bool urgent = false;
    for (size_t i = 0; i < options_.rpo.size(); ++i) {
      if (replicas_[i].phase == Phase::kTrailing) {
        urgent = urgent || Lags(i, 2);
        const bool beyond = Lags(i, 1);
        NoteBreach(replicas_[i], beyond);
        NoteLag(i, beyond);
      }
    }
    urgent_ += urgent ? 1 : 0;
    if (woken || urgent) {
      changed_.notify_all();
    }
  }
}

// Whether it is older than that part of its RPO. Under mutex_.
bool Trailer::Lags(size_t replica, int parts) const {
  const Rpo& rpo = *options_.rpo[replica];
  const Replica& state = replicas_[replica];
  const CaptureClock& clock = cutter_.clock();
  const uint64_t since = clock.active_since[replica].load(std::memory_order_acquire);
  if (since == 0) {
    return false;
  }
  const uint64_t age = static_cast<uint64_t>(Deadline::Now().count()) - since;
  return (rpo.time.count() != 0 && age > static_cast<uint64_t>(rpo.time.count() / parts)) ||
         (rpo.bytes != 0 && clock.bytes - state.acked.bytes > rpo.bytes / static_cast<uint64_t>(parts)) ||
         (rpo.syncs != 0 && clock.syncs - state.acked.syncs > rpo.syncs / static_cast<uint64_t>(parts));
}

void Trailer::NoteBreach(Replica& state, bool breached) {
  const Deadline::Duration now = Deadline::Now();
  if (breached && !state.breach_since.has_value()) {
    state.breach_since = now;
  } else if (!breached && state.breach_since.has_value()) {
    state.counts.breach_ns += static_cast<uint64_t>((now - *state.breach_since).count());
    state.breach_since.reset();
  }
}

// One that falls behind now and then is told once: over only when it has kept up for a while. Under mutex_, on the watcher's thread.
void Trailer::NoteLag(size_t replica, bool beyond) {
  Replica& state = replicas_[replica];
  if (beyond) {
    state.within_since.reset();
    if (!std::exchange(state.lag_told, true)) {
      carrier_.LagMoved(replica, true);
    }
  } else if (state.lag_told) {
    const Deadline::Duration now = Deadline::Now();
    state.within_since = state.within_since.value_or(now);
    if (now - *state.within_since >= kLagSettled) {
      state.lag_told = false;
      state.within_since.reset();
      carrier_.LagMoved(replica, false);
    }
  }
}

// --- shipping ---

nanoseconds Trailer::Interval(size_t replica) const {
  const nanoseconds time = options_.rpo[replica]->time;
  return time.count() == 0 ? kIntervalByAmount
                           : std::clamp(time / kBatchesPerRpo, kShortestInterval, kLongestInterval);
}

// It has all. Under mutex_.
bool Trailer::Nothing(size_t replica) const {
  return cutter_.clock().active_since[replica].load(std::memory_order_seq_cst) == 0 &&
         replicas_[replica].pending.empty();
}

void Trailer::Serve(size_t replica) {
  Replica& state = replicas_[replica];
  std::unique_lock lock(mutex_);
  uint64_t seen = urgent_;
  while (!stopping_) {
    if (state.phase != Phase::kTrailing || Nothing(replica)) {
      changed_.wait(lock,
                    [&] { return stopping_ || (state.phase == Phase::kTrailing && !Nothing(replica)); });
      continue;
    }
    changed_.wait_for(lock, Interval(replica),
                      [&] { return stopping_ || urgent_ != seen || state.phase != Phase::kTrailing; });
    seen = urgent_;
    if (stopping_ || state.phase != Phase::kTrailing) {
      continue;
    }
    lock.unlock();
    CutNow();
    lock.lock();
    if (state.phase == Phase::kTrailing) {
      ShipPending(lock, replica);
    }
  }
}

// Of a replica for which too much is kept: where to go on is what the owner chose, it is given up, to be compared when it is back. Under
// cutting_.
bool Trailer::HaveRoom(std::vector<size_t>& unfit) {
  bool room = true;
  const std::lock_guard lock(mutex_);
  for (size_t i = 0; i < options_.rpo.size(); ++i) {
    Replica& replica = replicas_[i];
    if (replica.phase == Phase::kOff || replica.pending.bytes() <= kMostPending) {
      continue;
    }
    if (options_.rpo[i]->on_lag == OnLag::kThrottle) {
      room = false;
    } else {
      SetPhase(i, Phase::kOff);
      unfit.push_back(i);
    }
  }
  return room;
}

// Under cutting_.
void Trailer::Distribute(const Cutter::Cut& cut, std::vector<size_t>& unfit) {
  const std::lock_guard lock(mutex_);
  for (size_t i = 0; i < options_.rpo.size(); ++i) {
    Replica& replica = replicas_[i];
    if (replica.phase == Phase::kOff) {
      continue;
    }
    if (cut.faulty) {
      SetPhase(i, Phase::kOff);
      unfit.push_back(i);
      continue;
    }
    replica.pending.Lay(cut.content);
    replica.point = cut.point;
  }
}

// For everybody: what is cut is out of the logs.
void Trailer::CutNow() {
  std::vector<size_t> unfit;
  {
    const std::lock_guard cutting(cutting_);
    if (HaveRoom(unfit)) {
      Distribute(cutter_.Make(at_rest_), unfit);
    }  // else the logs fill, and syncs wait
  }
  for (const size_t replica : unfit) {
    carrier_.TrailEnded(replica, BatchCarrier::Fate::kUnfit);
  }
}

// Under mutex_, which it leaves while the batch is on its way.
void Trailer::ShipPending(std::unique_lock<std::mutex>& lock, size_t replica) {
  Replica& state = replicas_[replica];
  const uint64_t turn = state.turn;
  const Cutter::Point point = state.point;
  const recovery::BatchBuilder pending = std::exchange(state.pending, {});
  if (pending.empty()) {
    return Acknowledged(replica, point, 0);
  }
  const uint64_t number = state.acked_batch + 1;
  lock.unlock();
  const std::vector<std::byte> batch =
      pending.Encode({.number = number, .mount_number = options_.mount_number, .cut_at = point.wall});
  while (true) {
    const BatchCarrier::Fate fate = carrier_.Ship(replica, number, batch, Deadline::After(options_.deadline));
    lock.lock();
    if (stopping_ || state.turn != turn) {
      return;
    }
    switch (fate) {
      case BatchCarrier::Fate::kApplied:
        state.acked_batch = number;
        ++state.counts.batches;
        return Acknowledged(replica, point, pending.bytes());
      case BatchCarrier::Fate::kLost:
      case BatchCarrier::Fate::kFull:
        changed_.wait_for(lock, fate == BatchCarrier::Fate::kLost ? kRetryPause : kFullPause,
                          [&] { return stopping_ || state.turn != turn; });
        if (stopping_ || state.turn != turn) {
          return;
        }
        break;
      case BatchCarrier::Fate::kUnfit:
      case BatchCarrier::Fate::kFenced:
        SetPhase(replica, Phase::kOff);
        lock.unlock();
        carrier_.TrailEnded(replica, fate);
        lock.lock();
        return;
    }
    lock.unlock();
  }
}

// Under mutex_. Either this sees a capture that has begun since the cut, or that capture sees the 0 (docs/internals/rpo.md). The 0 is only shown when
// there seems to be none: whoever waits takes it for "it has all".
void Trailer::Acknowledged(size_t replica, const Cutter::Point& point, uint64_t bytes) {
  Replica& state = replicas_[replica];
  CaptureClock& clock = cutter_.clock();
  state.acked = point;
  state.counts.batch_bytes += bytes;
  std::atomic<uint64_t>& active_since = clock.active_since[replica];
  const auto since = static_cast<uint64_t>(point.at.count());
  const auto has_all = [&] {
    return clock.next.load(std::memory_order_seq_cst) == point.number + 1 && state.pending.empty();
  };
  active_since.store(has_all() ? 0 : since, std::memory_order_seq_cst);
  const uint64_t all_bytes = clock.bytes;
  const uint64_t all_syncs = clock.syncs;
  if (has_all()) {  // what was counted between the look at the counters and the cut is in it
    state.acked.bytes = all_bytes;
    state.acked.syncs = all_syncs;
  } else {
    uint64_t idle = 0;
    active_since.compare_exchange_strong(idle, since);
  }
  AllowAfter(replica, state.acked);
  NoteBreach(state, Lags(replica, 1));
  changed_.notify_all();
}

void Trailer::AllowAfter(size_t replica, const Cutter::Point& point) {
  const Rpo& rpo = *options_.rpo[replica];
  page_.AllowCaptures(replica, rpo.bytes == 0 ? UINT64_MAX : point.bytes + rpo.bytes,
                      rpo.syncs == 0 ? UINT64_MAX : point.syncs + rpo.syncs);
}

absl::Status Trailer::Flush(Deadline deadline, Pace pace) {
  const uint64_t target = cutter_.clock().next.load(std::memory_order_seq_cst);
  std::unique_lock lock(mutex_);
  const auto shipped = [&] {
    for (size_t i = 0; i < options_.rpo.size(); ++i) {
      const Replica& state = replicas_[i];
      const bool has = state.phase == Phase::kOff ||
                       (state.phase == Phase::kTrailing && (Nothing(i) || state.acked.number >= target));
      if (!has) {
        return false;
      }
    }
    return true;
  };
  while (!shipped()) {
    if (deadline.Expired() || stopping_) {
      return absl::DeadlineExceededError(
          "what was captured could not be brought to every replica that trails");
    }
    if (pace == Pace::kNow) {
      ++urgent_;
      changed_.notify_all();
    }
    changed_.wait_until(lock, std::min(TimeOf(deadline), std::chrono::steady_clock::now() + kRetryPause));
  }
  return absl::OkStatus();
}

Trailer::Status Trailer::status(size_t replica) const {
  const std::lock_guard lock(mutex_);
  const Replica& state = replicas_[replica];
  const CaptureClock& clock = cutter_.clock();
  Status status = state.counts;
  status.trails = state.phase == Phase::kTrailing;
  status.captured_bytes = clock.bytes;
  if (state.breach_since.has_value()) {
    status.breach_ns += static_cast<uint64_t>((Deadline::Now() - *state.breach_since).count());
  }
  if (status.trails) {
    const uint64_t since = clock.active_since[replica];
    status.breached = Lags(replica, 1);
    status.lag_ns = since == 0 ? 0 : static_cast<uint64_t>(Deadline::Now().count()) - since;
    status.lag_bytes = since == 0 ? 0 : clock.bytes - state.acked.bytes;
    status.lag_syncs = since == 0 ? 0 : clock.syncs - state.acked.syncs;
    status.point_age_ns = since == 0 ? 0 : WallNow() - state.acked.wall;
  }
  return status;
}

}  // namespace pmirror::fs
