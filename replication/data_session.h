// SPDX-License-Identifier: BSD-3-Clause
// The sending end of one session: the shell around Sender (sender.h, the state machine) and a Transport (transport.h). Used by the syncing
// threads of a program and by the daemon's worker threads alike.
//
// Threads: every method is thread-safe. Of several threads that wait, one reads the transport for all (leader and followers); a thread that
// sends does so itself: there is no thread of the session's own. All signals except synchronous faults are blocked while an internal
// lock is held, and unblocked while waiting, so that a signal handler may use the same session (trap 15). No allocation after Create().
// ---
// For maintainers: queued >= sent >= received >= durable. Loss of the connection is an *incarnation* change: whoever waits learns
// kLost, somebody reconnects through the Connector (once for all), and every waiter captures its ranges again under new order numbers; data
// frames are never resent.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "replication/deadline.h"
#include "replication/frame.h"
#include "replication/result.h"
#include "replication/unique_fd.h"

namespace pmirror {

// How a session gets a connection: asks the local daemon (program), or the remote one (daemon).
class Connector {
 public:
  struct Connection {
    UniqueFd socket;             // connected, hello answered
    SessionId session{};
    HelloAckBody resumed{};      // what the replica already has
  };
  virtual ~Connector() = default;
  // session 0: a new session. `next_sequence`: of the first frame that will follow. Called with no lock of the session held and signals
  // unblocked. Errors: ETIMEDOUT (not before the deadline), ESHUTDOWN (the replica left the in-sync set, or we are fenced), others as
  // connect(2).
  virtual Result<Connection> Connect(SessionId session, Sequence next_sequence, Deadline deadline) = 0;
};

// What one frame is sent with. Ranges and payload must stay valid until Send returns.
struct FrameToSend {
  FrameKind kind = FrameKind::kDataImage;
  uint8_t flags = 0;
  Epoch epoch{};
  SetVersion set_version{};
  FileId file = FileId::kNone;
  uint64_t order = 0;
  uint64_t size_generation = 0;
  std::span<const WireRange> ranges;
  std::span<const std::byte> payload;  // ranges' bytes one after the other
};

// Where a frame stands: valid for one incarnation of the connection only.
struct Receipt {
  Sequence sequence = 0;
  uint64_t incarnation = 0;
};

enum class WaitLevel { kReceived, kDurable };

// Outcome of sending or waiting.
enum class SendStatus {
  kOk,
  kRecapture,    // refused without fault: take a new order number, copy and send again
  kLost,         // the connection broke: Reconnect(), then capture again
  kRefused,      // the replica refused for a reason: see refusal
  kTimedOut,     // the deadline passed
  kInterrupted,  // sending from inside a signal handler that interrupted this thread's own half-sent frame
};

// A capture under way. Registered from the first frame to the end of the wait, so that a refusal of any of its frames finds it. Lives on the
// stack of the syncing thread.
struct CaptureInFlight {
  FileId file = FileId::kNone;
  uint64_t order = 0;
  SendStatus status = SendStatus::kOk;  // kRecapture or kRefused once a frame of it was refused
  RefusalBody refusal{};
  CaptureInFlight* next = nullptr;
};

struct SessionCounters {
  uint64_t frames = 0, bytes = 0, reconnects = 0, sender_full = 0, peer_congested = 0, refusals = 0;
};

class DataSession {
 public:
  // `connector` must outlive the session. No connection is made yet.
  static Result<std::unique_ptr<DataSession>> Create(Connector& connector);
  ~DataSession();

  // Makes a connection if there is none; returns at once when there is one. Several callers: one connects, the others wait for it.
  Error EnsureConnected(Deadline deadline);

  void Begin(CaptureInFlight& capture);
  void End(CaptureInFlight& capture);

  // Sends one frame, waiting for credit and for room in the transport. On kOk `receipt` is set.
  SendStatus Send(const FrameToSend& frame, Deadline deadline, Receipt& receipt);
  // Waits until the frame is received or durable at the replica. `capture` may be null (frames that cannot be refused singly).
  SendStatus Await(const Receipt& receipt, WaitLevel level, const CaptureInFlight* capture, Deadline deadline);

  // Highest durable operation number the replica has told (daemon sessions).
  uint64_t OperationDurable() const;
  SessionCounters counters() const;
  bool connected() const;
  // Cuts the connection; waiters get kLost. For revocation, shutdown, and the child of a fork (which must not touch the peer: `silently`).
  void Disconnect(bool silently = false);

 private:
  struct Impl;
  explicit DataSession(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace pmirror
