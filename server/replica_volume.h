// SPDX-License-Identifier: BSD-3-Clause
// One replicated volume on a node that holds a copy of it: what the control service asks (sessions, leaving,
// state) and what the connections of the data plane do (apply, persist).
//
// Thread-safe. Lock order: control_mutex_, then batch_mutex_, then namespace_mutex_, then one BackingFile::mutex, then the
// group journal's; the session table's and the sessions' own locks are leaves. Data frames of different files are applied side by
// side (flush groups one at a time); namespace operations one at a time.
// ---
// For maintainers. What survives a crash, and where it is:
//   - generation, epoch, mount number, clean: the record in the state directory, durable before a session
//     that depends on it is opened;
//   - the high-water mark of operations: the attribute kOperationXattr of `.pmirror` in the backing
//     directory, written after each operation. It is in the same journal as the operation, so that after a
//     crash only the operation right behind the mark can be done, half done or not done; NamespaceApplier
//     completes it when it is replayed.
#pragma once

#include <fcntl.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "recovery/batch.h"
#include "recovery/volume_record.h"
#include "replication/frame.h"
#include "replication/persistence.h"
#include "server/backing_index.h"
#include "server/batch_journal.h"
#include "server/data_applier.h"
#include "server/file_table.h"
#include "server/group_journal.h"
#include "server/namespace_applier.h"
#include "server/outcome.h"
#include "server/persistence.h"
#include "server/session_table.h"
#include "server/undo_log.h"

namespace pmirror::server {

using recovery::VolumeRecord;

class ReplicaVolume {
 public:
  struct Options {
    std::string name;
    Uuid uuid{};
    std::string backing;          // directory
    std::string state_directory;  // holds "<name>.copy"
    Domain domain = Domain::kFile;
    std::chrono::nanoseconds deadline = std::chrono::seconds(5);  // a shorter absence of the primary is none
    SessionTable::Limits sessions;
    // How long a frame waits for the size operation it was captured after, and a caller for connections to
    // end.
    std::chrono::nanoseconds operation_wait = std::chrono::seconds(1);
    std::chrono::nanoseconds handover_wait = std::chrono::seconds(10);
    unsigned undo_reserve = 5;  // per cent of the file system that an undo log leaves free
  };

  // Walks the backing directory. kDataLoss: the record is damaged; others as BackingIndex::Build. Nothing was
  // changed then, but the directory may have got its id and `.pmirror`.
  static absl::StatusOr<std::unique_ptr<ReplicaVolume>> Open(Options options);
  ~ReplicaVolume();

  const Options& options() const { return options_; }

  // --- the control service ---

  struct SessionRequest {
    std::string node;  // of the primary
    Epoch epoch{};
    SessionKind kind = SessionKind::kProcess;
    SessionId session{};      // 0: a new one, otherwise resume this one
    std::string process;      // for status and logs
    uint64_t generation = 0;  // data generation that the primary serves; 0: none yet
    uint64_t mount_number = 0;
  };
  // Permission for one connection. A newer epoch, mount number or (on an empty copy) generation is durable
  // here when this returns, and no frame of an older epoch or mount is being applied any more, nor will be
  // (promise P4). The daemon's session comes first in each mount; a new one of it ends the last one.
  // kFailedPrecondition: this primary was superseded, or this copy is not of its history; kUnavailable: old
  // connections did not end in time, or a resync has begun and not adopted the mount, ask again; kResourceExhausted. Nothing changes on an error, except that
  // older sessions may have been ended.
  absl::StatusOr<SessionTable::Permit> PrepareSession(const SessionRequest& request);

  // --- a resync (docs/internals/resync.md); `token` is BeginResync's, kAborted when another has begun since ---

  struct ResyncRequest {
    std::string node;  // of the primary
    Epoch epoch{};
    uint64_t generation = 0;
    uint64_t mount_number = 0;
  };
  // Ends every session and records, durably, that the files are a mixture from here on. Errors as PrepareSession.
  absl::StatusOr<uint64_t> BeginResync(const ResyncRequest& request);
  // One operation of the plan. An error leaves the tree as the operation found it, and says why.
  absl::Status ChangeTree(uint64_t token, const NamespaceOp& op);
  // The tree is the primary's as of `operation` of the mount that BeginResync named: sessions of it may be opened now.
  absl::Status AdoptMount(uint64_t token, uint64_t operation);
  // Everything is durable, and the copy whole again, when this returns OK.
  absl::Status EndResync(uint64_t token);

  // From here on the copy is changed by whole batches only, and shows the last one that was acknowledged, or a later one, whatever happens
  // (docs/internals/rpo.md). The sessions of programs have ended when this returns the operation that was applied last. kFailedPrecondition: it
  // is not in sync with that mount.
  absl::StatusOr<uint64_t> BeginTrailing(const ResyncRequest& request);

  struct Departure {
    Epoch epoch{};
    uint64_t operation = 0;
    uint64_t generation = 0;
    uint64_t mount_number = 0;
  };
  // The primary leaves cleanly: ends its sessions, makes everything durable and records the copy as clean.
  // kFailedPrecondition when it lacks operations or is of another epoch, mount or generation; kDataLoss when
  // the storage failed.
  absl::Status Leave(const Departure& departure);

  struct SessionState {
    Session::Identity identity;
    bool connected = false;
    Deadline::Duration silence{};  // since the last bytes came
  };
  struct Counters {
    uint64_t frames = 0, bytes = 0, operations = 0, barriers = 0, refusals = 0, recaptures = 0,
             duplicates = 0;
    uint64_t checksum_faults = 0, connections = 0;
  };
  struct State {
    VolumeRecord record;
    uint64_t operation = 0;  // highest applied in record.mount_number
    bool empty = false;      // the backing directory holds no object
    // The machine was restarted while a primary was connected: what was received and not made durable may be
    // gone.
    bool restarted_in_use = false;
    std::string refusal;  // not empty: the copy cannot be used, why and what to do
    // There is a legal image to be promoted from: what the files show, or, while a resync runs, what the undo log leads back to.
    bool promotable = false;
    std::string image;   // which one, or why there is none
    uint64_t batch = 0;  // of a copy that trails: the last one that is applied
    Domain domain = Domain::kFile;
    size_t objects = 0;
    size_t objects_without_id = 0;
    std::vector<SessionState> sessions;
    Counters counters;
  };
  State state() const;

  int backing_directory() const { return index_->root(); }
  // For reading. ENOENT: no such file.
  Result<UniqueFd> OpenFile(FileId id) const { return index_->Open(id, O_RDONLY | O_NOATIME); }

  // Ends all sessions and makes everything durable: before the daemon exits. Idempotent.
  absl::Status Shutdown();
  // Shutdown, for good: the volume refuses what is asked of it from here on, and lets go of the backing directory, which may be served anew. A copy
  // that never took part leaves no record behind and nobody's mark in the directory. True: it was such a one. After an error it is as before, but for a resync, which has to begin anew.
  absl::StatusOr<bool> Retire();

  // --- the data plane (ReplicaSession); `session` is held by the caller ---

  SessionTable& sessions() { return sessions_; }
  Epoch newest_epoch() const { return Epoch{epoch_.load(std::memory_order_acquire)}; }
  uint64_t applied_operation() const { return applied_.load(std::memory_order_acquire); }

  // The primary's daemon has a connection from one call to the other.
  void DaemonCame() { daemon_gone_since_.store(0, std::memory_order_release); }
  void DaemonWent() { daemon_gone_since_.store(Deadline::Now().count(), std::memory_order_release); }
  // It has had none for longer than the deadline. Its programs are not served then: nobody on their node sees what they store, or ends them
  // when the volume is mounted anew.
  bool DaemonIsGone() const {
    const auto since = daemon_gone_since_.load(std::memory_order_acquire);
    return since != 0 && Deadline::Now() - Deadline::Duration(since) > options_.deadline;
  }

  // One frame that the session's receiver admitted.
  Outcome Apply(Session& session, const FrameHeader& header, std::span<const WireRange> ranges,
                std::span<const std::byte> payload);

  // The answer to a verify that the session's receiver admitted.
  Outcome Verify(const Session& session, const FrameHeader& header, std::span<const WireRange> ranges,
                 VerifiedBody& verified);

  // The answer to a confirm that the session's receiver admitted.
  Outcome Confirm(Session& session, const FrameHeader& header, const WireRange& range,
                  std::span<const std::byte> payload, ConfirmedBody& confirmed);

  struct Persisted {
    int error = 0;           // errno
    uint64_t operation = 0;  // highest durable operation
  };
  // A barrier: what the session has brought is made durable, what others have brought to the files that its
  // barriers named, and, in the daemon's session, every operation.
  Persisted Persist(Session& session);

  struct AtomicCounters {
    std::atomic<uint64_t> frames = 0, bytes = 0, operations = 0, barriers = 0, refusals = 0, recaptures = 0,
                          duplicates = 0;
    std::atomic<uint64_t> checksum_faults = 0, connections = 0;
  };
  AtomicCounters& counters() { return counters_; }

 private:
  explicit ReplicaVolume(Options options);
  absl::Status OpenBacking();
  absl::Status LoadRecord();
  absl::Status CheckRequest(const SessionRequest& request) const;
  absl::Status CheckHistory(const std::string& node, Epoch epoch, uint64_t mount_number,
                            uint64_t generation) const;
  absl::Status CheckToken(uint64_t token) const;
  absl::Status Adopt(const SessionRequest& request);
  absl::Status StoreRecord(const VolumeRecord& record);
  std::string Refusal() const;
  absl::Status PersistAll();
  absl::Status ContinueUndo();
  bool NeedsUndo() const;
  absl::Status BeginUndo();
  void FillPromotable(State& state) const;
  NamespaceApplier::Applied ChangeTree(const NamespaceOp& op, uint64_t number);
  NamespaceApplier::Applied ApplyNext(const NamespaceOp& op, uint64_t number);

  Outcome ApplyData(Session& session, const FrameHeader& header, std::span<const WireRange> ranges,
                    std::span<const std::byte> payload);
  Outcome ApplyOperation(Session& session, const FrameHeader& header, std::span<const std::byte> payload);
  Outcome Grant(const FrameHeader& header);
  Outcome Revoke(const FrameHeader& header);
  int MarkOperation(uint64_t mount_number, uint64_t operation);

  enum class Next { kMount, kResync, kCleanEnd };
  absl::Status EndTrailing(Next what_follows);
  absl::Status SettleBatches();
  absl::Status ContinueBatches();
  absl::Status Doubt(const absl::Status& why);
  absl::Status ContinueGroup();
  Outcome TakeBatch(Session& session, const FrameHeader& header, std::span<const WireRange> ranges,
                    std::span<const std::byte> payload);
  Outcome StoreAndApply(std::span<const std::byte> bytes, const recovery::BatchView& batch);
  Outcome ApplyBatch(const recovery::BatchView& batch);
  Outcome ApplyBatchedOperation(uint64_t number, std::span<const std::byte> bytes);

  const Options options_;
  const std::string record_path_;
  std::unique_ptr<BackingIndex> index_;
  std::unique_ptr<PersistenceDomain> domain_;
  std::unique_ptr<FileTable> files_;
  std::unique_ptr<UndoLog> undo_;
  std::unique_ptr<GroupJournal> groups_;
  std::unique_ptr<DataApplier> data_;
  std::unique_ptr<NamespaceApplier> tree_;  // guarded by namespace_mutex_
  SessionTable sessions_;
  AtomicCounters counters_;
  std::atomic<Deadline::Duration::rep> daemon_gone_since_ = Deadline::Now().count();  // 0: it is there
  bool restarted_in_use_ = false;  // guarded by control_mutex_
  bool retired_ = false;           // guarded by control_mutex_
  struct RunningResync {
    uint64_t token = 0;  // 0: none
    uint64_t mount_number = 0;
    uint64_t generation = 0;
    bool adopted = false;  // its tree is the primary's, and its mount has begun here
  };
  RunningResync resync_;  // guarded by control_mutex_

  mutable std::mutex control_mutex_;
  VolumeRecord record_;                 // guarded by control_mutex_
  std::atomic<uint64_t> epoch_ = 0;     // record_.epoch, or what it is about to become
  std::atomic<int> storage_error_ = 0;  // of a barrier that failed: no later one can be believed

  std::atomic<bool> trailing_ = false;  // as record_.trailing
  mutable std::mutex batch_mutex_;      // after control_mutex_, before namespace_mutex_
  BatchJournal journal_;                // guarded by batch_mutex_, as all below
  std::vector<std::byte> incoming_;
  recovery::BatchBuilder::Identity batch_;  // that was applied last; 0: none since it trails
  uint64_t batch_half_done_ = 0;            // number of one that is in the journal and not in the files
  std::string doubt_;                       // why the files may show half of one, found at the start
  std::vector<std::shared_ptr<BackingFile>> batch_files_;  // what it changed, and is perhaps not durable

  std::mutex namespace_mutex_;
  uint64_t mount_number_ = 0;          // guarded by namespace_mutex_
  std::atomic<uint64_t> applied_ = 0;  // written under namespace_mutex_
  std::atomic<uint64_t> operation_durable_ = 0;
  std::mutex applied_mutex_;  // of the condition only
  std::condition_variable applied_changed_;
};

}  // namespace pmirror::server
