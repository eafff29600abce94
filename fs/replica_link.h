// SPDX-License-Identifier: BSD-3-Clause
// The primary's link to one replica: the daemon's own data session, the namespace operations on their way, and the sessions it opens
// for programs.
//
// Thread-safe. Operations reach the replica in the order of the log, whoever sends them; every call that waits ends at its deadline.
// ---
// For maintainers. Invariant: sent_ >= what the replica has received in this connection; operations are sent only under send_mutex_, in
// order, from sent_ + 1. A new connection sets sent_ back to what the replica says it has (Connect), so that the rest is replayed.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "fs/copy_decision.h"
#include "fs/event_sink.h"
#include "fs/operation_log.h"
#include "proto/control_client.h"
#include "replication/data_session.h"
#include "replication/deadline.h"
#include "replication/types.h"

namespace pmirror::fs {

class ReplicaLink final : public Connector {
 public:
  struct Options {
    std::string volume_name;
    Uuid volume{};
    std::string primary_node;
    std::string replica_node;
    std::vector<std::string> control;  // addresses of the replica's daemon
    Epoch epoch{};
    uint64_t mount_number = 0;
    uint64_t generation = 0;           // that this mount serves
    CopyHistory history;               // of the primary's copy when it was mounted
    std::chrono::nanoseconds deadline{};  // a silence shorter than this changes no state
  };
  enum class State { kConnecting, kInSync, kDisconnected, kStale };
  struct Status {
    State state = State::kConnecting;
    std::string reason;  // of a state other than in-sync
    SessionCounters counters;
    uint64_t operation_durable = 0;
  };

  // `log` and `events` must outlive the link. Nothing is sent before Start().
  ReplicaLink(Options options, const OperationLog& log, EventSink& events);
  ~ReplicaLink() override;

  // Starts the thread that connects, replays and greets. `reconnected` runs on it whenever the replica has everything again after
  // having lost contact: grants have to be repeated then.
  void Start(std::function<void()> reconnected);
  void Stop();

  DataSession& session() { return *session_; }
  Status status() const;

  // Brings operations up to `number` to the replica; 0 when it has received them. EIO: not before the deadline; ENOSPC, EIO: refused
  // until the deadline; ESTALE: superseded.
  int Bring(uint64_t number, Deadline deadline);

  // One frame of the daemon's own session that changes no file (grant, revoke, heartbeat, barrier), and the wait for its answer.
  int Exchange(FrameKind kind, FileId file, uint64_t order, WaitLevel level, Deadline deadline);

  // A connection for a program's session, hello answered. Session 0: a new one.
  Result<Connector::Connection> ConnectProcess(const std::string& process, SessionId session, Sequence next_sequence,
                                               Deadline deadline);

  // Test bed: cuts the connection and makes none, or allows it again.
  void SetReachable(bool reachable);

  // Connector: of the daemon's own session.
  Result<Connection> Connect(SessionId session, Sequence next_sequence, Deadline deadline) override;

 private:
  struct Granted;
  void Maintain();
  bool Greet();
  void SetState(State state, std::string reason);
  Result<Connection> ConnectOnce(const std::string& process, SessionId session, Sequence next_sequence, Deadline deadline);
  Error Judge(const control::ReplicaState& replica);
  SendStatus SendThrough(uint64_t number, Deadline deadline, Receipt& receipt, CaptureInFlight& capture);

  const Options options_;
  const OperationLog& log_;
  EventSink& events_;
  proto::ControlClient control_;
  std::unique_ptr<DataSession> session_;

  std::timed_mutex send_mutex_;
  std::atomic<uint64_t> sent_{0};  // raised under send_mutex_; set back by Connect

  mutable std::mutex mutex_;
  std::condition_variable wake_;  // with mutex_: stopping_, reachable_
  Status status_;                 // guarded by mutex_
  bool stopping_ = false;         // guarded by mutex_
  bool reachable_ = true;         // guarded by mutex_
  bool took_part_ = false;        // guarded by mutex_: it was in sync in this mount
  std::function<void()> reconnected_;
  std::thread thread_;
};

const char* Name(ReplicaLink::State state);

}  // namespace pmirror::fs
