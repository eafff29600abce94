// SPDX-License-Identifier: BSD-3-Clause
// The engine of a primary: gives what the file system, plain programs and the programs' registry report its place in the one order, brings
// it to the replicas, and waits as the volume's policy says. Implements Replicator, and the freezing that verify needs.
//
// Thread-safe. Every wait ends by the volume's policy (deadline, then suspend or fail: promise P6), or at once when the waiting program is
// being killed.
// ---
// For maintainers. Lock order: the gate, a file's size mutex, namespace_mutex_, a file's capture mutex, files_mutex_, FileState's own. None is
// held across a wait for a replica but the gate and the size mutex: the first only lets verify in later, the second keeps the size generation
// odd until the operation has arrived, so that no frame of the daemon overtakes it on its own session.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "absl/status/status.h"

#include "fs/confirmation.h"
#include "fs/event_sink.h"
#include "fs/file_state.h"
#include "fs/foreign_stores.h"
#include "fs/freeze_gate.h"
#include "fs/operation_courier.h"
#include "fs/operation_log.h"
#include "fs/replicator.h"
#include "fs/sync_rounds.h"
#include "fs/trailer.h"
#include "fs/volume_page_owner.h"
#include "recovery/mark_map.h"
#include "recovery/tree_item.h"
#include "replication/replicate.h"
#include "replication/staging.h"

namespace pmirror::fs {

// The way to one replica: what a ReplicaLink keeps connected.
struct ReplicaPath {
  DataSession* session = nullptr;
  OperationCourier* operations = nullptr;
};

class VolumeReplicator final : public Replicator, private SyncObserver {
 public:
  struct Options {
    std::string volume_name;
    uint64_t mount_number = 0;
    recovery::MarkMap* marks = nullptr;  // null: nothing is recorded, which suits tests only
    // The policy is to go on, and this replica refuses what it is sent. Any thread.
    std::function<void(size_t replica, int error)> refused = [](size_t, int) {};
    // See fs/confirmation.h.
    std::chrono::nanoseconds confirm_patience = kConfirmPatience;
    // Makes the whole backing directory durable; 0 or an errno.
    std::function<int()> sync_backing = [] { return 0; };
  };
  struct Counters {
    uint64_t syncs = 0;       // acknowledged ones, of the daemon itself
    uint64_t suspended = 0;   // waiting now beyond the deadline
    uint64_t recaptures = 0;  // captures that had to be taken again
  };

  // All references must outlive the engine, what `replicas` point to as well; `log` is that of the couriers; `replicas` are in the order of the
  // set's bits. Needs Start() to converge by itself after a loss.
  VolumeReplicator(Options options, VolumePageOwner& page, OperationLog& log,
                   std::span<const ReplicaPath> replicas, StagingPool& staging, EventSink& events);
  ~VolumeReplicator() override;

  // What programs store through mappings. Before the first request; without it there are no such programs.
  void UseForeignStores(ForeignStores* stores) { stores_ = stores; }

  // A replica more. Before the page configures it, and once for each index.
  void AddReplica(size_t replica, const ReplicaPath& path);

  // Replicas may trail. Before the first request; both must outlive the engine.
  void UseTrailer(Trailer& trailer, CaptureOutlet outlet);

  // The thread that brings over what a failure, or a program that ended, left dirty.
  void Start();
  void Stop();
  // Something has changed that may let it succeed now.
  void Wake();

  // --- Replicator ---
  int Change(LocalChange local_change) override;
  int ChangeSize(ReplicatedFile& replicated, LocalChange local_change) override;
  std::shared_ptr<ReplicatedFile> Attach(FileId id, int backing_fd) override;
  int BeforeWriting(ReplicatedFile& file) override;
  void BeginWrite(ReplicatedFile* file) override;
  void EndWrite(ReplicatedFile* file) override;
  int Written(ReplicatedFile& file, Extent extent) override;
  int WrittenDurably(ReplicatedFile& file, Extent extent, LocalSync local_sync) override;
  int Sync(ReplicatedFile& replicated, bool data_only, LocalSync local_sync) override;
  int SyncTree(LocalSync local_sync) override;
  int SyncVolume(LocalSync local_sync) override;
  FileId NewId() override;
  void Adopted(FileId parent, const char* name, FileId id) override;

  // --- the programs' registry ---
  int SyncOthers(FileState& file, Extent range, ProcessSerial asking);
  int SyncAll(ProcessSerial asking);
  // The volume keeps the extents dirty and brings them over soon.
  void Hold(const std::shared_ptr<FileState>& file, std::span<const Extent> extents);
  // Likewise what may have been stored to: compared by checksums first, so that only what differs is sent.
  void HoldDoubtful(const std::shared_ptr<FileState>& file, Extent extent);
  // A program's sync of the file was refused: the volume takes over what programs hold dirty of it, and repeats that until it succeeds.
  void TakeOver(FileId id);

  // --- resync ---
  // Runs `look` while nothing changes the tree; tells it the number of the last operation.
  void WithTreeAtRest(absl::FunctionRef<void(uint64_t last)> look);
  // Adds the volume's objects that have no name any more and are still open. Within WithTreeAtRest.
  void AddOrphans(recovery::Inventory& inventory) const;
  // Brings what the file holds in `extent` to that replica alone; returns when it has it, or is neither member nor joiner.
  int SendTo(size_t replica, FileState& file, Extent extent);
  // Null when nothing is recorded.
  recovery::MarkMap* marks() { return options_.marks; }
  uint64_t last_operation() const { return log_.last(); }
  // Of the log: what comes behind `last` stays for the replica, whose tree is made as of then, until it takes operations.
  void KeepOperations(size_t replica, uint64_t last) { log_.Keep(replica, last); }
  void ReleaseOperations(size_t replica) { log_.Release(replica); }
  uint64_t mount_number() const { return options_.mount_number; }
  recovery::MarkMap::Settle BeginSettle();
  // The replica holds, durably, what ours held at some moment since the settle began: what was marked before is so no more.
  absl::Status Resynced(size_t replica, const recovery::MarkMap::Settle& settle);
  // Of files marked for the replica, about.
  uint64_t MarkedBytes(size_t replica) const;

  // --- verify ---
  FreezeGate& gate() { return gate_; }
  // Of a file that is open or dirty; null: nothing of it can be dirty.
  std::shared_ptr<FileState> Find(FileId id) const;
  // False only when at some moment during the call everything stored to the range, by whatever way, was with everybody whom syncs ask for.
  bool Dirty(FileState& file, Extent range);
  // Brings over what anybody has stored to the range and not synced: as a sync of others would, but it is the volume's own, that is told to
  // nobody and given up at the deadline.
  int BringOver(FileState& file, Extent range);
  // 0 when the replica has applied every operation on the tree that was done before the call.
  int DeliverTree(size_t replica, Deadline deadline);

  Counters counters() const;
  uint64_t dirty_bytes() const;
  // Grows while programs write or sync.
  uint64_t activity() const;
  // Why the replica last refused data, while some of that is not there yet; 0: nothing is refused.
  int refusal(size_t replica) const { return refusals_[replica]; }

 private:
  void Suspended(FileId file) override;
  void Resumed(FileId file) override;
  void Failed(FileId file, int error) override;
  void Recaptured() override;
  void Refused(size_t replica, int error) override;
  int Interrupted(bool suspended) override;
  int InterruptedByOwnSignal();

  // For whom bytes are sent: a caller that waits as the policy says, or nobody, when the volume brings over by itself what is dirty.
  enum class Sender { kCaller, kVolume };
  // Waits of the volume itself: told to nobody, given up at the deadline and when the volume is left.
  class OwnWaits : public SyncObserver {
   public:
    explicit OwnWaits(VolumeReplicator& owner) : owner_(owner) {}
    void Suspended(FileId) override {}
    void Resumed(FileId) override {}
    void Failed(FileId, int) override {}
    void Recaptured() override { owner_.Recaptured(); }
    void Refused(size_t replica, int error) override { owner_.Refused(replica, error); }
    int Interrupted(bool suspended) override;

   private:
    VolumeReplicator& owner_;
  };

  int AwaitOperation(uint64_t number, Sender sender = Sender::kCaller);
  uint64_t LastOperationOf(FileState& file);
  int MakeRoom();
  int MakeRoomByShipping();
  uint64_t Append(NamespaceOp& op);
  void NoteOrphans(const NamespaceOp& op);
  void DropIfGone(const NamespaceOp& op);
  int SendWritten(FileState& file, Extent extent, WaitLevel level, LocalPersist* local);
  int Send(FileState& file, FileState::Capture& capture, WaitLevel level, LocalPersist* local);
  int TrySend(FileState& file, FileState::Capture& capture, WaitLevel level, LocalPersist* local,
              Sender sender);
  int CaptureAndSync(FileState& file, Extent range, ProcessSerial asking, LocalPersist* local);
  // R4, up to the capture: takes over what others have dirty of the range.
  ExtentSet TakeOthers(FileState& file, Extent range, ProcessSerial asking);
  int Barrier();
  void Trim();
  void TrimTo(uint8_t replicas);
  bool Proceeds() const;
  bool WantedConnected() const;
  std::vector<std::shared_ptr<FileState>> AllFiles() const;
  void Keep(FileState& file);
  void Converge();
  void Settle();
  bool ConvergeOnce();
  void NoteConvergeError(const FileState& file, int error);

  const Options options_;
  VolumePageOwner& page_;
  OperationLog& log_;
  // By the bits of the set. An entry is written before its bit is set anywhere, and never again.
  std::array<OperationCourier*, kMaxReplicas> couriers_{};
  std::array<DataSession*, kMaxReplicas> sessions_{};
  StagingPool& staging_;
  EventSink& events_;
  OwnWaits own_waits_{*this};
  Replication replication_;
  Replication own_replication_;
  std::atomic<ForeignStores*> stores_{nullptr};
  Trailer* trailer_ = nullptr;  // null: no replica ever trails

  FreezeGate gate_;
  std::mutex namespace_mutex_;
  SyncRounds tree_rounds_;
  std::map<FileId, uint32_t> orphans_;  // guarded by namespace_mutex_; id -> mode, 0 where not known
  std::atomic<uint64_t> next_id_{1};
  std::atomic<uint64_t> syncs_{0};
  std::atomic<uint64_t> suspended_{0};
  std::atomic<uint64_t> recaptures_{0};
  std::array<std::atomic<int>, kMaxReplicas> refusals_{};
  std::atomic<uint64_t> changes_{0};          // data that reached the replicas without being durable there
  std::atomic<uint64_t> durable_changes_{0};  // of them settled by a barrier

  const std::shared_ptr<KnownSizes> sizes_ = std::make_shared<KnownSizes>();
  mutable std::mutex files_mutex_;
  static constexpr size_t kFirstSweep = 256;
  std::map<FileId, std::weak_ptr<FileState>> files_;  // guarded by files_mutex_
  size_t next_sweep_ = kFirstSweep;                   // guarded by files_mutex_
  std::map<FileId, std::shared_ptr<FileState>>
      unsettled_;  // guarded by files_mutex_: dirty, whether open or not

  int converge_error_ = 0;  // of the converger: what was logged last
  std::mutex converge_mutex_;
  std::condition_variable converge_wake_;
  bool stopping_ = false;  // guarded by converge_mutex_
  uint64_t wakes_ = 0;     // guarded by converge_mutex_
  std::thread converger_;
};

}  // namespace pmirror::fs
