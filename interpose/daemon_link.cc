// SPDX-License-Identifier: BSD-3-Clause
// Records over SOCK_SEQPACKET. A connection whose reply did not come in time is dropped: a late reply must
// not answer the next request.
#include "interpose/daemon_link.h"

#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <cstring>

#include "interpose/log.h"

namespace pmirror::interpose {

using local::Reply;
using local::Request;
using local::RequestKind;

Error DaemonLink::OpenMain(const char* path, int ticket_table, int pagemap, Answer& answer) {
  const SignalGuard guard(main_lock_);
  if (std::strlen(path) >= sizeof(address_.sun_path)) {
    return {ENAMETOOLONG, "connect to the local daemon"};
  }
  address_.sun_family = AF_UNIX;
  std::memset(address_.sun_path, 0, sizeof(address_.sun_path));
  std::memcpy(address_.sun_path, path, std::strlen(path));
  starts_.fetch_add(1, std::memory_order_acq_rel);
  PMIRROR_RETURN_IF_ERROR(Connect(main_));
  Prepare(main_, RequestKind::kHello).main = 1;
  const int descriptors[] = {ticket_table, pagemap};
  PMIRROR_RETURN_IF_ERROR(Transact(main_, std::span(descriptors).first(pagemap >= 0 ? 2 : 1),
                                   Deadline::After(kShortWait), answer));
  // One more while we still can: after setuid() or chroot() the socket may be out of reach.
  Channel& spare = channels_[0];
  bool idle = false;
  if (!spare.busy.compare_exchange_strong(idle, true, std::memory_order_acquire)) {
    return Error::Ok();  // a sync at work sees to it
  }
  Drop(spare);
  const Error connected = Connect(spare);
  spare.busy.store(false, std::memory_order_release);
  return connected;
}

bool DaemonLink::Lives() const {
  for (;;) {
    const OwnDescriptors::Handle handle = main_.handle.load(std::memory_order_acquire);
    const int fd = own_descriptors().Number(handle);
    if (fd < 0) {
      return false;
    }
    pollfd poll{.fd = fd, .events = POLLRDHUP, .revents = 0};
    ::poll(&poll, 1, 0);  // in every sync: ppoll takes a third longer
    // Not in a section, which costs more than all of this: so look whether the number was ours all the time.
    if (main_.handle.load(std::memory_order_acquire) == handle && own_descriptors().Number(handle) == fd) {
      return (poll.revents & (POLLHUP | POLLRDHUP | POLLERR | POLLNVAL)) == 0;
    }
  }
}

void DaemonLink::Close() {
  const SignalGuard guard(main_lock_);
  Drop(main_);
}

bool DaemonLink::IsOfLink(const Error& error) {
  switch (error.code) {
    case ENOTCONN:
    case ECONNRESET:
    case ECONNREFUSED:
    case EPIPE:
    case ENOENT:
    case ESRCH:
      return true;
    default:
      return false;
  }
}

Error DaemonLink::Connect(Channel& channel) {
  UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!socket.valid() ||
      ::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address_), sizeof(address_)) != 0) {
    return Error::FromErrno("connect to the local daemon");
  }
  const OwnDescriptors::Handle handle = own_descriptors().Adopt(std::move(socket), OwnKind::kChannel);
  if (handle == 0) {
    return {EMFILE, "connect to the local daemon"};
  }
  channel.start = starts_.load(std::memory_order_acquire);
  channel.handle.store(handle, std::memory_order_release);
  return Error::Ok();
}

Error DaemonLink::Hello(Channel& channel, Deadline deadline) {
  if (channel.start != starts_.load(std::memory_order_acquire)) {
    Drop(channel);  // it leads to a daemon that is gone
  }
  if (channel.greeted) {
    return Error::Ok();
  }
  if (channel.handle.load(std::memory_order_relaxed) == 0) {
    PMIRROR_RETURN_IF_ERROR(Connect(channel));
  }
  Prepare(channel, RequestKind::kHello);
  Answer answer;
  const Error result = Transact(channel, {}, deadline, answer);
  channel.greeted = result.ok();
  return result;
}

Request& DaemonLink::Prepare(Channel& channel, RequestKind kind) {
  channel.request = Request{};
  channel.request.kind = kind;
  return channel.request;
}

void DaemonLink::Drop(Channel& channel) {
  channel.greeted = false;
  own_descriptors().Close(channel.handle.exchange(0, std::memory_order_acq_rel));
}

Error DaemonLink::Send(Channel& channel, std::span<const int> descriptors) {
  iovec part{.iov_base = &channel.request, .iov_len = sizeof(Request)};
  alignas(cmsghdr) char control[CMSG_SPACE(2 * sizeof(int))] = {};
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
  const Quiescence::Section section(own_descriptors().in_use());
  const int fd = own_descriptors().Number(channel.handle.load(std::memory_order_acquire));
  if (fd < 0) {
    return {ENOTCONN, "ask the local daemon"};
  }
  const ssize_t sent = ::sendmsg(fd, &message, MSG_NOSIGNAL);
  return sent == static_cast<ssize_t>(sizeof(Request)) ? Error::Ok()
                                                       : Error::FromErrno("ask the local daemon");
}

Error DaemonLink::Transact(Channel& channel, std::span<const int> descriptors, Deadline deadline,
                           Answer& answer) {
  Error result = Send(channel, descriptors);
  if (result.ok()) {
    result = Receive(channel, deadline, answer);
  }
  if (!result.ok()) {
    Drop(channel);
    return result;
  }
  if (channel.reply.error != 0) {
    channel.reply.text[sizeof(channel.reply.text) - 1] = '\0';
    // A refusal that names another program is for people to act on.
    LogLine(channel.reply.holder != 0 ? LogLevel::kError : LogLevel::kInfo)
        .Text("the local daemon refused")
        .Field("request", static_cast<uint64_t>(channel.request.kind))
        .Field("errno", static_cast<uint64_t>(channel.reply.error))
        .Field("holder", static_cast<uint64_t>(channel.reply.holder))
        .Field("text", channel.reply.text);
    return {channel.reply.error, "the local daemon refused"};
  }
  answer.reply = &channel.reply;
  return Error::Ok();
}

Error DaemonLink::Receive(Channel& channel, Deadline deadline, Answer& answer) {
  for (;;) {
    pollfd poll{.fd = own_descriptors().Number(channel.handle.load(std::memory_order_acquire)),
                .events = POLLIN,
                .revents = 0};
    const timespec left = deadline.RemainingTimespec();
    const int ready = ::ppoll(&poll, 1, &left, nullptr);
    if (ready == 0) {
      return {ETIMEDOUT, "wait for the local daemon"};
    }
    // The number may have moved while we slept (dup2 over it): what counts is what it is inside the section.
    const ssize_t got = ready < 0 ? -1 : ReceiveOnce(channel, answer);
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) {
      continue;
    }
    if (got <= 0) {
      return got == 0 ? Error{ECONNRESET, "wait for the local daemon"}
                      : Error::FromErrno("wait for the local daemon");
    }
    return got == static_cast<ssize_t>(sizeof(Reply)) && channel.reply.version == local::kVersion
               ? Error::Ok()
               : Error{EPROTO, "a reply that is not of this version"};
  }
}

// Bytes received, 0 at the end of the stream, -1 with errno.
ssize_t DaemonLink::ReceiveOnce(Channel& channel, Answer& answer) {
  iovec part{.iov_base = &channel.reply, .iov_len = sizeof(Reply)};
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxDescriptors * sizeof(int))];
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  ssize_t got = 0;
  {
    const Quiescence::Section section(own_descriptors().in_use());
    const int fd = own_descriptors().Number(channel.handle.load(std::memory_order_acquire));
    got = ::recvmsg(fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  }
  if (got < 0) {
    return got;
  }
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) {
      continue;
    }
    for (size_t at = 0; CMSG_LEN((at + 1) * sizeof(int)) <= header->cmsg_len; ++at) {
      int received = -1;
      std::memcpy(&received, CMSG_DATA(header) + at * sizeof(int), sizeof(int));
      UniqueFd owner(received);
      if (answer.descriptor_count < answer.descriptors.size()) {
        answer.descriptors[answer.descriptor_count++] = std::move(owner);
      }
    }
  }
  if ((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) {
    errno = EPROTO;
    return -1;
  }
  return got;
}

DaemonLink::Channel* DaemonLink::TakeChannel(Deadline deadline) {
  for (;;) {
    for (Channel& channel : channels_) {
      bool idle = false;
      if (channel.busy.compare_exchange_strong(idle, true, std::memory_order_acquire)) {
        return &channel;
      }
    }
    if (deadline.Expired()) {
      return nullptr;
    }
    // Bounded by the requests under way; a signal handler that waits here for its own thread's ends at its
    // deadline.
    const timespec pause{.tv_sec = 0, .tv_nsec = 100'000};
    ::ppoll(nullptr, 0, &pause, nullptr);
  }
}

void DaemonLink::ResetInChild() {
  main_lock_.ResetAfterFork();
  main_.handle.store(0, std::memory_order_relaxed);
  for (Channel& channel : channels_) {
    channel.handle.store(0, std::memory_order_relaxed);
    channel.greeted = false;
    channel.busy.store(false, std::memory_order_relaxed);
  }
}

}  // namespace pmirror::interpose
