// SPDX-License-Identifier: BSD-3-Clause
// How a link's thread has its replica brought back. See replica_link.h.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <mutex>
#include <stop_token>
#include <thread>
#include <utility>

#include "fs/remote_copy.h"
#include "fs/replica_link.h"

namespace pmirror::fs {
namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;

constexpr milliseconds kLeastConnect{2000};  // for a replica that has just answered

// Only ESTALE is a state that somebody has to change; what broke is tried again (FailedAttempt).
absl::Status Failure(int error, std::string text) {
  switch (error) {
    case ESTALE:
      return absl::FailedPreconditionError(text);
    case ENOSPC:
      return absl::ResourceExhaustedError(text);
    case ESHUTDOWN:
      return absl::AbortedError(text);
    default:
      return absl::UnavailableError(text);
  }
}

}  // namespace

absl::Status ReplicaLink::ConnectAnew() {
  session_->Disconnect();
  const Error error =
      session_->EnsureConnected(Deadline::After(std::max<nanoseconds>(options_.deadline, kLeastConnect)));
  return error.ok() ? DeliverAll()
                    : Failure(error.code, fmt::format("{}: {}", options_.replica_node, error.doing));
}

absl::Status ReplicaLink::DeliverAll() {
  const int error = courier_->Deliver(
      log_.last(), Deadline::After(std::max<nanoseconds>(options_.deadline, kLeastConnect)));
  return error == 0 ? absl::OkStatus()
                    : Failure(error, fmt::format("{} did not take the operations of this mount",
                                                 options_.replica_node));
}

bool ReplicaLink::GivenUp() const {
  const std::lock_guard lock(mutex_);
  return stopping_ || !reachable_;
}

bool ReplicaLink::filling() const {
  const std::lock_guard lock(mutex_);
  return filling_;
}

class ReplicaLink::Peer final : public RemoteCopy {
 public:
  explicit Peer(ReplicaLink& link)
      : RemoteCopy(link.control_, {.volume = link.options_.volume,
                                   .primary_node = link.options_.primary_node,
                                   .epoch = link.options_.epoch,
                                   .mount_number = link.options_.mount_number,
                                   .generation = link.options_.history.generation}),
        link_(link) {}
  std::optional<uint64_t> TreeAsOf() override {
    const std::lock_guard lock(link_.mutex_);
    return link_.tree_as_of_;
  }
  std::optional<uint64_t> FollowedMount() override {
    const std::lock_guard lock(link_.mutex_);
    return link_.followed_mount_;
  }
  absl::Status AdoptMount(uint64_t operation) override {
    absl::Status status = RemoteCopy::AdoptMount(operation);
    const std::lock_guard lock(link_.mutex_);
    link_.is_member_ = link_.is_member_ || status.ok();
    return status;
  }
  absl::Status Connect() override {
    absl::Status status = link_.ConnectAnew();
    if (status.ok() && !watch_.joinable()) {
      watch_ = std::jthread([this](const std::stop_token& stop) { Watch(stop); });
    }
    return status;
  }
  bool Alive() override { return alive_; }
  absl::Status DeliverAll() override { return link_.DeliverAll(); }
  bool GivenUp() override { return link_.GivenUp(); }

 private:
  // Beside the steps, of which each may wait long for an answer of the control service, and syncs for the replica.
  void Watch(const std::stop_token& stop) {
    // Syncs wait for it as for any joiner. One that has never been whole is to fail none of them: its silence is noticed well before their patience
    // ends.
    const nanoseconds patience = link_.filling() ? link_.options_.deadline / 4 : link_.options_.deadline;
    std::unique_lock lock(watch_mutex_);
    while (!stop.stop_requested()) {
      watch_wake_.wait_for(lock, stop, patience / kGreetingsPerDeadline, [] { return false; });
      if (!stop.stop_requested() && link_.Exchange(FrameKind::kHeartbeat, FileId::kNone, 0,
                                                   WaitLevel::kReceived, Deadline::After(patience)) != 0) {
        alive_ = false;
        link_.owner_->Unfit(link_.options_.index);
        while (!stop.stop_requested()) {
          link_.control_.Cancel();
          watch_wake_.wait_for(lock, stop, kCancelPause, [] { return false; });
        }
      }
    }
  }

  ReplicaLink& link_;
  std::atomic<bool> alive_{true};
  std::mutex watch_mutex_;  // of the condition only
  std::condition_variable_any watch_wake_;
  std::jthread watch_;  // last: it uses the others
};

ReplicaLink::Attempt ReplicaLink::BringBack() {
  const absl::StatusOr<control::ReplicaState> replica = AskCopy(Deadline::After(options_.deadline));
  if (!replica.ok()) {
    SetState(State::kDisconnected,
             fmt::format("no answer from {}: it is brought back when it answers", options_.replica_node));
    return Attempt::kNoAnswer;
  }
  uint64_t demands = 0;
  {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [&] { return demanding_ == 0; });  // until it is out of the set
    demands = demands_;
    const Verdict verdict = Evaluate(*replica);
    if (verdict.unusable) {
      stale_ = true;
      SetStateLocked(State::kStale, verdict.reason);
      lock.unlock();
      if (verdict.superseded) {
        owner_->Superseded(options_.index, verdict.reason);
      }
      return Attempt::kForAPerson;
    }
    stale_ = false;
    tree_as_of_.reset();
    followed_mount_.reset();
    if (replica->generation() == options_.history.generation && !whole_resync_) {
      followed_mount_ = replica->mount_number();
    }
    if (verdict.decision == CopyDecision::kReplay && !whole_resync_) {
      tree_as_of_ = replica->operation();
    }
    resyncing_ = true;
  }
  SetState(State::kResyncing, "");
  absl::Status status;
  {
    Peer peer(*this);
    status = owner_->Resync(options_.index, peer);
  }  // its watch has ended: whom it found silent, it has taken out of the set
  const bool given_up = GivenUp();
  {
    const std::lock_guard lock(mutex_);
    resyncing_ = false;
    if (!status.ok()) {
      return FailedAttempt(status, given_up);
    }
    if (demands_ == demands && owner_->Wanted(options_.index)) {
      resync_due_ = false;
      whole_resync_ = false;
      filling_ = false;
      refusal_ = 0;
      return Attempt::kCounts;
    }
  }
  // It was made a member although another resync had been demanded meanwhile, or has been found silent since: out again, and once more.
  owner_->Unfit(options_.index);
  return Attempt::kFailed;
}

// Under mutex_.
ReplicaLink::Attempt ReplicaLink::FailedAttempt(const absl::Status& status, bool given_up) {
  if (refusal_ != 0) {
    SetStateLocked(State::kFailed, RefusedReason(std::exchange(refusal_, 0)));
    return Attempt::kForAPerson;
  }
  if (given_up) {
    return Attempt::kNoAnswer;
  }
  const bool passes =
      absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) || absl::IsAborted(status);
  const bool person = absl::IsFailedPrecondition(status);
  SetStateLocked(passes   ? State::kDisconnected
                 : person ? State::kStale
                          : State::kFailed,
                 fmt::format("the resync did not end: {}", std::string(status.message())));
  return person ? Attempt::kForAPerson : Attempt::kFailed;
}

}  // namespace pmirror::fs
