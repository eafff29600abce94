// SPDX-License-Identifier: BSD-3-Clause
// See replica_link.h.
#include "fs/replica_link.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "fs/uuid_bytes.h"

namespace pmirror::fs {
namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;

constexpr milliseconds kRetryPause{100};  // between attempts to reach a replica that is away
constexpr milliseconds kLongestRetryPause{3000};
constexpr milliseconds kLongestPersonPause{10000};  // of a cause that a person has to remove

}  // namespace

const char* Name(ReplicaLink::State state) {
  switch (state) {
    case ReplicaLink::State::kConnecting:
    case ReplicaLink::State::kDisconnected:
      return "disconnected";
    case ReplicaLink::State::kInSync:
      return "in-sync";
    case ReplicaLink::State::kResyncing:
      return "resyncing";
    case ReplicaLink::State::kStale:
      return "stale";
    case ReplicaLink::State::kFailed:
      return "failed";
  }
  return "failed";
}

ReplicaLink::ReplicaLink(Options options, const OperationLog& log, EventSink& events)
    : options_(std::move(options)), log_(log), events_(events), control_(options_.control) {
  Result<std::unique_ptr<DataSession>> session = DataSession::Create(*this);
  session_ = std::move(session).value();  // the daemon has memory, or ends
  courier_ = std::make_unique<OperationCourier>(log_, *session_, options_.epoch);
  if (options_.filling) {
    filling_ = true;
    resync_due_ = true;
    whole_resync_ = true;
    demands_ = 1;
    status_ = {.state = State::kResyncing, .reason = "it is new", .counters = {}, .placement = {}};
  }
}

ReplicaLink::~ReplicaLink() { Stop(); }

void ReplicaLink::Start(LinkOwner& owner) {
  owner_ = &owner;
  thread_ = std::thread([this] { Maintain(); });
}

void ReplicaLink::Stop() {
  {
    std::unique_lock lock(mutex_);
    stopping_ = true;
    wake_.notify_all();
    while (thread_.joinable() && !ended_) {  // a call of a resync may take minutes, and another follow
      control_.Cancel();
      wake_.wait_for(lock, kCancelPause, [&] { return ended_; });
    }
  }
  if (thread_.joinable()) {
    thread_.join();
  }
  session_->Disconnect();
}

// Between the two calls the caller takes the replica out of the set, without the lock. No resync begins before that is done, and one that runs
// meanwhile does not make the replica count (BringBack). Under mutex_.
void ReplicaLink::BeginDemand(State state, std::string reason) {
  resync_due_ = true;
  ++demands_;
  ++demanding_;
  SetStateLocked(state, std::move(reason));
}

void ReplicaLink::EndDemand() {
  {
    const std::lock_guard lock(mutex_);
    --demanding_;
  }
  wake_.notify_all();
}

void ReplicaLink::DemandResync() {
  {
    const std::lock_guard lock(mutex_);
    whole_resync_ = true;
    hurry_ = true;
    BeginDemand(State::kResyncing, "asked for");
  }
  owner_->Unfit(options_.index);
  EndDemand();
}

void ReplicaLink::Refused(int error) {
  {
    const std::lock_guard lock(mutex_);
    refusal_ = error;
    BeginDemand(State::kFailed, RefusedReason(error));
  }
  owner_->Lost(options_.index);
  EndDemand();
}

std::string ReplicaLink::RefusedReason(int error) const {
  return fmt::format("{} refused data: {}; cure that there, it is brought back by itself",
                     options_.replica_node, std::strerror(error));
}

void ReplicaLink::Hurry() {
  {
    const std::lock_guard lock(mutex_);
    hurry_ = true;
    if (resync_due_) {
      SetStateLocked(State::kResyncing, "asked for");  // why the last attempt failed is no answer to this one
    }
  }
  wake_.notify_all();
}

ReplicaLink::Status ReplicaLink::status() const {
  Status status;
  {
    const std::lock_guard lock(mutex_);
    status = status_;
  }
  status.counters = session_->counters();
  status.placement = session_->placement();
  return status;
}

bool ReplicaLink::reachable() const {
  const std::lock_guard lock(mutex_);
  return reachable_;
}

void ReplicaLink::SetReachable(bool reachable) {
  {
    const std::lock_guard lock(mutex_);
    reachable_ = reachable;
  }
  wake_.notify_all();
  if (!reachable) {
    session_->Disconnect();
  }
}

void ReplicaLink::SetState(State state, std::string reason) {
  const std::lock_guard lock(mutex_);
  SetStateLocked(state, std::move(reason));
}

void ReplicaLink::SetStateLocked(State state, std::string reason) {
  if (status_.state == state && status_.reason == reason) {
    return;
  }
  status_.state = state;
  status_.reason = reason;
  events_.Report(state == State::kInSync ? Severity::kInfo : Severity::kWarning, "replica_state",
                 {{"volume", options_.volume_name},
                  {"node", options_.replica_node},
                  {"state", Name(state)},
                  {"reason", std::move(reason)}});
}

// --- the thread ---

void ReplicaLink::Maintain() {
  const nanoseconds pause = options_.deadline / kGreetingsPerDeadline;
  Deadline patience = Deadline::After(options_.deadline);
  bool in_sync = false;
  nanoseconds next_try = kRetryPause;  // grows while the copy cannot be brought back
  while (true) {
    bool well = false;
    if (resync_due()) {
      in_sync = false;
      const Attempt attempt = BringBack();
      const nanoseconds longest = attempt == Attempt::kNoAnswer ? std::max<nanoseconds>(pause, kRetryPause)
                                  : attempt == Attempt::kFailed ? kLongestRetryPause
                                                                : kLongestPersonPause;
      next_try = attempt == Attempt::kCounts ? kRetryPause : std::min<nanoseconds>(2 * next_try, longest);
      patience = Deadline::After(options_.deadline);
    } else {
      next_try = std::min<nanoseconds>(pause, kRetryPause);
      well = Greet(in_sync ? patience : Deadline::After(options_.deadline));
      if (well && !CountInSync()) {
        in_sync = false;
      } else if (well) {
        patience = Deadline::After(options_.deadline);
        if (!std::exchange(in_sync, true)) {
          owner_->Recovered(options_.index);
          patience = Deadline::After(options_.deadline);  // that may have taken long
        }
      } else {
        const bool absorbed =
            NoteSilence(patience);  // also of one that was never in sync: syncs wait for it all the same
        in_sync = in_sync && absorbed;
      }
    }
    std::unique_lock lock(mutex_);
    wake_.wait_for(lock, well ? pause : next_try,
                   [&] { return stopping_ || hurry_ || (well && resync_due_); });
    hurry_ = false;
    if (stopping_) {
      ended_ = true;
      wake_.notify_all();
      return;
    }
  }
}

bool ReplicaLink::resync_due() const {
  const std::lock_guard lock(mutex_);
  return resync_due_;
}

// The greeting was answered. False when something else has been found out meanwhile.
bool ReplicaLink::CountInSync() {
  const std::lock_guard lock(mutex_);
  if (resync_due_) {
    return false;
  }
  SetStateLocked(State::kInSync, "");
  return true;
}

// A greeting went unanswered, or cannot be answered as it should. False when that has lasted too long.
bool ReplicaLink::NoteSilence(Deadline patience) {
  if (const int refusal = courier_->refusal(); refusal != 0) {
    SetState(State::kFailed,
             fmt::format("{} refused operation {}: {}; cure that there, it is repeated by itself",
                         options_.replica_node, courier_->applied() + 1, std::strerror(refusal)));
  } else if (!patience.Expired()) {
    return true;
  } else {
    session_->Disconnect();  // half open: whoever waits learns it now
    std::unique_lock lock(mutex_);
    if (resync_due_ || stale_) {
      return false;  // it was found out why
    }
    lock.unlock();
    SetState(State::kDisconnected,
             fmt::format("no answer from {} for {} ms", options_.replica_node,
                         std::chrono::duration_cast<milliseconds>(options_.deadline).count()));
  }
  if (patience.Expired() && owner_->Lost(options_.index)) {
    const std::lock_guard lock(mutex_);
    resync_due_ = true;
    ++demands_;
  }
  return false;
}

bool ReplicaLink::Greet(Deadline deadline) {
  return session_->EnsureConnected(deadline).ok() &&
         Exchange(FrameKind::kHeartbeat, FileId::kNone, 0, WaitLevel::kReceived, deadline) == 0 &&
         (owner_->Trails(options_.index) || courier_->Deliver(log_.last(), deadline) == 0);
}

// --- frames ---

int ReplicaLink::Exchange(FrameKind kind, FileId file, uint64_t order, WaitLevel level, Deadline deadline) {
  while (true) {
    if (const Error error = session_->EnsureConnected(deadline); !error.ok() && deadline.Expired()) {
      return EIO;
    }
    CaptureInFlight capture;
    session_->Begin(capture);
    FrameToSend frame;
    frame.kind = kind;
    frame.flags = kFlagAckWanted;
    frame.epoch = options_.epoch;
    frame.file = file;
    frame.order = order;
    frame.capture = &capture;
    Receipt receipt;
    SendStatus status = session_->Send(frame, deadline, receipt);
    if (status == SendStatus::kOk) {
      status = session_->Await(receipt, level, &capture, deadline);
    }
    session_->End(capture);
    if (status == SendStatus::kOk) {
      return 0;
    }
    if (status == SendStatus::kRefused) {
      return EACCES;
    }
    if (deadline.Expired()) {
      return EIO;
    }
    std::unique_lock lock(mutex_);
    wake_.wait_for(lock, milliseconds{5}, [&] { return stopping_; });
    if (stopping_) {
      return EIO;
    }
  }
}

absl::Status ReplicaLink::Leave(uint64_t last, milliseconds timeout) {
  control::LeaveRequest request;
  request.set_volume(UuidBytes(options_.volume));
  request.set_epoch(Raw(options_.epoch));
  request.set_operation(last);
  request.set_generation(options_.history.generation);
  request.set_mount_number(options_.mount_number);
  return control_.Leave(request, timeout).status();
}

}  // namespace pmirror::fs
