// SPDX-License-Identifier: BSD-3-Clause
// The daemon's end of the local protocol's records (replication/local_protocol.h): one request in, one reply out, with descriptors, over a
// connected SOCK_SEQPACKET socket. Functions without state; they block as the socket does.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "replication/local_protocol.h"
#include "replication/unique_fd.h"

namespace pmirror::fs {

constexpr size_t kMaxRequestDescriptors = 2;  // kHello passes the most

struct ReceivedRequest {
  local::Request request;
  std::vector<UniqueFd> descriptors;  // in the order they were passed
};

enum class RecordOutcome {
  kRequest,
  kEnd,    // the peer is gone, or the socket was shut down here
  kFault,  // not a record of this protocol and version: the connection is of no use any more
};

// Waits for the next request. Only on kRequest `into` is meaningful; descriptors of anything else are closed. On kFault `fault` says what
// was wrong with it.
RecordOutcome ReceiveRequest(int socket, ReceivedRequest& into, std::string& fault);

// False when the peer did not take it (gone, or longer than the socket's send timeout).
// Requires: at most local::kMaxVolumes descriptors. They stay the caller's.
bool SendReply(int socket, const local::Reply& reply, std::span<const int> descriptors);

// Makes `reply` a refusal. `error` is not 0; the sentence is cut to what fits.
void Refuse(local::Reply& reply, int error, std::string_view sentence);

}  // namespace pmirror::fs
