// SPDX-License-Identifier: BSD-3-Clause
// The primary's link to one replica: the daemon's own data session with the operations on their way, and the sessions it opens for programs.
//
// Thread-safe. Every call that waits ends at its deadline.
// ---
// For maintainers. Before each connection of the daemon's session the replica is asked what its copy is (Judge): only a copy that is known to
// lack nothing but what the log holds is connected to (copy_decision.h); another is brought back by a resync first. The link's thread connects,
// brings operations, greets and resynchronises. What a silence of the volume's deadline means is the owner's decision.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "fs/copy_decision.h"
#include "fs/event_sink.h"
#include "fs/operation_courier.h"
#include "fs/operation_log.h"
#include "fs/resync_peer.h"
#include "fs/trailer.h"
#include "proto/control_client.h"
#include "replication/data_session.h"
#include "replication/deadline.h"
#include "replication/types.h"

namespace pmirror::fs {

// The volume that a link belongs to. Called on the link's thread unless said otherwise.
class LinkOwner {
 public:
  virtual ~LinkOwner() = default;
  // The replica is in sync, after it was not.
  virtual void Recovered(size_t replica) = 0;
  // It said nothing for the deadline, or cannot take what it is sent. True: it counts no more, and has to be brought back by a resync.
  virtual bool Lost(size_t replica) = 0;
  // Its copy was found not to be good: it counts no more. Any thread.
  virtual void Unfit(size_t replica) = 0;
  // It follows a newer epoch or mount: this primary is none any more. Any thread, again and again.
  virtual void Superseded(size_t replica, const std::string& reason) = 0;
  // Brings the copy to what the primary has; blocks until it counts again, or cannot be.
  virtual absl::Status Resync(size_t replica, ResyncPeer& peer) = 0;
  // Syncs send to it. Any thread.
  virtual bool Wanted(size_t replica) = 0;
  // It is sent batches, and no operations. Any thread.
  virtual bool Trails(size_t replica) = 0;
  // False when it is sent batches and its copy is not the one that they were made for: that is at `batch`, or does not trail at all.
  virtual bool Agrees(size_t replica, bool trailing, uint64_t batch) = 0;
};

class ReplicaLink final : public Connector {
 public:
  struct Options {
    std::string volume_name;
    Uuid volume{};
    std::string primary_node;
    std::string replica_node;
    size_t index = 0;                  // of the replica: its bit in the in-sync set
    std::vector<std::string> control;  // addresses of the replica's daemon
    Epoch epoch{};
    uint64_t mount_number = 0;
    CopyHistory
        history;  // of the primary's copy when it was mounted; its generation is the one that is served
    std::chrono::nanoseconds deadline{};  // a silence shorter than this changes no state
    // It was no member when the mount began: nothing that is known of that moment says anything of its copy, which has to be brought over whole.
    bool filling = false;
  };
  enum class State { kConnecting, kInSync, kResyncing, kDisconnected, kStale, kFailed };
  struct Status {
    State state = State::kConnecting;
    std::string reason;  // of a state other than in-sync
    SessionCounters counters;
    Placement placement{};
  };

  // `log` and `events` must outlive the link.
  ReplicaLink(Options options, const OperationLog& log, EventSink& events);
  ~ReplicaLink() override;

  // Starts the thread. `owner` must outlive it.
  void Start(LinkOwner& owner);
  void Stop();

  // A resync is due although nothing says that the copies differ: of the whole tree and every file. Soon, by the thread.
  void DemandResync();
  // It cannot apply what it is sent, and the policy is to go on without it: it counts no more until a resync has succeeded.
  void Refused(int error);
  // What the thread would try at its next turn, it tries now.
  void Hurry();

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

  // It is changed by whole batches from here on, and has applied operations up to the one answered.
  absl::StatusOr<uint64_t> BeginTrailing(std::chrono::milliseconds timeout);
  // A batch, whole. kLost when nothing moves until the deadline.
  BatchCarrier::Fate ShipBatch(uint64_t number, std::span<const std::byte> batch, Deadline deadline);

  // The mount ends cleanly after operation `last`.
  absl::Status Leave(uint64_t last, std::chrono::milliseconds timeout);

  // Test bed: cuts the connection and makes none, or allows it again.
  void SetReachable(bool reachable);

  // Connector: of the daemon's own session.
  Result<Connection> Connect(SessionId session, Sequence next_sequence, Deadline deadline) override;

 private:
  static constexpr int kGreetingsPerDeadline = 4;
  // Between attempts to end calls of the control service: one that is about to begin is not there to be ended yet.
  static constexpr std::chrono::milliseconds kCancelPause{20};

  void Maintain();
  bool Greet(Deadline deadline);
  void SetState(State state, std::string reason);
  bool resync_due() const;
  bool NoteSilence(Deadline patience);
  enum class Attempt { kCounts, kNoAnswer, kFailed, kForAPerson };
  Attempt BringBack();
  Attempt FailedAttempt(const absl::Status& status, bool given_up);
  void BeginDemand(State state, std::string reason);
  void EndDemand();
  bool CountInSync();
  void SetStateLocked(State state, std::string reason);

  // The replica as the one who resynchronises it sees it.
  class Peer;
  absl::Status ConnectAnew();
  absl::Status DeliverAll();
  bool GivenUp() const;
  bool filling() const;

  struct Verdict {
    CopyDecision decision = CopyDecision::kForeign;
    bool unusable = false;  // nor can we make it usable
    bool superseded = false;
    std::string reason;
  };
  std::string RefusedReason(int error) const;
  absl::StatusOr<control::ReplicaState> AskCopy(Deadline deadline);
  Verdict Evaluate(const control::ReplicaState& replica) const;
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
  bool stale_ = false;      // it cannot be used, nor brought back by us
  bool hurry_ = false;
  bool resync_due_ = false;
  uint64_t demands_ =
      0;               // so often a resync was found to be due: one that began before does not serve the last
  int demanding_ = 0;  // threads that have found so, and are taking the replica out of the set
  bool whole_resync_ = false;  // of the one that is due: what is known of the tree does not count
  int refusal_ = 0;            // errno of data that it refused; 0: none since it counted last
  bool resyncing_ = false;     // the thread is at it
  bool filling_ = false;       // its copy has not been whole since it was added
  LinkOwner* owner_ = nullptr;
  bool ended_ = false;                      // the thread
  std::optional<uint64_t> followed_mount_;  // as ResyncPeer::FollowedMount()
  std::optional<uint64_t> tree_as_of_;      // as ResyncPeer::TreeAsOf()
  std::thread thread_;
};

const char* Name(ReplicaLink::State state);

}  // namespace pmirror::fs
