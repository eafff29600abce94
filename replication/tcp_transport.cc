// SPDX-License-Identifier: BSD-3-Clause
// See tcp_transport.h. System calls are made directly: the libc functions are cancellation points and may be
// interposed.
#include "replication/tcp_transport.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>

namespace pmirror {
namespace {

constexpr size_t kMaxParts = 8;

Error SetOption(int fd, int level, int option, int value, const char* doing) {
  if (::syscall(SYS_setsockopt, fd, level, option, &value, sizeof value) != 0) {
    return Error::FromErrno(doing);
  }
  return Error::Ok();
}

bool IsTcp(int fd) {
  int protocol = 0;
  socklen_t length = sizeof protocol;
  return ::syscall(SYS_getsockopt, fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &length) == 0 &&
         protocol == IPPROTO_TCP;
}

bool HasPathTimeout(int fd) {
  unsigned timeout = 0;
  socklen_t length = sizeof timeout;
  return ::syscall(SYS_getsockopt, fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout, &length) == 0 && timeout != 0;
}

bool WouldBlock(int error) { return error == EAGAIN || error == EWOULDBLOCK; }

// The parts without their first `skip` bytes. Returns how many there are.
size_t Remaining(std::span<const iovec> parts, size_t skip, std::array<iovec, kMaxParts>& left) {
  size_t count = 0;
  for (const iovec& part : parts) {
    if (skip >= part.iov_len) {
      skip -= part.iov_len;
      continue;
    }
    left[count++] = {.iov_base = static_cast<std::byte*>(part.iov_base) + skip,
                     .iov_len = part.iov_len - skip};
    skip = 0;
  }
  return count;
}

}  // namespace

const char* Name(Placement placement) {
  switch (placement) {
    case Placement::kMessage:
      return "message";
  }
  return "unknown";
}

Error SetPathTimeout(int socket, std::chrono::milliseconds timeout) {
  if (!IsTcp(socket)) {
    return {EINVAL, "set the path timeout of something that is no TCP socket"};
  }
  // An idle peer is asked after each third of the timeout; TCP_USER_TIMEOUT then ends also that.
  const int seconds = std::max(1, static_cast<int>(timeout.count() / 3000));
  PMIRROR_RETURN_IF_ERROR(SetOption(socket, IPPROTO_TCP, TCP_USER_TIMEOUT, static_cast<int>(timeout.count()),
                                    "set TCP_USER_TIMEOUT"));
  PMIRROR_RETURN_IF_ERROR(SetOption(socket, IPPROTO_TCP, TCP_KEEPIDLE, seconds, "set TCP_KEEPIDLE"));
  PMIRROR_RETURN_IF_ERROR(SetOption(socket, IPPROTO_TCP, TCP_KEEPINTVL, seconds, "set TCP_KEEPINTVL"));
  return SetOption(socket, SOL_SOCKET, SO_KEEPALIVE, 1, "set SO_KEEPALIVE");
}

TcpTransport::~TcpTransport() { Abandon(); }

bool TcpTransport::StillOurs(int fd) const {
  struct stat status {};
  return ::fstat(fd, &status) == 0 && status.st_dev == device_ && status.st_ino == inode_;
}

void TcpTransport::Remember(int fd) {
  struct stat status {};
  if (::fstat(fd, &status) == 0) {
    device_ = status.st_dev;
    inode_ = status.st_ino;
  }
}

Error TcpTransport::Attach(UniqueFd connection) {
  if (!connection.valid()) {
    return {EBADF, "use the connection to the replica"};
  }
  if (IsTcp(connection.get())) {
    PMIRROR_RETURN_IF_ERROR(SetOption(connection.get(), IPPROTO_TCP, TCP_NODELAY, 1, "set TCP_NODELAY"));
    if (!HasPathTimeout(connection.get())) {
      PMIRROR_RETURN_IF_ERROR(SetPathTimeout(connection.get(), kDefaultPathTimeout));
    }
  }
  const int old = fd_.load(std::memory_order_relaxed);
  const bool in_place = old >= 0 && StillOurs(old);
  Remember(connection.get());
  if (!in_place) {
    fd_.store(connection.Release(), std::memory_order_release);
    return Error::Ok();
  }
  if (::syscall(SYS_dup3, connection.get(), old, O_CLOEXEC) < 0) {
    return Error::FromErrno("put the new connection in place of the old one");
  }
  return Error::Ok();
}

IoResult TcpTransport::Send(std::span<const iovec> parts, size_t skip) {
  std::array<iovec, kMaxParts> left;
  if (parts.size() > left.size()) {
    return {.error = EINVAL};
  }
  msghdr message{};
  message.msg_iov = left.data();
  message.msg_iovlen = Remaining(parts, skip, left);
  const int fd = fd_.load(std::memory_order_acquire);
  long sent = 0;
  do {
    sent = ::syscall(SYS_sendmsg, fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  } while (sent < 0 && errno == EINTR);
  if (sent < 0) {
    return {.error = WouldBlock(errno) ? EAGAIN : errno};
  }
  return {.bytes = static_cast<size_t>(sent)};
}

IoResult TcpTransport::Receive(std::span<std::byte> room) {
  const int fd = fd_.load(std::memory_order_acquire);
  long received = 0;
  do {
    received = ::syscall(SYS_recvfrom, fd, room.data(), room.size(), MSG_DONTWAIT, nullptr, nullptr);
  } while (received < 0 && errno == EINTR);
  if (received < 0) {
    return {.error = WouldBlock(errno) ? EAGAIN : errno};
  }
  if (received == 0) {
    return {.error = ECONNRESET};
  }
  return {.bytes = static_cast<size_t>(received)};
}

Readiness TcpTransport::Wait(Readiness wanted, Deadline deadline, const KernelSignalMask& mask) {
  pollfd socket{.fd = fd_.load(std::memory_order_acquire), .events = 0, .revents = 0};
  socket.events = static_cast<short>((wanted.readable ? POLLIN : 0) | (wanted.writable ? POLLOUT : 0));
  timespec timeout = deadline.RemainingTimespec();
  if (::syscall(SYS_ppoll, &socket, 1, &timeout, &mask, sizeof mask) <= 0) {
    return {};
  }
  const bool ended = (socket.revents & (POLLERR | POLLHUP | POLLNVAL)) != 0;
  return {.readable = ended || (socket.revents & POLLIN) != 0,
          .writable = ended || (socket.revents & POLLOUT) != 0};
}

void TcpTransport::Shutdown() {
  const int fd = fd_.load(std::memory_order_acquire);
  if (fd >= 0) {
    ::syscall(SYS_shutdown, fd, SHUT_RDWR);
  }
}

void TcpTransport::Abandon() {
  const int fd = fd_.exchange(-1, std::memory_order_acq_rel);
  if (fd >= 0 && StillOurs(fd)) {
    ::syscall(SYS_close, fd);
  }
}

}  // namespace pmirror
