// SPDX-License-Identifier: BSD-3-Clause
// A volume on the node that is its primary: takes up the copy where the last mount left it, mounts it, and keeps its replicas in sync until
// it is left.
//
// Thread-safe between Mount() and Leave().
// ---
// For maintainers. What survives: the record of the copy (recovery/volume_record.h) says `unclean` and the new mount number before the first
// replica is contacted, and `clean` only after every replica has said so of its own copy.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "fs/background_check.h"
#include "fs/client_volume.h"
#include "fs/copy_findings.h"
#include "fs/fuse_session.h"
#include "fs/in_sync_set.h"
#include "fs/replica_link.h"
#include "fs/resync_runner.h"
#include "fs/trailer.h"
#include "fs/volume_replicator.h"
#include "proto/control.pb.h"
#include "recovery/verifier.h"
#include "recovery/volume_record.h"
#include "replication/rpo.h"

namespace pmirror::fs {

class PrimaryVolume final : public ClientVolume,
                            public recovery::Freezer,
                            private LinkOwner,
                            private BatchCarrier {
 public:
  struct Replica {
    std::string node;
    std::vector<std::string> control;  // addresses of its daemon
    std::optional<Rpo> rpo{};          // none: every sync waits for it
    bool filling = false;              // its copy has never been whole: no sync needs it before it is
  };
  struct Options {
    std::string name;
    Uuid uuid{};
    std::string node;     // this one
    std::string backing;  // directory
    std::string mount;    // directory
    std::string socket;   // of the local protocol, for the mount's source
    std::string state_directory;
    std::vector<Replica> replicas;  // bit i of the in-sync set is the i-th
    OnLoss on_loss = OnLoss::kSuspend;
    std::chrono::nanoseconds deadline{};
    std::chrono::nanoseconds suspend{};
    Domain domain = Domain::kFile;
    // The copy of a replica that was filling is whole; records that, durably. On the link's thread. After an error it is asked again when the replica
    // counts the next time.
    std::function<absl::Status(const std::string& node)> filled = [](const std::string&) {
      return absl::OkStatus();
    };
    std::chrono::nanoseconds check{};  // period of the background check; 0: there is none
  };

  // Opens the copy and mounts it. `oracle` and `events` must outlive the volume. Nothing is mounted after an error, which names the directory
  // and the remedy.
  static absl::StatusOr<std::unique_ptr<PrimaryVolume>> Mount(Options options, const OpenOracle& oracle,
                                                              EventSink& events);
  // Without grace: programs are cut off, the copy stays recorded as unclean unless Leave() succeeded.
  ~PrimaryVolume() override;

  // Leaves the mount; programs that do not leave it before the deadline are cut off.
  void Unmount(Deadline deadline);
  // After Unmount and the end of the programs' registry: brings everything over and parts from the replicas cleanly. `writing`: so many programs
  // live on that can store to the backing files, unseen. An error says why the copies cannot be called equal: the next mount then compares
  // them.
  absl::Status Leave(size_t writing);

  // --- for the control service ---
  struct ProgramCounters {
    uint64_t processes = 0;
    uint64_t syncs = 0;
  };
  void FillStatus(control::VolumeStatus& status, const ProgramCounters& programs);
  absl::Status Ping(const std::string& node, control::PingReply& reply);
  void SetReachable(const std::string& node, bool reachable);
  // A complete comparison with the copy of that node has ended.
  void NoteVerified(const std::string& node, const recovery::VerifyResult& result);
  // Begins a resync soon; `full`: also of copies that count as in sync. `node` empty: of every replica. kNotFound: no copy there;
  // kFailedPrecondition: it is this node.
  absl::Status Resync(const std::string& node, bool full);

  // --- members (docs/internals/volumes.md) ---
  // A replica more, which is filled beside the running programs: Options::filled tells when that has been done. kAlreadyExists; kResourceExhausted:
  // every place has been used in this mount; kFailedPrecondition: it has an RPO, and no other replica of this mount has; what the map of marks says.
  absl::Status AddReplica(Replica replica);
  // It leaves the volume: nobody waits for it or sends to it any more. kNotFound.
  absl::Status RemoveReplica(const std::string& node);
  // Those whose copies count as whole, or did.
  std::vector<std::string> RequiredNodes() const;
  // "in-sync" and so on, as in FillStatus; empty: no such replica.
  std::string StateOfReplica(const std::string& node) const;

  // --- recovery::Freezer ---
  absl::Status Freeze() override;
  void Thaw() override;
  absl::Status Flush(FileId file, Extent extent) override;
  absl::StatusOr<std::vector<bool>> Dirty(FileId file, std::span<const Extent> ranges) override;

  // --- ClientVolume ---
  const std::string& name() const override { return options_.name; }
  const Uuid& uuid() const override { return options_.uuid; }
  dev_t mount_device() const override { return mount_device_; }
  dev_t backing_device() const override { return root_->device(); }
  int page_fd() const override { return page_->fd(); }
  void Listen(PageListener& listener) override { page_->Listen(listener); }
  void StopListening(PageListener& listener) override { page_->StopListening(listener); }
  size_t replica_count() const override { return kMaxReplicas; }
  FileSystem& file_system() override { return *file_system_; }
  void UseForeignStores(ForeignStores& stores) override { replicator_->UseForeignStores(&stores); }
  SharedParts PartsOf(const ReplicatedFile& file) const override;
  Result<Connector::Connection> OpenSession(size_t replica, const std::string& process, SessionId session,
                                            Sequence next_sequence, Deadline deadline) override;
  int Grant(size_t replica, SessionId session, FileId file, Deadline deadline) override;
  void EndSession(size_t replica, SessionId session) override;
  void SetWritingMappers(ReplicatedFile& file, size_t processes) override;
  void HoldDirty(const std::shared_ptr<ReplicatedFile>& file, std::span<const Extent> extents) override;
  void HoldDoubtful(const std::shared_ptr<ReplicatedFile>& file, Extent extent) override;
  int SyncOthers(const std::shared_ptr<ReplicatedFile>& file, Extent range, ProcessSerial asking,
                 Deadline deadline) override;
  int SyncAll(ProcessSerial asking, Deadline deadline) override;
  void Report(pid_t pid, local::ReportKind kind, FileId file, uint64_t value) override;
  absl::StatusOr<CaptureLogParts> OpenCaptureLog(ProcessSerial program) override;
  void CloseCaptureLog(ProcessSerial program) override;

 private:
  PrimaryVolume(Options options, EventSink& events) : options_(std::move(options)), events_(events) {}
  absl::Status OpenCopy();
  absl::Status TakeUp();
  absl::Status OpenMarks();
  absl::Status Start(const OpenOracle& oracle);
  ReplicaPath MakeLink(size_t replica, const Replica& described);
  void MakeRunner(size_t replica);
  ReplicaLink* Find(const std::string& node) const;
  bool AllInSync() const;
  void NoteFilled(size_t replica);
  // Calls function(index, link) for each that the volume has.
  template <typename Function>
  void ForEachLink(Function function) const {
    ForEach(static_cast<ReplicaMask>(page_->page().configured.load(std::memory_order_acquire)),
            [&](size_t replica) { function(replica, *links_[replica]); });
  }

  void Recovered(size_t replica) override;
  bool Lost(size_t replica) override;
  void Unfit(size_t replica) override;
  void Superseded(size_t replica, const std::string& reason) override;
  absl::Status Resync(size_t replica, ResyncPeer& peer) override;
  bool Wanted(size_t replica) override { return set_->Wanted(replica); }
  bool Trails(size_t replica) override { return set_->trailing(replica); }
  bool Agrees(size_t replica, bool trailing, uint64_t batch) override;
  Fate Ship(size_t replica, uint64_t number, std::span<const std::byte> batch, Deadline deadline) override;
  void TrailEnded(size_t replica, Fate why) override;
  void LagMoved(size_t replica, bool beyond) override;
  absl::Status MakeTrailer();
  void BeginTrail(size_t replica);
  absl::Status FlushTrail(Deadline deadline);
  void MakeFindings();
  void StartCheck();
  void FillTrail(size_t replica, control::ReplicaStatus& status) const;
  EventSink::Fields RedundancyOf(size_t replica) const;
  int SyncBacking() const;

  const Options options_;
  EventSink& events_;
  const std::string record_path_ = options_.state_directory + "/" + options_.name + ".copy";
  const std::string marks_path_ = options_.state_directory + "/" + options_.name + ".marks";
  recovery::VolumeRecord record_;
  CopyHistory history_;
  dev_t mount_device_ = 0;

  // In the order of their making; each uses those above it.
  std::unique_ptr<BackingRoot> root_;
  std::unique_ptr<recovery::MarkMap> marks_;
  recovery::MarkMap::Settle as_mounted_;                  // what was marked by earlier mounts
  std::array<std::atomic<bool>, kMaxReplicas> proven_{};  // its marks of earlier mounts are settled
  OperationLog log_;
  std::unique_ptr<VolumePageOwner> page_;
  std::unique_ptr<InSyncSet> set_;
  std::unique_ptr<StagingPool> staging_;
  // By the bits of the set. Made once, before the page configures it, and there until the end.
  std::array<std::unique_ptr<ReplicaLink>, kMaxReplicas> links_;
  std::unique_ptr<Cutter> cutter_;                            // null: no replica ever trails
  std::unique_ptr<Trailer> trailer_;                          // likewise
  std::array<std::atomic<bool>, kMaxReplicas> trail_full_{};  // it has no room for the batch that is its turn
  std::unique_ptr<VolumeReplicator> replicator_;
  std::array<std::unique_ptr<ResyncRunner>, kMaxReplicas> runners_;  // of links_
  std::unique_ptr<CopyFindings> findings_;
  std::unique_ptr<BackgroundCheck> check_;  // null: it is off
  std::unique_ptr<FileSystem> file_system_;
  std::unique_ptr<FuseSession> session_;

  // What programs report of their own sessions.
  struct Reports {
    int64_t suspended = 0;  // below 0 for the moment when two reports overtake each other
    uint64_t recaptures = 0;
    uint64_t sender_full = 0;
    uint64_t peer_congested = 0;
    uint64_t reconnects = 0;
  };
  std::mutex members_mutex_;  // of whoever adds, removes or ends
  bool leaving_ = false;      // guarded by members_mutex_

  mutable std::mutex reports_mutex_;
  Reports reports_;  // guarded by reports_mutex_
};

}  // namespace pmirror::fs
