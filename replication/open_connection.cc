// SPDX-License-Identifier: BSD-3-Clause
// Connect and hello of a session: see open_connection.h.
#include "replication/open_connection.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <cstring>
#include <memory>

#include "replication/crc32c.h"
#include "replication/reply_reader.h"
#include "replication/tcp_transport.h"

namespace pmirror {
namespace {

using AddressList = std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)>;

Result<AddressList> Resolve(const std::string& address) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos || colon == 0 || colon + 1 == address.size() ||
      address.find_first_not_of("0123456789", colon + 1) != std::string::npos) {
    return Error{EINVAL, "read an address: not host:port or [v6]:port"};
  }
  std::string host = address.substr(0, colon);
  if (host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  if (::getaddrinfo(host.c_str(), address.c_str() + colon + 1, &hints, &found) != 0) {
    return Error{EHOSTUNREACH, "resolve the address of the replica"};
  }
  return AddressList(found, &::freeaddrinfo);
}

// Waits until `events` or an error is there. False: the deadline passed.
bool Ready(int socket, short events, Deadline deadline) {
  pollfd entry{.fd = socket, .events = events, .revents = 0};
  while (!deadline.Expired()) {
    const timespec left = deadline.RemainingTimespec();
    if (::ppoll(&entry, 1, &left, nullptr) > 0) {
      return true;
    }
  }
  return false;
}

Result<UniqueFd> ConnectOne(const addrinfo& to, Deadline deadline) {
  UniqueFd socket(::socket(to.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) {
    return Error::FromErrno("make a socket for the replica");
  }
  if (::connect(socket.get(), to.ai_addr, to.ai_addrlen) != 0 && errno != EINPROGRESS) {
    return Error::FromErrno("connect to the replica");
  }
  if (!Ready(socket.get(), POLLOUT, deadline)) {
    return Error{ETIMEDOUT, "connect to the replica"};
  }
  int error = 0;
  socklen_t length = sizeof error;
  ::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &length);
  if (error != 0) {
    return Error{error, "connect to the replica"};
  }
  return socket;
}

Error Prepare(int socket, std::chrono::milliseconds path_timeout) {
  const int one = 1;
  if (::setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0) {
    return Error::FromErrno("set TCP_NODELAY");
  }
  const int flags = ::fcntl(socket, F_GETFL);
  if (flags < 0 || ::fcntl(socket, F_SETFL, flags & ~O_NONBLOCK) != 0) {
    return Error::FromErrno("make the socket blocking");
  }
  return SetPathTimeout(socket, path_timeout);
}

struct HelloFrame {
  FrameHeader header{};
  HelloBody body{};
};
static_assert(sizeof(HelloFrame) == sizeof(FrameHeader) + sizeof(HelloBody));

HelloFrame MakeHello(const HelloTerms& terms) {
  HelloFrame hello;
  std::memcpy(hello.body.volume, terms.volume.data(), sizeof hello.body.volume);
  std::memcpy(hello.body.ticket, terms.ticket.data(), sizeof hello.body.ticket);
  hello.body.next_sequence = terms.next_sequence;
  hello.body.kind = static_cast<uint32_t>(terms.kind);
  hello.header.magic = kFrameMagic;
  hello.header.version = kFrameVersion;
  hello.header.kind = static_cast<uint8_t>(FrameKind::kHello);
  hello.header.epoch = Raw(terms.epoch);
  hello.header.session = Raw(terms.session);
  hello.header.payload_length = sizeof hello.body;
  hello.header.payload_crc = Crc32c(0, std::as_bytes(std::span(&hello.body, 1)));
  hello.header.header_crc = HeaderCrc(hello.header, {}, {});
  return hello;
}

// Reads no byte beyond the frame: what follows belongs to the session.
Error ReadExactly(int socket, std::span<std::byte> room, Deadline deadline) {
  while (!room.empty()) {
    if (!Ready(socket, POLLIN, deadline)) {
      return {ETIMEDOUT, "wait for the replica's answer to the hello"};
    }
    const ssize_t count = ::recv(socket, room.data(), room.size(), MSG_DONTWAIT);
    if (count < 0 && (errno == EINTR || errno == EAGAIN)) {
      continue;
    }
    if (count <= 0) {
      return {count == 0 ? ECONNRESET : errno, "read the replica's answer to the hello"};
    }
    room = room.subspan(static_cast<size_t>(count));
  }
  return Error::Ok();
}

Error RefusedAs(const RefusalBody& refusal) {
  return RefusalCode{refusal.code} == RefusalCode::kOldEpoch
             ? Error{ESTALE, "open a session: the replica follows a newer primary"}
             : Error{EACCES, "open a session: the replica refused the hello"};
}

// One frame into the reader.
Result<ReplyReader::Next> ReadAnswer(int socket, ReplyReader& reader, Deadline deadline) {
  PMIRROR_RETURN_IF_ERROR(ReadExactly(socket, reader.Room().first(sizeof(FrameHeader)), deadline));
  FrameHeader header;
  std::memcpy(&header, reader.Room().data(), sizeof header);
  if (CheckHeader(header) != HeaderFault::kOk || FrameBytes(header) > reader.Room().size()) {
    return ReplyReader::Next::kFault;
  }
  const auto rest = reader.Room().subspan(sizeof header, FrameBytes(header) - sizeof header);
  PMIRROR_RETURN_IF_ERROR(ReadExactly(socket, rest, deadline));
  reader.Filled(FrameBytes(header));
  return reader.Take();
}

}  // namespace

Result<UniqueFd> ConnectTcp(const std::string& address, Deadline deadline,
                            std::chrono::milliseconds path_timeout) {
  const Result<AddressList> list = Resolve(address);
  if (!list.ok()) {
    return list.error();
  }
  Error error{EHOSTUNREACH, "connect to the replica: no address"};
  for (const addrinfo* to = list.value().get(); to != nullptr; to = to->ai_next) {
    Result<UniqueFd> socket = ConnectOne(*to, deadline);
    error = socket.ok() ? Prepare(socket.value().get(), path_timeout) : socket.error();
    if (error.ok()) {
      return socket;
    }
  }
  return error;
}

Result<Connector::Connection> ExchangeHello(UniqueFd socket, const HelloTerms& terms, Deadline deadline) {
  const HelloFrame hello = MakeHello(terms);
  // A new connection's buffer takes it as a whole.
  if (::send(socket.get(), &hello, sizeof hello, MSG_NOSIGNAL) != static_cast<ssize_t>(sizeof hello)) {
    return Error::FromErrno("send the hello");
  }
  ReplyReader reader;
  const Result<ReplyReader::Next> answer = ReadAnswer(socket.get(), reader, deadline);
  if (!answer.ok()) {
    return answer.error();
  }
  if (answer.value() == ReplyReader::Next::kRefusal) {
    return RefusedAs(reader.refusal());
  }
  const bool ours = terms.session == SessionId{} || reader.header().session == Raw(terms.session);
  if (answer.value() != ReplyReader::Next::kHelloAck || !ours) {
    return Error{EPROTO, "open a session: the replica's answer makes no sense"};
  }
  return Connector::Connection{.socket = std::move(socket),
                               .session = SessionId{reader.header().session},
                               .resumed = reader.hello_ack(),
                               .abilities = reader.header().order};
}

}  // namespace pmirror
