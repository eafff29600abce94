// SPDX-License-Identifier: BSD-3-Clause
// See local_record.h.
#include "fs/local_record.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace pmirror::fs {
namespace {

std::vector<UniqueFd> TakeDescriptors(msghdr& message) {
  std::vector<UniqueFd> descriptors;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) {
      continue;
    }
    for (size_t at = 0; CMSG_LEN((at + 1) * sizeof(int)) <= header->cmsg_len; ++at) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(header) + at * sizeof(int), sizeof(int));
      descriptors.emplace_back(fd);
    }
  }
  return descriptors;
}

}  // namespace

RecordOutcome ReceiveRequest(int socket, ReceivedRequest& into, std::string& fault) {
  into.descriptors.clear();
  iovec part{.iov_base = &into.request, .iov_len = sizeof(into.request)};
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxRequestDescriptors * sizeof(int))];
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  ssize_t got = 0;
  do {
    got = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  if (got <= 0) {
    return RecordOutcome::kEnd;
  }
  std::vector<UniqueFd> descriptors = TakeDescriptors(message);
  if ((message.msg_flags & MSG_CTRUNC) != 0) {
    fault = "a request with more descriptors than any has";
  } else if ((message.msg_flags & MSG_TRUNC) != 0 || got != static_cast<ssize_t>(sizeof(into.request))) {
    fault = "a record that is not of a request's size";
  } else if (into.request.version != local::kVersion) {
    fault = "a request of version " + std::to_string(into.request.version) + ", this daemon speaks " +
            std::to_string(local::kVersion);
  } else {
    into.descriptors = std::move(descriptors);
    return RecordOutcome::kRequest;
  }
  return RecordOutcome::kFault;
}

bool SendReply(int socket, const local::Reply& reply, std::span<const int> descriptors) {
  iovec part{.iov_base = const_cast<local::Reply*>(&reply), .iov_len = sizeof(reply)};
  alignas(cmsghdr) char control[CMSG_SPACE(local::kMaxVolumes * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (!descriptors.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(descriptors.size_bytes());
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(descriptors.size_bytes());
    std::memcpy(CMSG_DATA(header), descriptors.data(), descriptors.size_bytes());
  }
  ssize_t sent = 0;
  do {
    sent = ::sendmsg(socket, &message, MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  return sent == static_cast<ssize_t>(sizeof(reply));
}

void Refuse(local::Reply& reply, int error, std::string_view sentence) {
  reply.error = error;
  const size_t length = std::min(sentence.size(), sizeof(reply.text) - 1);
  std::memcpy(reply.text, sentence.data(), length);
  reply.text[length] = '\0';
}

}  // namespace pmirror::fs
