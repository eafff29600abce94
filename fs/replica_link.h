// SPDX-License-Identifier: BSD-3-Clause
// The primary's link to one replica: the daemon's own data session with the operations on their way, and the sessions it opens for programs.
//
// Thread-safe. Every call that waits ends at its deadline.
// ---
// For maintainers. Before each connection of the daemon's session the replica is asked what its copy is (Judge): only a copy that is known to
// lack nothing but what the log holds is connected to (copy_decision.h). The link's thread connects, brings operations, and greets;
// a replica that was silent for the volume's deadline is `disconnected`, which changes what status says and nothing else.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "fs/copy_decision.h"
#include "fs/event_sink.h"
#include "fs/operation_courier.h"
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
    CopyHistory
        history;  // of the primary's copy when it was mounted; its generation is the one that is served
    std::chrono::nanoseconds deadline{};  // a silence shorter than this changes no state
  };
  enum class State { kConnecting, kInSync, kDisconnected, kStale, kFailed };
  struct Status {
    State state = State::kConnecting;
    std::string reason;  // of a state other than in-sync
    SessionCounters counters;
    Placement placement{};
  };

  // `log` and `events` must outlive the link.
  ReplicaLink(Options options, const OperationLog& log, EventSink& events);
  ~ReplicaLink() override;

  // Starts the thread. `recovered` runs on it whenever the replica is in sync again after it was not.
  void Start(std::function<void()> recovered);
  void Stop();

  DataSession& session() { return *session_; }
  OperationCourier& operations() { return *courier_; }
  const std::string& node() const { return options_.replica_node; }
  const std::vector<std::string>& control() const { return options_.control; }
  Status status() const;

  // A frame of the daemon's own session that changes no file (grant, revoke, heartbeat, barrier), and the wait for its answer. 0; EIO: none
  // before the deadline; EACCES: refused.
  int Exchange(FrameKind kind, FileId file, uint64_t order, WaitLevel level, Deadline deadline);

  // A connection for a program's session, hello answered. Session 0: a new one. Errors as Connect.
  Result<Connection> ConnectProcess(const std::string& process, SessionId session, Sequence next_sequence,
                                    Deadline deadline);

  // The mount ends cleanly after operation `last`.
  absl::Status Leave(uint64_t last, std::chrono::milliseconds timeout);

  // Test bed: cuts the connection and makes none, or allows it again.
  void SetReachable(bool reachable);

  // Connector: of the daemon's own session.
  Result<Connection> Connect(SessionId session, Sequence next_sequence, Deadline deadline) override;

 private:
  void Maintain();
  bool Greet(Deadline deadline);
  void SetState(State state, std::string reason);
  bool reachable() const;
  Error Judge(Deadline deadline);
  Result<Connection> Open(bool daemon, const std::string& process, SessionId session, Sequence next_sequence,
                          Deadline deadline);

  const Options options_;
  const OperationLog& log_;
  EventSink& events_;
  proto::ControlClient control_;
  std::unique_ptr<DataSession> session_;
  std::unique_ptr<OperationCourier> courier_;
  std::atomic<size_t> path_{0};  // data address that is tried first

  mutable std::mutex mutex_;
  std::condition_variable wake_;  // with mutex_
  Status status_;                 // guarded by mutex_, as all below
  bool stopping_ = false;
  bool reachable_ = true;
  bool took_part_ = false;  // its copy was judged good in this mount
  bool is_member_ = false;  // it has recorded this mount
  bool stale_ = false;      // it was judged not to be
  std::function<void()> recovered_;
  std::thread thread_;
};

const char* Name(ReplicaLink::State state);

}  // namespace pmirror::fs
