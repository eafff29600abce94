// SPDX-License-Identifier: BSD-3-Clause
// The program's end of the local protocol: one main connection for short requests, a few more for those that
// may take long.
//
// Threads: any. A request occupies one connection from request to reply; short requests hold the main
// connection's lock with signals blocked and give up after kShortWait. Buffers are part of the object:
// nothing is allocated, little stack is used.
#pragma once

#include <sys/un.h>

#include <array>
#include <atomic>
#include <chrono>
#include <span>

#include "interpose/own_descriptors.h"
#include "replication/data_session.h"
#include "replication/deadline.h"
#include "replication/local_protocol.h"
#include "replication/result.h"
#include "replication/unique_fd.h"

namespace pmirror::interpose {

class DaemonLink {
 public:
  static constexpr std::chrono::seconds kShortWait{5};
  static constexpr size_t kMaxDescriptors = local::kMaxVolumes;

  // A reply with the descriptors that came with it.
  struct Answer {
    const local::Reply* reply = nullptr;  // valid until the connection's next request
    std::array<UniqueFd, kMaxDescriptors> descriptors;
    size_t descriptor_count = 0;
  };

  constexpr DaemonLink() = default;

  // Connects and says hello on the main connection, passing the ticket table and (when >= 0) the pagemap.
  // `accept` looks at the answer. Any earlier connection must be closed. ENOENT, ECONNREFUSED: no daemon
  // there; others as its reply says.
  template <typename Accept>
  Error Start(const char* path, int ticket_table, int pagemap, Accept&& accept) {
    Answer answer;
    PMIRROR_RETURN_IF_ERROR(OpenMain(path, ticket_table, pagemap, answer));
    return accept(answer);
  }
  bool connected() const { return main_.handle.load(std::memory_order_acquire) != 0; }
  // The main connection stands: the daemon that answered the hello is there. What its volume pages said before
  // the call was said by a living daemon. One short system call.
  bool Lives() const;
  // Ends the main connection, before another Start. Other connections are made anew when they are used next.
  void Close();
  // Whether the error is one of the connection, or says that the daemon does not know this process: nothing is
  // known of what became of the request.
  static bool IsOfLink(const Error& error);

  // A short request on the main connection. `request.kind` and what belongs to it are filled by `fill`;
  // `accept` looks at the answer of a request that succeeded; both run with the lock held and must be short.
  template <typename Fill, typename Accept>
  Error Ask(local::RequestKind kind, std::span<const int> descriptors, Fill&& fill, Accept&& accept) {
    const SignalGuard guard(main_lock_);
    local::Request& request = Prepare(main_, kind);
    fill(request);
    Answer answer;
    PMIRROR_RETURN_IF_ERROR(Transact(main_, descriptors, Deadline::After(kShortWait), answer));
    return accept(answer);
  }
  template <typename Fill>
  Error Ask(local::RequestKind kind, Fill&& fill) {
    return Ask(kind, {}, std::forward<Fill>(fill), [](const Answer&) { return Error::Ok(); });
  }

  // The same on a connection of its own, for as long as `deadline`, with signals as they are.
  template <typename Fill, typename Accept>
  Error AskLong(local::RequestKind kind, Deadline deadline, Fill&& fill, Accept&& accept) {
    Channel* channel = TakeChannel(deadline);
    if (channel == nullptr) {
      return {EAGAIN, "take a connection to the local daemon: all are busy"};
    }
    Error result = Hello(*channel, deadline);
    if (result.ok()) {
      fill(Prepare(*channel, kind));
      Answer answer;
      result = Transact(*channel, {}, deadline, answer);
      if (result.ok()) {
        result = accept(answer);
      }
    }
    channel->busy.store(false, std::memory_order_release);
    return result;
  }

  // In a forked child: forgets every connection (their descriptors are closed already).
  void ResetInChild();

 private:
  struct Channel {
    std::atomic<bool> busy{false};
    std::atomic<OwnDescriptors::Handle> handle{0};
    bool greeted = false;  // hello was said on it
    uint64_t start = 0;    // starts_ when it was made
    local::Request request;
    local::Reply reply;
  };
  static constexpr size_t kChannels = 6;

  Error OpenMain(const char* path, int ticket_table, int pagemap, Answer& answer);
  Error Connect(Channel& channel);
  Error Hello(Channel& channel, Deadline deadline);  // connects first when it has to
  local::Request& Prepare(Channel& channel, local::RequestKind kind);
  Error Transact(Channel& channel, std::span<const int> descriptors, Deadline deadline, Answer& answer);
  Error Send(Channel& channel, std::span<const int> descriptors);
  Error Receive(Channel& channel, Deadline deadline, Answer& answer);
  ssize_t ReceiveOnce(Channel& channel, Answer& answer);
  Channel* TakeChannel(Deadline deadline);
  void Drop(Channel& channel);

  FutexMutex main_lock_;
  std::atomic<uint64_t> starts_{0};  // main connections that were made
  sockaddr_un address_{};
  Channel main_;
  std::array<Channel, kChannels> channels_{};
};

}  // namespace pmirror::interpose
