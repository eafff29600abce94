// SPDX-License-Identifier: BSD-3-Clause
// A replica's node: disk, durable record, and the process that serves connections and calls. Real: Receiver, ApplyOrder, the
// decoding of frames and operations. Mirrors server/replica_volume*.cc (the calls carry the names they have there),
// server/replica_session.cc (Serve), server/session.cc (taking a session over) and server/data_applier.cc (Apply).
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "recovery/volume_record.h"
#include "replication/apply_order.h"
#include "replication/namespace_op.h"
#include "replication/receiver.h"
#include "tests/sim/disk.h"
#include "tests/sim/network.h"
#include "tests/sim/oracle.h"
#include "tests/sim/world.h"

namespace pmirror::sim {

class Replica {
 public:
  // `copy`: its index at the oracle.
  Replica(World& world, Network& network, Oracle& oracle, size_t index, size_t copy);

  struct CopyState {
    recovery::VolumeRecord record;
    uint64_t operation = 0;
    bool restarted = false;
    bool empty = false;
    bool refuses = false;
  };
  struct Terms {
    bool daemon = false;
    SessionId session{};
    uint64_t mount_number = 0;
    uint64_t generation = 0;
  };
  struct Permit {
    bool refused = false;      // not now, nor by asking again
    bool unavailable = false;  // ask again
    SessionId session{};
  };

  bool up() const { return process_ != nullptr; }
  Disk& disk() { return disk_; }
  const recovery::VolumeRecord& record() const { return record_; }
  Group& group();
  // Changes with each start: who waited for an answer of an earlier one waits in vain.
  uint64_t incarnation() const { return incarnation_; }

  void Start();
  void Kill();      // what the kernel holds stays
  void PowerCut();  // it does not
  void SetSlowDisk(bool slow) { slow_disk_ = slow; }

  // --- calls of the control protocol; the caller runs them in group() ---
  Task<CopyState> State();
  Task<recovery::Inventory> Inventory();
  Task<std::optional<recovery::BlockChecksums>> Checksums(FileId file, Extent extent, uint32_t block);
  Task<Permit> OpenSession(Terms terms);
  Task<uint64_t> BeginResync(uint64_t mount_number, uint64_t generation);  // token, 0: refused
  Task<bool> ChangeTree(uint64_t token, std::vector<NamespaceOp> operations);
  Task<bool> AdoptMount(uint64_t token, uint64_t operation);
  Task<bool> EndResync(uint64_t token);
  Task<bool> Leave(uint64_t mount_number, uint64_t operation);
  // A connection was accepted.
  void Accept(std::shared_ptr<Connection> connection);

 private:
  struct Held {  // server/session.h
    Held(Scheduler& loop, const Receiver::Config& config) : receiver(config), released(loop) {}
    Receiver receiver;
    std::set<uint64_t> granted;
    std::set<FileId> touched;
    std::shared_ptr<Connection> connection;
    bool ended = false;
    Signal released;
  };
  struct File {
    ApplyOrder order{8};
    bool locked = false;
  };
  struct Process {
    explicit Process(Scheduler& loop) : changed(loop) {}
    Group group;
    std::map<uint64_t, std::shared_ptr<Held>> sessions;
    std::map<FileId, File> files;
    uint64_t mount_number = 0;
    uint64_t applied = 0;
    uint64_t operation_durable = 0;
    bool restarted_in_use = false;
    bool tree_changed = false;
    Time daemon_gone_since = kForever;
    uint64_t token = 0;
    uint64_t token_mount = 0;
    bool adopted = false;
    bool control_busy = false;  // control_mutex_
    Signal changed;             // of anything here
  };
  struct Frame {
    FrameHeader header{};
    std::vector<WireRange> ranges;
    std::vector<std::byte> payload;
  };
  enum class Took { kFrame, kIncomplete, kDamaged };

  Task<> Serve(std::shared_ptr<Connection> connection);
  Task<bool> ReadFrame(const std::shared_ptr<Connection>& connection, Frame& frame);
  static Took TakeFrame(std::vector<std::byte>& bytes, Frame& frame);
  Task<std::optional<RefusalCode>> Apply(Held& held, const Frame& frame);
  Task<std::optional<RefusalCode>> ApplyData(Held& held, const Frame& frame);
  Task<std::optional<RefusalCode>> ApplyPieces(Held& held, const Frame& frame);
  Task<std::optional<RefusalCode>> ApplyOperation(const Frame& frame);
  std::optional<RefusalCode> Grant(const Frame& frame);
  Task<> Persist(Held& held);
  Task<> Flush(const std::vector<FileId>& files, bool everything);
  void Reply(const std::shared_ptr<Connection>& connection, const Held* held, FrameKind kind,
             std::span<const std::byte> body);
  void Refuse(const std::shared_ptr<Connection>& connection, const Held& held, const FrameHeader& header,
              RefusalCode code);
  Task<bool> EndSessions(bool all, SessionId but);
  Task<bool> Lock();
  void Unlock();
  void Store(const recovery::VolumeRecord& record);
  void AdoptOrders(uint64_t mount_number, uint64_t operation);
  bool DaemonIsGone() const;

  World& world_;
  Network& network_;
  Oracle& oracle_;
  const size_t index_;
  const size_t copy_;
  Disk disk_;
  recovery::VolumeRecord record_;
  uint64_t boot_ = 1;
  uint64_t incarnation_ = 0;
  uint64_t next_token_ = 1;
  uint64_t next_session_ = 1;
  bool slow_disk_ = false;
  std::unique_ptr<Process> process_;
};

}  // namespace pmirror::sim
