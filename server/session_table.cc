// SPDX-License-Identifier: BSD-3-Clause
// Sessions and tickets of a volume. See session_table.h.
#include "server/session_table.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "recovery/random_value.h"

namespace pmirror::server {
namespace {

constexpr int kMaxChecksumFaults = 3;  // in a row: the path is retired

// Does not tell by its duration how much of a guess was right.
bool SameSecret(const Ticket16& a, const Ticket16& b) {
  std::byte difference{};
  for (size_t i = 0; i < a.size(); ++i) {
    difference |= a[i] ^ b[i];
  }
  return difference == std::byte{};
}

}  // namespace

absl::StatusOr<SessionTable::Permit> SessionTable::Open(Session::Identity identity) {
  const std::lock_guard lock(mutex_);
  DropStale();
  while (identity.id == SessionId{}) {
    const SessionId id{recovery::RandomValue<uint64_t>()};
    identity.id = slots_.contains(Raw(id)) ? SessionId{} : id;
  }
  auto at = slots_.find(Raw(identity.id));
  if (at == slots_.end()) {
    if (slots_.size() >= kMaxSessions) {
      return absl::ResourceExhaustedError(
          absl::StrCat("this replica has ", kMaxSessions, " sessions of the volume already"));
    }
    at = slots_.emplace(Raw(identity.id), Slot{}).first;
    at->second.session = std::make_shared<Session>(std::move(identity), limits_.credit_window);
  } else {
    const Session& session = *at->second.session;
    if (session.ended() || session.identity.kind != identity.kind ||
        session.identity.epoch != identity.epoch || session.identity.node != identity.node) {
      return absl::FailedPreconditionError(absl::StrCat(
          "session ", Raw(session.identity.id), " was opened by node ", session.identity.node, " in epoch ",
          Raw(session.identity.epoch), " and cannot be resumed as another; open a new one"));
    }
    if (session.checksum_faults >= kMaxChecksumFaults) {
      return absl::FailedPreconditionError(absl::StrCat(
          "session ", Raw(session.identity.id), ": ", kMaxChecksumFaults,
          " connections in a row delivered damaged frames; check the network path and open a new session"));
    }
  }
  Slot& slot = at->second;
  slot.ticket = recovery::RandomValue<Ticket16>();
  slot.ticket_expires = Deadline::Now() + limits_.ticket_life;
  return Permit{SessionId{at->first}, slot.ticket};
}

absl::StatusOr<std::shared_ptr<Session>> SessionTable::Redeem(const Ticket16& ticket, SessionKind kind) {
  const std::lock_guard lock(mutex_);
  for (auto& [id, slot] : slots_) {
    if (slot.ticket_expires == Deadline::Duration::zero() || !SameSecret(slot.ticket, ticket)) {
      continue;
    }
    const bool expired = std::exchange(slot.ticket_expires, Deadline::Duration::zero()) < Deadline::Now();
    if (expired || slot.session->ended() || slot.session->identity.kind != kind) {
      break;
    }
    return slot.session;
  }
  return absl::PermissionDeniedError("the ticket is unknown, used or expired; ask for a new one");
}

std::shared_ptr<Session> SessionTable::Find(SessionId id) const {
  const std::lock_guard lock(mutex_);
  const auto at = slots_.find(Raw(id));
  return at == slots_.end() ? nullptr : at->second.session;
}

std::vector<std::shared_ptr<Session>> SessionTable::All() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<Session>> sessions;
  for (const auto& [id, slot] : slots_) {
    sessions.push_back(slot.session);
  }
  return sessions;
}

void SessionTable::End(SessionId id) {
  const std::lock_guard lock(mutex_);
  if (const auto at = slots_.find(Raw(id)); at != slots_.end()) {
    at->second.session->End();
    slots_.erase(at);
  }
}

bool SessionTable::EndWhere(absl::FunctionRef<bool(const Session&)> ends, Deadline deadline) {
  std::vector<std::shared_ptr<Session>> ended;
  for (const std::shared_ptr<Session>& session : All()) {
    if (ends(*session)) {
      session->End();
      ended.push_back(session);
    }
  }
  bool all = true;
  for (const std::shared_ptr<Session>& session : ended) {
    if (!session->AwaitRelease(deadline)) {
      all = false;  // stays in the table, so that the next caller waits for it too
      continue;
    }
    const std::lock_guard lock(mutex_);
    slots_.erase(Raw(session->identity.id));
  }
  return all;
}

void SessionTable::DropStale() {
  const Deadline::Duration now = Deadline::Now();
  std::erase_if(slots_, [&](const auto& item) {
    const Slot& slot = item.second;
    const bool gone = !slot.session->connected() && slot.ticket_expires < now &&
                      slot.session->idle_since() + limits_.linger < now;
    if (gone) {
      slot.session->End();
    }
    return gone;
  });
}

}  // namespace pmirror::server
