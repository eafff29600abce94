// SPDX-License-Identifier: BSD-3-Clause
// The daemon's link to one replica: connects, judges, greets, notices silence, has the copy brought back. Mirrors
// fs/replica_link.cc and fs/replica_link_resync.cc, function by function; real: Decide of fs/copy_decision.h. The resync is
// the real ResyncMachine, PlanTree and DifferingBlocks under the steps of fs/resync_runner.cc (link_resync.cc).
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "fs/copy_decision.h"
#include "recovery/mark_map.h"
#include "recovery/resync_machine.h"
#include "tests/sim/call.h"
#include "tests/sim/courier.h"
#include "tests/sim/session.h"

namespace pmirror::sim {

class Daemon;

class Link : public Connecting {
 public:
  Link(World& world, Network& network, Daemon& daemon, Replica& replica, size_t index);

  Session& session() { return session_; }
  Courier& courier() { return courier_; }
  bool in_sync() const { return in_sync_; }
  bool proven() const { return proven_; }

  Task<> Maintain();
  // The daemon's session.
  Task<Connected> Connect(SessionId session, Sequence next, Time deadline) override;
  Task<Connected> ConnectProcess(SessionId session, Sequence next, Time deadline);
  Task<int> Exchange(FrameKind kind, FileId file, uint64_t order, WaitLevel level, Time deadline);
  // The end of a mount: the replica records it.
  Task<bool> Leave();
  const char* state() const { return in_sync_ ? "in-sync" : resync_due_ ? "resyncing" : "disconnected"; }

 private:
  using Machine = recovery::ResyncMachine;

  Task<bool> Greet(Time deadline);
  Task<std::optional<Replica::CopyState>> AskCopy(Time timeout);
  fs::CopyDecision Evaluate(const Replica::CopyState& copy) const;
  Task<int> Judge(Time deadline);
  Task<Connected> Open(bool daemon, SessionId session, Sequence next, Time deadline);
  void NoteSilence(Time patience);
  void SetInSync(bool in_sync);

  Task<bool> BringBack();
  Task<bool> RunResync();
  // One step: 0 done, EAGAIN may pass, others end the resync.
  Task<int> RunStep(Machine& machine);
  Task<int> BeginStep();
  Task<int> ChangeTree();
  Task<int> JoinStep();
  Task<int> ListFiles(Machine& machine);
  Task<int> Compare(Machine& machine);
  Task<int> SendStep(Machine& machine);
  Task<int> EndStep();
  Task<int> AdoptMount(uint64_t operation);
  template <typename T>
  Task<std::optional<T>> Call(Time timeout, const AtReplica<T>& make) {
    return CallReplica<T>(world_, network_, replica_, index_, timeout, make);
  }

  World& world_;
  Network& network_;
  Daemon& daemon_;
  Replica& replica_;
  const size_t index_;
  Session session_;
  Courier courier_;

  bool in_sync_ = false;
  bool proven_ = false;
  bool took_part_ = false;
  bool is_member_ = false;
  bool resync_due_ = false;
  uint64_t demands_ = 0;
  bool resyncing_ = false;
  // Of the resync under way:
  std::optional<uint64_t> tree_as_of_;
  std::optional<uint64_t> followed_mount_;
  std::optional<uint64_t> walked_at_;
  std::map<FileId, uint64_t> regular_;
  uint64_t token_ = 0;
  bool joined_ = false;
  recovery::MarkMap::Settle settle_;
};

}  // namespace pmirror::sim
