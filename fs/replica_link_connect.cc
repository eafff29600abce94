// SPDX-License-Identifier: BSD-3-Clause
// A link's connections: what its replica's copy is, and whether we may send to it. See replica_link.h.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "fs/replica_link.h"
#include "fs/uuid_bytes.h"
#include "replication/open_connection.h"
#include "replication/tcp_transport.h"

namespace pmirror::fs {
namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;

constexpr milliseconds kLeastPathTimeout{50};

milliseconds Milliseconds(nanoseconds duration) {
  return std::max(milliseconds{1}, std::chrono::duration_cast<milliseconds>(duration));
}

CopyHistory HistoryOf(const control::ReplicaState& replica) {
  return {.generation = replica.generation(),
          .mount_number = replica.mount_number(),
          .operation = replica.operation(),
          .clean = replica.clean(),
          .empty = replica.empty(),
          .mixed = replica.resyncing() || replica.restarted()};
}

}  // namespace

absl::StatusOr<control::ReplicaState> ReplicaLink::AskCopy(Deadline deadline) {
  if (!reachable()) {
    return absl::UnavailableError("cut off by the test bed");
  }
  control::CopyStateRequest request;
  request.set_volume(UuidBytes(options_.volume));
  request.set_node(options_.primary_node);
  return control_.CopyState(request, Milliseconds(deadline.Remaining()));
}

// What is to be done with a copy of that state. Under mutex_.
ReplicaLink::Verdict ReplicaLink::Evaluate(const control::ReplicaState& replica) const {
  Verdict verdict;
  verdict.superseded =
      replica.epoch() > Raw(options_.epoch) || replica.mount_number() > options_.mount_number;
  const RunningMount running{.mount_number = options_.mount_number,
                             .first_held = log_.first(),
                             .last = log_.last(),
                             .replica_took_part = took_part_,
                             .replica_is_member = is_member_};
  verdict.decision = Decide(options_.history, running, HistoryOf(replica));
  verdict.reason = Explain(verdict.decision);
  verdict.unusable = verdict.decision == CopyDecision::kForeign;
  if (verdict.superseded) {
    verdict.unusable = true;
    verdict.reason = fmt::format("{} follows epoch {} mount {}; this is epoch {} mount {}: stop this daemon",
                                 options_.replica_node, replica.epoch(), replica.mount_number(),
                                 Raw(options_.epoch), options_.mount_number);
  } else if (!replica.refusal().empty()) {
    verdict.unusable = true;
    verdict.reason = replica.refusal();
  }
  return verdict;
}

// Whether we may send to the replica now.
Error ReplicaLink::Judge(Deadline deadline) {
  const absl::StatusOr<control::ReplicaState> replica = AskCopy(deadline);
  if (!replica.ok()) {
    if (!absl::IsUnavailable(replica.status()) && !absl::IsDeadlineExceeded(replica.status())) {
      SetState(State::kStale, std::string(replica.status().message()));
    }
    return {ENOTCONN, "ask the replica what its copy is"};
  }
  bool unfit = false;
  {
    const std::lock_guard lock(mutex_);
    const Verdict verdict = Evaluate(*replica);
    stale_ = verdict.unusable;
    if (verdict.superseded) {
      SetStateLocked(State::kStale, verdict.reason);
      return {ESTALE, "connect to the replica: it follows a newer primary"};
    }
    if (resyncing_) {
      // Only a copy that this resync has brought so far.
      const bool ours = !verdict.unusable && replica->resyncing() &&
                        replica->mount_number() == options_.mount_number &&
                        replica->generation() == options_.history.generation &&
                        replica->operation() + 1 >= log_.first() && replica->operation() <= log_.last();
      return ours ? Error::Ok() : Error{ESHUTDOWN, "connect to the replica: its resync has to begin anew"};
    }
    const bool agrees = owner_->Agrees(options_.index, replica->trailing(), replica->batch());
    const bool good =
        !verdict.unusable && agrees &&
        (verdict.decision == CopyDecision::kNew || verdict.decision == CopyDecision::kContinue ||
         verdict.decision == CopyDecision::kReplay);
    if (good && !resync_due_) {
      took_part_ = true;
      return Error::Ok();
    }
    unfit = !resync_due_;
    if (unfit) {
      BeginDemand(verdict.unusable ? State::kStale : State::kResyncing, verdict.reason);
    }
  }
  if (unfit) {
    owner_->Unfit(options_.index);
    EndDemand();
  }
  return {ESHUTDOWN, "connect to the replica: its copy has to be brought to ours first"};
}

Result<Connector::Connection> ReplicaLink::Connect(SessionId session, Sequence next_sequence,
                                                   Deadline deadline) {
  if (!reachable()) {
    return Error{EHOSTUNREACH, "connect to the replica: cut off by the test bed"};
  }
  bool resyncing = false;
  {
    const std::lock_guard lock(mutex_);
    resyncing = resyncing_;
  }
  PMIRROR_RETURN_IF_ERROR(Judge(deadline));
  Result<Connection> connection = Open(/*daemon=*/true, "pmirrord", session, next_sequence, deadline);
  if (connection.ok()) {
    {
      // What was judged may be so no more: then this connection is of the time before.
      const std::lock_guard lock(mutex_);
      if (resyncing_ != resyncing || (resync_due_ && !resyncing_)) {
        return Error{ESHUTDOWN, "connect to the replica: its copy has to be brought to ours first"};
      }
    }
    courier_->Resumed(connection.value().resumed.operation_received);
  }
  return connection;
}

Result<Connector::Connection> ReplicaLink::ConnectProcess(const std::string& process, SessionId session,
                                                          Sequence next_sequence, Deadline deadline) {
  if (!reachable()) {
    return Error{EHOSTUNREACH, "connect to the replica: cut off by the test bed"};
  }
  if (!owner_->Wanted(options_.index)) {
    return Error{ENOTCONN, "connect to the replica: it is not in sync"};
  }
  return Open(/*daemon=*/false, process, session, next_sequence, deadline);
}

// Permission from the control service, then a socket by the first path that works.
Result<Connector::Connection> ReplicaLink::Open(bool daemon, const std::string& process, SessionId session,
                                                Sequence next_sequence, Deadline deadline) {
  control::OpenSessionRequest request;
  request.set_volume(UuidBytes(options_.volume));
  request.set_node(options_.primary_node);
  request.set_epoch(Raw(options_.epoch));
  request.set_daemon(daemon);
  request.set_session(Raw(session));
  request.set_process(process);
  request.set_generation(options_.history.generation);
  request.set_mount_number(options_.mount_number);
  const absl::StatusOr<control::OpenSessionReply> reply =
      control_.OpenSession(request, Milliseconds(deadline.Remaining()));
  if (!reply.ok()) {
    const bool lost = absl::IsUnavailable(reply.status()) || absl::IsDeadlineExceeded(reply.status());
    // A loss is told by the state, when it lasts.
    events_.Report(lost ? Severity::kDebug : Severity::kWarning, "session_not_opened",
                   {{"volume", options_.volume_name},
                    {"node", options_.replica_node},
                    {"process", process},
                    {"reason", std::string(reply.status().message())}});
    return Error{absl::IsFailedPrecondition(reply.status()) ? ESHUTDOWN : ENOTCONN,
                 "open a session to the replica"};
  }
  if (daemon) {
    const std::lock_guard lock(mutex_);
    is_member_ = true;
  }
  std::array<std::byte, 16> ticket{};
  if (reply->ticket().size() != ticket.size() || reply->data_addresses().empty()) {
    return Error{EPROTO, "open a session: the replica's answer lacks a ticket or an address"};
  }
  std::memcpy(ticket.data(), reply->ticket().data(), ticket.size());
  const HelloTerms terms{.volume = options_.volume,
                         .kind = daemon ? SessionKind::kDaemon : SessionKind::kProcess,
                         .ticket = ticket,
                         .epoch = options_.epoch,
                         .session = SessionId{reply->session()},
                         .next_sequence = next_sequence};
  const milliseconds path_timeout =
      std::clamp(Milliseconds(options_.deadline / 2), kLeastPathTimeout, kDefaultPathTimeout);
  const auto count = static_cast<size_t>(reply->data_addresses().size());
  const size_t first = path_.load(std::memory_order_relaxed);
  Error error{EHOSTUNREACH, "connect to the replica"};
  for (size_t i = 0; i < count; ++i) {
    const size_t index = (first + i) % count;
    // A path that neither refuses nor answers may not use up the time of those that follow.
    const Deadline share = Deadline::After(deadline.Remaining() / static_cast<int>(count - i));
    Result<UniqueFd> socket = ConnectTcp(reply->data_addresses(static_cast<int>(index)), share, path_timeout);
    if (!socket.ok()) {
      error = socket.error();
      continue;
    }
    // The ticket is good for one hello: what comes of it is the answer.
    Result<Connection> connection = ExchangeHello(std::move(socket).value(), terms, deadline);
    if (connection.ok()) {
      path_.store(index, std::memory_order_relaxed);
      return connection;
    }
    path_.store((index + 1) % count, std::memory_order_relaxed);
    return connection.error();
  }
  return error;
}

}  // namespace pmirror::fs
