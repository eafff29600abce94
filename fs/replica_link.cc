// SPDX-License-Identifier: BSD-3-Clause
// See replica_link.h.
#include "fs/replica_link.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "replication/open_connection.h"
#include "replication/tcp_transport.h"

namespace pmirror::fs {
namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;

constexpr milliseconds kFirstPause{10};    // between attempts to connect; doubles up to
constexpr milliseconds kLongestPause{500};
constexpr milliseconds kOneCall{2000};     // of the control protocol
constexpr int kGreetingsPerDeadline = 4;   // a silent peer is noticed within a deadline and a quarter

milliseconds AtLeastOneMillisecond(nanoseconds duration) {
  return std::max(milliseconds{1}, std::chrono::duration_cast<milliseconds>(duration));
}

CopyHistory HistoryOf(const control::ReplicaState& replica) {
  return {.generation = replica.generation(),
          .mount_number = replica.mount_number(),
          .operation = replica.operation(),
          .clean = replica.clean(),
          .empty = replica.empty()};
}

// What cannot be cured by trying again.
int ErrorOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kDataLoss:
      return ESHUTDOWN;
    default:
      return EAGAIN;
  }
}

}  // namespace

const char* Name(ReplicaLink::State state) {
  switch (state) {
    case ReplicaLink::State::kConnecting:
    case ReplicaLink::State::kDisconnected:
      return "disconnected";
    case ReplicaLink::State::kInSync:
      return "in-sync";
    case ReplicaLink::State::kStale:
      return "stale";
  }
  return "failed";
}

ReplicaLink::ReplicaLink(Options options, const OperationLog& log, EventSink& events)
    : options_(std::move(options)), log_(log), events_(events), control_(options_.control) {
  Result<std::unique_ptr<DataSession>> session = DataSession::Create(*this);
  session_ = std::move(session).value();
}

ReplicaLink::~ReplicaLink() { Stop(); }

void ReplicaLink::Start(std::function<void()> reconnected) {
  reconnected_ = std::move(reconnected);
  thread_ = std::thread([this] { Maintain(); });
}

void ReplicaLink::Stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) {
    thread_.join();
  }
  session_->Disconnect();
}

ReplicaLink::Status ReplicaLink::status() const {
  Status status;
  {
    std::lock_guard lock(mutex_);
    status = status_;
  }
  status.counters = session_->counters();
  status.operation_durable = session_->OperationDurable();
  return status;
}

void ReplicaLink::SetReachable(bool reachable) {
  {
    std::lock_guard lock(mutex_);
    reachable_ = reachable;
  }
  wake_.notify_all();
  if (!reachable) {
    session_->Disconnect();
  }
}

void ReplicaLink::SetState(State state, std::string reason) {
  {
    std::lock_guard lock(mutex_);
    if (status_.state == state && status_.reason == reason) {
      return;
    }
    status_.state = state;
    status_.reason = reason;
    took_part_ = took_part_ || state == State::kInSync;
  }
  events_.Report(state == State::kInSync ? Severity::kInfo : Severity::kWarning, "replica_state",
                 {{"volume", options_.volume_name},
                  {"node", options_.replica_node},
                  {"state", Name(state)},
                  {"reason", std::move(reason)}});
}

// Connects when there is no connection, replays, greets, and says what came of it.
void ReplicaLink::Maintain() {
  const nanoseconds pause = options_.deadline / kGreetingsPerDeadline;
  Deadline patience = Deadline::After(options_.deadline);
  bool in_sync = false;
  while (true) {
    const uint64_t incarnation = session_->Incarnation();
    const bool well = Greet();
    if (well) {
      patience = Deadline::After(options_.deadline);
      if (!in_sync || session_->Incarnation() != incarnation) {
        reconnected_();
      }
      in_sync = true;
      SetState(State::kInSync, "");
    } else if (patience.Expired()) {
      in_sync = false;
      session_->Disconnect();  // half open: whoever waits learns it now
      if (status().state != State::kStale) {
        SetState(State::kDisconnected, fmt::format("no answer from {} for {} ms", options_.replica_node,
                                                   AtLeastOneMillisecond(options_.deadline).count()));
      }
    }
    std::unique_lock lock(mutex_);
    wake_.wait_for(lock, well ? pause : std::min<nanoseconds>(pause, kLongestPause), [&] { return stopping_; });
    if (stopping_) {
      return;
    }
  }
}

bool ReplicaLink::Greet() {
  const Deadline deadline = Deadline::After(options_.deadline);
  return session_->EnsureConnected(deadline).ok() && Bring(log_.last(), deadline) == 0 &&
         Exchange(FrameKind::kHeartbeat, FileId::kNone, 0, WaitLevel::kReceived, deadline) == 0;
}

// Requires: send_mutex_ is held. The last operation's receipt stands for all: received is cumulative.
SendStatus ReplicaLink::SendThrough(uint64_t number, Deadline deadline, Receipt& receipt, CaptureInFlight& capture) {
  SendStatus status = SendStatus::kOk;
  for (uint64_t next = sent_.load() + 1; next <= number && status == SendStatus::kOk; ++next) {
    if (next < log_.first()) {
      continue;  // every replica has it durably
    }
    const OperationLog::Bytes bytes = log_.Get(next);
    FrameToSend frame;
    frame.kind = FrameKind::kNamespaceOp;
    frame.flags = next == number ? kFlagAckWanted : 0;
    frame.epoch = options_.epoch;
    frame.order = next;
    frame.payload = *bytes;
    frame.capture = next == number ? &capture : nullptr;
    status = session_->Send(frame, deadline, receipt);
    if (status == SendStatus::kOk) {
      sent_ = next;
    }
  }
  return status;
}

int ReplicaLink::Bring(uint64_t number, Deadline deadline) {
  while (true) {
    if (const Error error = session_->EnsureConnected(deadline); !error.ok()) {
      return error.code == ESTALE ? ESTALE : EIO;
    }
    CaptureInFlight capture;
    capture.order = number;
    session_->Begin(capture);
    Receipt receipt;
    SendStatus status = SendStatus::kTimedOut;
    bool had_it = false;
    if (std::unique_lock lock(send_mutex_, std::chrono::nanoseconds(deadline.Remaining())); lock.owns_lock()) {
      had_it = sent_.load() >= number;
      status = had_it ? SendStatus::kOk : SendThrough(number, deadline, receipt, capture);
    }
    if (status == SendStatus::kOk && !had_it) {
      status = session_->Await(receipt, WaitLevel::kReceived, &capture, deadline);
    }
    session_->End(capture);
    if (had_it) {
      // Somebody else sent it: anything sent now comes behind it.
      return Exchange(FrameKind::kHeartbeat, FileId::kNone, 0, WaitLevel::kReceived, deadline);
    }
    if (status == SendStatus::kOk) {
      return 0;
    }
    if (status == SendStatus::kRefused) {
      const std::lock_guard lock(send_mutex_);
      sent_ = std::min(sent_.load(), number - 1);
    }
    if (deadline.Expired()) {
      const bool full = status == SendStatus::kRefused && RefusalCode{capture.refusal.code} == RefusalCode::kNoSpace;
      return full ? ENOSPC : EIO;
    }
  }
}
