// SPDX-License-Identifier: BSD-3-Clause
// One run: the primary's node, the replicas, what goes wrong, and the judgement at the end.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "tests/sim/daemon.h"
#include "tests/sim/network.h"
#include "tests/sim/oracle.h"
#include "tests/sim/program.h"
#include "tests/sim/replica.h"
#include "tests/sim/world.h"

namespace pmirror::sim {

class Node {
 public:
  explicit Node(const Settings& settings);
  ~Node();

  // Empty: nothing went wrong; otherwise what the oracle says.
  std::string Run();

  // --- for programs ---
  Daemon* daemon() { return daemon_.get(); }
  Disk& disk() { return primary_.disk; }
  uint64_t mounts() const { return mounts_; }

  World& world() { return world_; }
  uint64_t acknowledged() const { return oracle_.acknowledged(); }
  uint64_t resyncs() const { return resyncs_; }
  // With Settings::only_cut: it has happened; and the messages until then, or until everything was healed.
  bool cut() const { return cut_; }
  uint64_t troubled_messages() const { return troubled_messages_; }

 private:
  Task<> SetUp();
  Task<> Faults();
  Task<> Fault();
  Task<> Silence(size_t replica, bool to, bool from, Time duration);
  Task<> RestartReplica(size_t replica, bool power);
  Task<> RestartDaemon(bool power);
  Task<> LeaveAndMount();
  Task<> RestartProgram();
  Task<> FullDisk(size_t replica);
  void Mount();
  void KillDaemon();
  void KillProgram(size_t index);
  void StartProgram(size_t index);
  void Heal();
  bool Quiet() const;
  std::string Compare();

  World world_;
  Network network_;
  Oracle oracle_;
  PrimaryNode primary_;
  std::vector<std::unique_ptr<Replica>> replicas_;
  std::unique_ptr<Daemon> daemon_;
  std::vector<std::unique_ptr<Program>> programs_;
  uint64_t mounts_ = 0;
  uint64_t resyncs_ = 0;
  bool healing_ = false;
  bool cut_ = false;
  uint64_t troubled_messages_ = 0;
  bool primary_busy_ = false;  // a fault of the node or its daemon is under way
  std::vector<bool> replica_busy_;
  Group group_;
};

// The settings of a seed: what policy, how many replicas.
Settings SettingsOf(uint64_t seed);

}  // namespace pmirror::sim
