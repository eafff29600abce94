// SPDX-License-Identifier: BSD-3-Clause
// Opens the TCP connection of a session: connect to one address of the replica, send the hello, read its
// answer. For the daemon's Connectors (a program gets its connections from the daemon); which address is
// tried when is theirs to choose. Blocking until the deadline; allocates; thread-safe.
#pragma once

#include <string>

#include "replication/data_session.h"
#include "replication/deadline.h"
#include "replication/frame.h"
#include "replication/result.h"
#include "replication/unique_fd.h"

namespace pmirror {

// `address`: "host:port" or "[v6]:port"; a name may resolve to several addresses, which are tried in order.
// The socket is blocking, close-on-exec, without delay, and has the path timeout (tcp_transport.h). EINVAL:
// not an address; EHOSTUNREACH: the name is unknown; ETIMEDOUT: not before the deadline (resolving a name may
// take longer); otherwise the errno of the last address.
Result<UniqueFd> ConnectTcp(const std::string& address, Deadline deadline,
                            std::chrono::milliseconds path_timeout);

// What the hello says beside the ticket.
struct HelloTerms {
  Uuid volume{};
  SessionKind kind = SessionKind::kDaemon;
  std::span<const std::byte, 16> ticket;
  Epoch epoch{};
  SessionId session{};
  Sequence next_sequence = 1;
};

// Sends the hello on a new connection and reads the answer. ESTALE: refused, the epoch was superseded;
// EACCES: refused for another reason (unknown volume or ticket); EPROTO: the answer is none; ECONNRESET:
// closed before it; ETIMEDOUT.
Result<Connector::Connection> ExchangeHello(UniqueFd socket, const HelloTerms& terms, Deadline deadline);

}  // namespace pmirror
