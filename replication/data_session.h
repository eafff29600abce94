// SPDX-License-Identifier: BSD-3-Clause
// The sending end of one session: the shell around Sender (sender.h, the state machine) and a Transport
// (transport.h). Used by the syncing threads of a program and by the daemon's worker threads alike.
//
// Threads: every method is thread-safe. Of several threads that wait, one reads the transport for all (leader
// and followers); a thread that sends does so itself: there is no thread of the session's own. All signals
// except synchronous faults are blocked while an internal lock is held, and unblocked while waiting, so that
// a signal handler may use the same session (trap 15). No allocation after Create().
// ---
// For maintainers: queued >= sent >= received >= durable. Loss of the connection is an *incarnation* change:
// whoever waits learns kLost, somebody reconnects through the Connector (once for all), and every waiter
// captures its ranges again under new order numbers; data frames are never resent. data_session_impl.h has
// the theory of the locks and roles.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "replication/deadline.h"
#include "replication/frame.h"
#include "replication/result.h"
#include "replication/transport.h"
#include "replication/types.h"
#include "replication/unique_fd.h"

namespace pmirror {

// How a session gets a connection: asks the local daemon (program), or the remote one (daemon).
class Connector {
 public:
  struct Connection {
    UniqueFd socket;  // connected, hello answered
    SessionId session{};
    HelloAckBody resumed{};  // what the replica already has
    uint64_t abilities = 0;  // kCan... of the hello ack
  };
  virtual ~Connector() = default;
  // session 0: a new session. `next_sequence`: of the first frame that will follow. Called with no lock of
  // the session held and signals unblocked, by one thread of a session at a time; but a signal handler that
  // interrupts the call and syncs may enter it again. The socket's TCP_USER_TIMEOUT is the connector's choice
  // (how long a silent path may cost before the next one is tried; see kDefaultPathTimeout). Errors:
  // ETIMEDOUT (not before the deadline), ESHUTDOWN (the replica left the in-sync set, or we are fenced),
  // ESTALE (the replica follows a newer primary: a sync fails at once),
  // others as connect(2).
  virtual Result<Connection> Connect(SessionId session, Sequence next_sequence, Deadline deadline) = 0;
};

// A capture under way. Registered from the first frame to the end of the wait, so that a refusal of any of
// its frames finds it. Lives on the stack of the syncing thread. Also for other frames that may be refused
// singly (a namespace operation: kNone and the operation number).
struct CaptureInFlight;

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
  std::span<const std::byte> payload;   // ranges' bytes one after the other
  std::optional<uint32_t> payload_crc;  // when the caller has it already (it copied the bytes)
  CaptureInFlight* capture = nullptr;   // when set: not sent any more once another frame of it was refused
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
  kRecapture,      // refused without fault: take a new order number, copy and send again
  kLost,           // the connection broke: Reconnect(), then capture again
  kRefused,        // the replica refused for a reason: see refusal
  kTimedOut,       // the deadline passed without the acknowledgement
  kSenderFull,     // the deadline passed while this node's own transport took no more bytes
  kPeerCongested,  // the deadline passed while the replica granted no credit
};
const char* Name(SendStatus status);

struct CaptureInFlight {
  FileId file = FileId::kNone;
  uint64_t order = 0;
  SendStatus status = SendStatus::kOk;  // kRecapture or kRefused once a frame of it was refused
  RefusalBody refusal{};
  // The connection all of it has to travel on: DataSession::Incarnation() from before the order number was taken; 0: the one of Begin().
  // A capture that a cut fell into is lost even when its last frame is acknowledged (docs/internals/capture-order.md).
  uint64_t incarnation = 0;
  // Where the answer to its kVerify goes; it is there when the frame counts as received. Null: none is asked for.
  VerifiedBody* verified = nullptr;
  ConfirmedBody* confirmed = nullptr;  // likewise, to its kConfirm
  // The session's own:
  Sequence latest =
      0;  // frame sent with it: a refusal of that sequence concerns it whatever file and order it names
  CaptureInFlight* next = nullptr;
};

struct SessionCounters {
  uint64_t frames = 0, bytes = 0, reconnects = 0;
  uint64_t sender_full = 0, peer_congested = 0;  // sends that had to wait for the one or the other
  uint64_t refusals = 0;
  uint64_t protocol_faults = 0;              // connections cut because of what the replica said
  uint64_t spins_hit = 0, spins_missed = 0;  // waits that an answer ended while spinning, and not
};

constexpr size_t kMinFrameBudget = 4096;

class DataSession {
 public:
  // `connector` must outlive the session. No connection is made yet.
  static Result<std::unique_ptr<DataSession>> Create(Connector& connector);  // over TCP
  static Result<std::unique_ptr<DataSession>> Create(Connector& connector,
                                                     std::unique_ptr<Transport> transport);
  ~DataSession();

  // Makes a connection if there is none; returns at once when there is one. Several callers: one connects,
  // the others wait for it.
  Error EnsureConnected(Deadline deadline);

  void Begin(CaptureInFlight& capture);
  void End(CaptureInFlight& capture);

  // Bytes that one frame (all parts) should not exceed, so that the replica works on one while the next is
  // sent. At least kMinFrameBudget; may change with each connection: a larger frame that can never be sent
  // gets kRecapture.
  size_t FrameBudget() const;

  // Sends one frame, waiting for credit and for room in the transport. On kOk `receipt` is set. When the
  // deadline passes with the frame half sent, the connection is cut: kLost.
  SendStatus Send(const FrameToSend& frame, Deadline deadline, Receipt& receipt);
  // Waits until the frame is received or durable at the replica. `capture` may be null (frames that cannot be
  // refused singly).
  SendStatus Await(const Receipt& receipt, WaitLevel level, const CaptureInFlight* capture,
                   Deadline deadline);

  // Highest sequence received in order so far. Grows while the replica makes progress.
  Sequence Received() const;
  // Number of the connection; grows with each one made.
  uint64_t Incarnation() const;
  // What the replica of the latest connection can (kCan...).
  uint64_t Abilities() const;
  // Highest durable operation number the replica has told (daemon sessions).
  uint64_t OperationDurable() const;
  SessionCounters counters() const;
  // Grows whenever reconnects, sender_full or peer_congested does; one atomic load.
  uint64_t Stalls() const;
  bool connected() const;
  Placement placement() const;
  // Cuts the connection; waiters get kLost. For revocation, shutdown, and the child of a fork (which must not
  // touch the peer: `silently`; requires that no other thread of the process is inside the session, and makes
  // it a new session).
  void Disconnect(bool silently = false);
  // Lets go of the connection and becomes a new session, for a peer that does not know the old one. Requires: no
  // thread is inside the session, but for Disconnect().
  void Renew();

 private:
  struct Impl;
  void Forget();
  explicit DataSession(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace pmirror
