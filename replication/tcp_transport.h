// SPDX-License-Identifier: BSD-3-Clause
// Transport over a connected stream socket: TCP over IPv4 or IPv6 (a UNIX socket works as well: tests).
//
// The descriptor keeps its number for the life of the object: a new connection is put in its place with dup3,
// so that a thread about to wait on the old one never waits on a number that has become somebody else's.
// Everything goes through sendmsg and recvmsg: should the program have closed our descriptor and reused the
// number, a file answers ENOTSOCK and is not written to (trap 14).
#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>

#include "replication/transport.h"

namespace pmirror {

// How long sent bytes may stay unacknowledged by the peer's kernel, or an idle peer unheard of, before the
// connection counts as broken and another path is tried. For the owner of the socket to set, see
// SetPathTimeout; a connection without any gets this.
constexpr std::chrono::milliseconds kDefaultPathTimeout{2500};

// Sets TCP_USER_TIMEOUT and keepalive to match. EINVAL: not a TCP socket.
Error SetPathTimeout(int socket, std::chrono::milliseconds timeout);

class TcpTransport : public Transport {
 public:
  TcpTransport() = default;
  ~TcpTransport() override;
  TcpTransport(const TcpTransport&) = delete;
  TcpTransport& operator=(const TcpTransport&) = delete;

  Error Attach(UniqueFd connection) override;
  IoResult Send(std::span<const iovec> parts, size_t skip) override;
  IoResult Receive(std::span<std::byte> room) override;
  Readiness Wait(Readiness wanted, Deadline deadline, const KernelSignalMask& mask) override;
  void Shutdown() override;
  void Abandon() override;
  Placement placement() const override { return Placement::kMessage; }

 private:
  bool StillOurs(int fd) const;
  void Remember(int fd);

  std::atomic<int> fd_{-1};
  dev_t device_ = 0;  // which socket fd_ was made to be: the program may have closed it
  ino_t inode_ = 0;
};

}  // namespace pmirror
