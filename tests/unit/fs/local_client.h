// SPDX-License-Identifier: BSD-3-Clause
// A program's end of the local protocol, for tests: one connection.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "replication/local_protocol.h"
#include "replication/ticket_table.h"
#include "replication/unique_fd.h"

namespace pmirror::fs {

// A ticket table as a program makes it.
class LocalTickets {
 public:
  explicit LocalTickets(int seals = F_SEAL_SHRINK, size_t bytes = sizeof(TicketTable))
      : memory_(::memfd_create("tickets", MFD_CLOEXEC | MFD_ALLOW_SEALING)) {
    EXPECT_EQ(::ftruncate(memory_.get(), static_cast<off_t>(bytes)), 0);
    table_ = static_cast<TicketTable*>(
        ::mmap(nullptr, sizeof(TicketTable), PROT_READ | PROT_WRITE, MAP_SHARED, memory_.get(), 0));
    EXPECT_EQ(::fcntl(memory_.get(), F_ADD_SEALS, seals), 0);
  }
  ~LocalTickets() { ::munmap(table_, sizeof(TicketTable)); }
  LocalTickets(const LocalTickets&) = delete;
  LocalTickets& operator=(const LocalTickets&) = delete;

  int fd() const { return memory_.get(); }
  TicketTable* operator->() const { return table_; }
  TicketTable& operator*() const { return *table_; }
  void Put(size_t slot, TicketState state, uint32_t volume, FileId file, Extent extent) const {
    Ticket& ticket = table_->tickets[slot];
    ticket.volume = volume;
    ticket.file = Raw(file);
    ticket.offset = extent.offset;
    ticket.length = extent.length;
    ticket.serial = table_->next_serial.fetch_add(1) + 1;
    ticket.state = static_cast<uint32_t>(state);
  }

 private:
  UniqueFd memory_;
  TicketTable* table_ = nullptr;
};

class LocalClient {
 public:
  struct Answer {
    bool came = false;  // false: the connection has ended
    local::Reply reply;
    std::vector<UniqueFd> descriptors;
    int error() const { return came ? reply.error : -1; }
    std::string text() const { return reply.text; }
  };

  explicit LocalClient(const std::string& path)
      : socket_(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
    EXPECT_EQ(::connect(socket_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0) << path;
    const timeval patience{.tv_sec = 20, .tv_usec = 0};
    ::setsockopt(socket_.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  }

  void Close() { socket_.Reset(); }
  int fd() const { return socket_.get(); }

  bool SendBytes(const void* bytes, size_t length, const std::vector<int>& descriptors = {}) const {
    iovec part{.iov_base = const_cast<void*>(bytes), .iov_len = length};
    alignas(cmsghdr) char control[CMSG_SPACE(8 * sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (!descriptors.empty()) {
      const size_t size = descriptors.size() * sizeof(int);
      message.msg_control = control;
      message.msg_controllen = CMSG_SPACE(size);
      cmsghdr* header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(size);
      std::memcpy(CMSG_DATA(header), descriptors.data(), size);
    }
    return ::sendmsg(socket_.get(), &message, MSG_NOSIGNAL) == static_cast<ssize_t>(length);
  }
  void Send(const local::Request& request, const std::vector<int>& descriptors = {}) const {
    SendBytes(&request, sizeof(request), descriptors);
  }

  Answer Receive() const {
    Answer answer;
    iovec part{.iov_base = &answer.reply, .iov_len = sizeof(answer.reply)};
    alignas(cmsghdr) char control[CMSG_SPACE(local::kMaxVolumes * sizeof(int))];
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    answer.came =
        ::recvmsg(socket_.get(), &message, MSG_CMSG_CLOEXEC) == static_cast<ssize_t>(sizeof(local::Reply));
    for (cmsghdr* header = CMSG_FIRSTHDR(&message); answer.came && header != nullptr;
         header = CMSG_NXTHDR(&message, header)) {
      for (size_t at = 0; CMSG_LEN((at + 1) * sizeof(int)) <= header->cmsg_len; ++at) {
        int fd = -1;
        std::memcpy(&fd, CMSG_DATA(header) + at * sizeof(int), sizeof(int));
        answer.descriptors.emplace_back(fd);
      }
    }
    return answer;
  }

  Answer Ask(local::RequestKind kind, const std::function<void(local::Request&)>& fill = {},
             const std::vector<int>& descriptors = {}) const {
    local::Request request;
    request.kind = kind;
    request.wait_ns = 20'000'000'000;
    if (fill) {
      fill(request);
    }
    Send(request, descriptors);
    return Receive();
  }

  Answer Hello() const { return Ask(local::RequestKind::kHello); }
  Answer HelloMain(const std::vector<int>& descriptors) const {
    return Ask(
        local::RequestKind::kHello, [](local::Request& request) { request.main = 1; }, descriptors);
  }
  Answer OpenBacking(int fd, uint32_t volume = 0, FileId file = FileId::kNone) const {
    return Ask(local::RequestKind::kOpenBacking,
               [&](local::Request& request) {
                 request.volume = volume;
                 request.file = Raw(file);
               },
               {fd});
  }
  Answer CloseBacking(FileId file) const {
    return Ask(local::RequestKind::kCloseBacking, [&](local::Request& request) { request.file = Raw(file); });
  }
  struct Where {
    uint64_t address = 0;
    uint64_t length = 0;
    uint64_t offset = 0;
  };
  Answer Mapped(FileId file, Where where, bool writable = true, Tracking tracking = Tracking::kNone) const {
    return Ask(local::RequestKind::kMapped, [&](local::Request& request) {
      request.file = Raw(file);
      request.address = where.address;
      request.length = where.length;
      request.offset = where.offset;
      request.writable = writable ? 1 : 0;
      request.tracked = static_cast<uint32_t>(tracking);
    });
  }
  Answer Unmapped(FileId file, Where where, const std::vector<Extent>& extents = {},
                  bool abandoned = false) const {
    return Ask(local::RequestKind::kUnmapped, [&](local::Request& request) {
      request.file = Raw(file);
      request.address = where.address;
      request.length = where.length;
      request.offset = where.offset;
      request.abandoned = abandoned ? 1 : 0;
      request.extent_count = static_cast<uint32_t>(extents.size());
      std::copy(extents.begin(), extents.end(), request.extents);
    });
  }
  Answer OpenSession(uint32_t replica, uint64_t session = 0) const {
    return Ask(local::RequestKind::kOpenSession, [&](local::Request& request) {
      request.replica = replica;
      request.session = session;
      request.next_sequence = 5;
    });
  }

 private:
  UniqueFd socket_;
};

}  // namespace pmirror::fs
