// SPDX-License-Identifier: BSD-3-Clause
// The primary's daemon of one mount. Mirrors fs/volume_replicator*.cc (the functions carry the names they have there),
// fs/file_state.cc, fs/foreign_capture.cc (Take), fs/in_sync_set.cc and what fs/primary_volume.cc does around them. Real:
// OperationLog, ExtentSet, MarkMap.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "fs/copy_decision.h"
#include "fs/extent_set.h"
#include "fs/operation_log.h"
#include "recovery/mark_map.h"
#include "recovery/object_id.h"
#include "tests/sim/link.h"
#include "tests/sim/oracle.h"
#include "tests/sim/sync.h"
#include "tests/unit/recovery/forgetful_storage.h"

namespace pmirror::sim {

class Program;

// What outlives a daemon.
struct PrimaryNode {
  explicit PrimaryNode(World& world) : disk(world), storage(std::make_unique<recovery::ForgetfulStorage>()) {}
  Disk disk;
  fs::CopyHistory record;  // durable
  std::unique_ptr<recovery::ForgetfulStorage> storage;
  Time booted = 0;
};

class Daemon {
 public:
  Daemon(World& world, Network& network, Oracle& oracle, PrimaryNode& node, std::vector<Replica*> replicas);
  ~Daemon();

  // --- requests of programs; they run in group() ---
  Task<int> Create(std::string name);
  Task<int> Unlink(std::string name);
  Task<int> Rename(std::string from, std::string to);
  Task<int> Truncate(FileId file, uint64_t size);
  Task<int> Write(FileId file, uint64_t word);  // a WRITE request of one word
  Task<int> Fsync(FileId file);
  Task<int> SyncOthers(FileId file, Extent range, const Program* asking);
  Task<int> Map(FileId file, Program* program, uint64_t serial);
  Task<Connected> OpenSession(size_t replica, Program* program, SessionId session, Sequence next,
                              Time deadline);
  // It is gone: what it had mapped is in doubt.
  void ProcessEnded(Program* program, uint64_t serial);
  // The clean end of a mount. True: every replica that counts has recorded it, and so has this node.
  Task<bool> Leave();

  Group& group() { return group_; }
  SharedVolume& shared() { return *shared_; }
  std::shared_ptr<SharedVolume> shared_volume() { return shared_; }
  SharedVolume::File& Slot(FileId file);
  bool AllInSync() const;
  bool Settled() const { return unsettled_.empty(); }

 private:
  friend class Link;
  struct FileState {
    fs::ExtentSet dirty;
    std::map<uint64_t, fs::ExtentSet> under_way;
    uint64_t captures = 0;
    uint64_t changes = 0;
    uint64_t durable_changes = 0;
    int flag_reasons = 0;
    bool size_locked = false;
    int handles = 0;  // WRITE requests under way: each opens the file for itself
    bool marked = false;
    bool gone = false;
    std::vector<Program*> mappers;
  };
  class Capture;

  FileState& State(FileId file) { return files_[file]; }
  void UpdateFlag(FileId file);
  void Hold(FileId file, Extent extent);
  bool InUse(FileId file) const;
  bool Marked(FileId file, bool was_in_use);
  Task<int> AwaitOperation(uint64_t number, bool own);
  Task<int> Change(NamespaceOp& op, const std::function<void()>& told);
  uint64_t LastOperationOf(FileId file);
  Task<int> TrySend(FileId file, Capture& capture, WaitLevel level, bool local, bool own);
  Task<int> Send(FileId file, Capture& capture, WaitLevel level, bool local);
  Task<int> CaptureAndSync(FileId file, Extent range, const Program* asking, bool local);
  void Take(FileId file, Extent range, const Program* except, fs::ExtentSet& taken);
  Task<int> SendTo(size_t replica, FileId file, Extent extent);
  Task<int> Barrier(bool own);
  Task<> Converge();
  Task<bool> ConvergeOnce();
  Task<> Settle();
  recovery::MarkMap::Settle BeginSettle();
  Task<bool> Resynced(size_t replica, const recovery::MarkMap::Settle& settle);
  Task<> SyncBacking();
  bool WantedConnected() const;
  void Trim();
  void Keep(FileId file);
  std::vector<Session*> Sessions();
  Sync::Terms TermsOf(FileId file);
  FileId NewId() { return recovery::ObjectId(mount_number_, next_id_++); }

  // the in-sync set
  uint8_t Bit(size_t replica) const { return static_cast<uint8_t>(1U << replica); }
  bool SetLeave(size_t replica);
  void SetJoin(size_t replica);
  bool SetAdmit(size_t replica);
  bool Wanted(size_t replica) const;
  bool Member(size_t replica) const { return (shared_->set().members() & Bit(replica)) != 0; }
  void Unfit(size_t replica) { SetLeave(replica); }
  bool Lost(size_t replica);
  Task<> Recovered(size_t replica);

  World& world_;
  Network& network_;
  Oracle& oracle_;
  PrimaryNode& node_;
  fs::CopyHistory history_;  // as the mount found it
  uint64_t mount_number_ = 0;
  uint64_t next_id_ = 2;
  fs::OperationLog log_;
  std::shared_ptr<SharedVolume> shared_;
  std::unique_ptr<recovery::MarkMap> marks_;
  recovery::MarkMap::Settle as_mounted_;
  std::map<FileId, FileState> files_;
  std::map<FileId, bool> unsettled_;
  std::map<uint64_t, bool> ended_;  // programs, by serial
  Signal wake_;
  bool leaving_ = false;
  std::vector<std::unique_ptr<Link>> links_;
  Group group_;
};

}  // namespace pmirror::sim
