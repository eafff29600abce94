// SPDX-License-Identifier: BSD-3-Clause
// What carries the bytes of one connection's frames: a socket (tcp_transport.h), later queue pairs. An
// interface of the code that uses it, DataSession; it moves bytes without waiting and knows no frames.
//
// Threads: at any moment at most one call of Send, one of Receive and any number of Wait; Attach excludes
// Send and Receive; Shutdown comes at any time. All calls are async-signal-safe and without allocation, none
// is a cancellation point.
// ---
// For maintainers: a transport with registered memory (verbs) needs three things more, and this is their
// place: the memory that payloads are sent from, told once before the first Send (StagingPool's buffers);
// with each Send whether a completion is wanted (the last frame of a capture, so that completions are
// selective); and Wait on a completion channel, which is a descriptor as well. Placement tells the sender
// what an acknowledgement costs.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "replication/deadline.h"
#include "replication/result.h"
#include "replication/signal_guard.h"
#include "replication/unique_fd.h"

namespace pmirror {

// How a frame gets to its place on the replica (DESIGN: data protocol).
enum class Placement : uint8_t {
  kMessage,  // it arrives in a receive buffer; the replica's CPU copies, persists, acknowledges
};
const char* Name(Placement placement);

// What one nonblocking call moved. error: 0; EAGAIN when nothing can be moved now; ECONNRESET when the peer
// closed; otherwise the errno that ended the connection.
struct IoResult {
  size_t bytes = 0;
  int error = 0;
};

struct Readiness {
  bool readable = false;
  bool writable = false;
};

class Transport {
 public:
  virtual ~Transport() = default;

  // Takes a connected socket, in place of the one it had. Descriptors that Wait uses stay valid: a waiter of
  // the connection that is replaced wakes up, or waits for the new one.
  virtual Error Attach(UniqueFd connection) = 0;

  // Sends the bytes of `parts` from position `skip` on; may send fewer than all.
  virtual IoResult Send(std::span<const iovec> parts, size_t skip) = 0;
  // Requires: !room.empty().
  virtual IoResult Receive(std::span<std::byte> room) = 0;
  // Waits until one of `wanted` holds, the connection ends (both hold then), a signal was handled, or the
  // deadline passes. `mask` holds for the duration of the wait.
  virtual Readiness Wait(Readiness wanted, Deadline deadline, const KernelSignalMask& mask) = 0;

  // Ends the connection in both directions; the peer learns it, and whoever waits wakes up.
  virtual void Shutdown() = 0;
  // Lets go of the connection without a word to the peer (the child of a fork).
  virtual void Abandon() = 0;

  virtual Placement placement() const = 0;
};

}  // namespace pmirror
