// SPDX-License-Identifier: BSD-3-Clause
// See stream_pair.h.
#include "tests/unit/replication/stream_pair.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

namespace pmirror {

std::pair<UniqueFd, UniqueFd> UnixPair() {
  int ends[2] = {-1, -1};
  EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

std::pair<UniqueFd, UniqueFd> TcpPair(int family) {
  sockaddr_storage address{};
  socklen_t length = 0;
  address.ss_family = static_cast<sa_family_t>(family);
  if (family == AF_INET) {
    reinterpret_cast<sockaddr_in&>(address).sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    length = sizeof(sockaddr_in);
  } else {
    reinterpret_cast<sockaddr_in6&>(address).sin6_addr = in6addr_loopback;
    length = sizeof(sockaddr_in6);
  }
  auto* const generic = reinterpret_cast<sockaddr*>(&address);
  const UniqueFd listener(::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  UniqueFd near(::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  EXPECT_EQ(::bind(listener.get(), generic, length), 0);
  EXPECT_EQ(::listen(listener.get(), 1), 0);
  EXPECT_EQ(::getsockname(listener.get(), generic, &length), 0);
  EXPECT_EQ(::connect(near.get(), generic, length), 0);
  UniqueFd far(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  EXPECT_TRUE(far.valid());
  const int one = 1;
  ::setsockopt(far.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  return {std::move(near), std::move(far)};
}

}  // namespace pmirror
