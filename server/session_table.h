// SPDX-License-Identifier: BSD-3-Clause
// The sessions of one volume and the one-time tickets that open connections for them.
//
// Thread-safe. Bounded: kMaxSessions, one ticket a session. A session that nobody has resumed for the linger
// time is dropped when the table is used next.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "replication/deadline.h"
#include "replication/frame.h"
#include "server/session.h"

namespace pmirror::server {

using Ticket16 = std::array<std::byte, 16>;

class SessionTable {
 public:
  static constexpr size_t kMaxSessions = 4096;

  struct Limits {
    uint64_t credit_window = 1 << 20;  // bytes
    std::chrono::nanoseconds ticket_life = std::chrono::seconds(30);
    std::chrono::nanoseconds linger = std::chrono::minutes(10);  // of a session without connection
  };
  explicit SessionTable(const Limits& limits) : limits_(limits) {}

  struct Permit {
    SessionId session{};
    Ticket16 ticket{};
  };
  // A ticket for a new session (`identity.id` 0: it gets one) or for the next connection of session
  // `identity.id`. A session of that id that this table does not know (the daemon was restarted) is made
  // anew, with nothing received. kResourceExhausted: too many; kFailedPrecondition: it has ended, was opened
  // as something else, or its path was retired.
  absl::StatusOr<Permit> Open(Session::Identity identity);

  // The session that the ticket was made for. A ticket works once. kPermissionDenied: unknown, used or
  // expired.
  absl::StatusOr<std::shared_ptr<Session>> Redeem(const Ticket16& ticket, SessionKind kind);

  std::shared_ptr<Session> Find(SessionId id) const;
  std::vector<std::shared_ptr<Session>> All() const;

  // Ends one session and forgets it.
  void End(SessionId id);
  // Ends every session that `ends` names, and waits until no frame of theirs is being applied. False: not
  // before the deadline.
  bool EndWhere(absl::FunctionRef<bool(const Session&)> ends, Deadline deadline);

 private:
  struct Slot {
    std::shared_ptr<Session> session;
    Ticket16 ticket{};
    Deadline::Duration ticket_expires{};  // zero: no ticket is out
  };
  void DropStale();

  const Limits limits_;
  mutable std::mutex mutex_;
  std::map<uint64_t, Slot> slots_;  // guarded by mutex_
};

}  // namespace pmirror::server
