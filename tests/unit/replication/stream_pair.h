// SPDX-License-Identifier: BSD-3-Clause
// Two connected stream sockets within the test: over a UNIX socket pair, or TCP on a loopback address.
#pragma once

#include <utility>

#include "replication/unique_fd.h"

namespace pmirror {

std::pair<UniqueFd, UniqueFd> UnixPair();
// `family`: AF_INET or AF_INET6. Fails the test when it cannot.
std::pair<UniqueFd, UniqueFd> TcpPair(int family);

}  // namespace pmirror
