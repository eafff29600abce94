// SPDX-License-Identifier: BSD-3-Clause
// libpmirror and the local daemon: an observer's connection.
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "interpose/api_parts.h"
#include "interpose/mount_info.h"
#include "replication/deadline.h"

namespace pmirror::interpose {
namespace {

constexpr std::chrono::seconds kPatience{5};

std::string MountInfo() {
  const UniqueFd file(::open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC));
  std::string text;
  char part[4096];
  ssize_t got = 0;
  while (file.valid() && (got = ::read(file.get(), part, sizeof(part))) > 0) {
    text.append(part, static_cast<size_t>(got));
  }
  return text;
}

// The lines of mounts of the device ("id parent major:minor ...", proc(5)).
std::string LinesOf(const std::string& mountinfo, uint64_t device) {
  std::string lines;
  for (size_t begin = 0; begin < mountinfo.size();) {
    const size_t end = std::min(mountinfo.find('\n', begin), mountinfo.size() - 1) + 1;
    const std::string line = mountinfo.substr(begin, end - begin);
    unsigned major = 0;
    unsigned minor = 0;
    if (std::sscanf(line.c_str(), "%*u %*u %u:%u", &major, &minor) == 2 &&
        gnu_dev_makedev(major, minor) == device) {
      lines += line;
    }
    begin = end;
  }
  return lines;
}

// As the preload library finds it.
bool FindSocket(uint64_t device, sockaddr_un& address) {
  const PreloadTable* preload = Preload();
  const char* named =
      preload != nullptr ? preload->socket_path() : ::secure_getenv(local::kSocketEnvironment);
  if (device == 0 && named != nullptr && *named != '\0') {
    if (std::strlen(named) >= sizeof(address.sun_path)) {
      return false;
    }
    std::memcpy(address.sun_path, named, std::strlen(named) + 1);
    return true;
  }
  const std::string text = device == 0 ? MountInfo() : LinesOf(MountInfo(), device);
  bool several = false;
  return FindSocketInMountInfo(text.c_str(), address.sun_path, sizeof(address.sun_path), several);
}

// The reply with its descriptors. 0 or an errno.
int ReceiveReply(Observation& into) {
  iovec part{.iov_base = &into.reply, .iov_len = sizeof(into.reply)};
  alignas(cmsghdr) char control[CMSG_SPACE(local::kMaxVolumes * sizeof(int))];
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  const ssize_t got = ::recvmsg(into.socket.get(), &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  if (got < 0) {  // a daemon that ends resets who is in its queue
    return errno == EAGAIN || errno == EINTR ? errno : ENOTCONN;
  }
  size_t count = 0;
  for (cmsghdr* header = got > 0 ? CMSG_FIRSTHDR(&message) : nullptr; header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) {
      continue;
    }
    for (size_t at = 0; CMSG_LEN((at + 1) * sizeof(int)) <= header->cmsg_len; ++at) {
      int received = -1;
      std::memcpy(&received, CMSG_DATA(header) + at * sizeof(int), sizeof(int));
      UniqueFd owner(received);
      if (count < into.pages.size()) {
        into.pages[count++] = std::move(owner);
      }
    }
  }
  const bool whole = got == static_cast<ssize_t>(sizeof(into.reply)) &&
                     into.reply.version == local::kVersion &&
                     (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0;
  if (!whole) {  // another version of pmirror, or the end
    return ENOTCONN;
  }
  return into.reply.error != 0                                                             ? into.reply.error
         : into.reply.mount_count <= local::kMaxVolumes && into.reply.mount_count == count ? 0
                                                                                           : ENOTCONN;
}

}  // namespace

MappedPage::MappedPage(const UniqueFd& memory) {
  void* mapped = ::mmap(nullptr, sizeof(VolumePage), PROT_READ, MAP_SHARED, memory.get(), 0);
  if (mapped == MAP_FAILED) {
    return;
  }
  page_ = static_cast<const VolumePage*>(mapped);
  if (page_->magic != kVolumePageMagic || page_->version != 1) {
    ::munmap(mapped, sizeof(VolumePage));
    page_ = nullptr;
  }
}

MappedPage::~MappedPage() {
  if (page_ != nullptr) {
    ::munmap(const_cast<VolumePage*>(page_), sizeof(VolumePage));
  }
}

int Observe(uint64_t device, Observation& observation) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (!FindSocket(device, address)) {
    return device != 0 ? ENXIO : ENOTCONN;
  }
  observation.socket.Reset(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!observation.socket.valid()) {
    return errno;
  }
  const int socket = observation.socket.get();
  // Of connect, too: it waits while the daemon does not take what is in its queue.
  const timeval patience{.tv_sec = std::chrono::duration_cast<std::chrono::seconds>(kPatience).count(),
                         .tv_usec = 0};
  ::setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
  local::Request request;
  request.kind = local::RequestKind::kObserve;
  if (::connect(socket, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 ||
      ::send(socket, &request, sizeof(request), MSG_NOSIGNAL) != static_cast<ssize_t>(sizeof(request))) {
    return ENOTCONN;
  }
  const Deadline deadline = Deadline::After(kPatience);
  for (;;) {
    const int error = ReceiveReply(observation);
    if (error != EAGAIN && error != EINTR) {
      return error;
    }
    pollfd poll{.fd = socket, .events = POLLIN, .revents = 0};
    const timespec left = deadline.RemainingTimespec();
    if (::ppoll(&poll, 1, &left, nullptr) == 0) {
      return ENOTCONN;
    }
  }
}

}  // namespace pmirror::interpose
