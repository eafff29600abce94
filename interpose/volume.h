// SPDX-License-Identifier: BSD-3-Clause
// One mounted volume as this process sees it: its page, its sessions to the replicas, and the way of captured
// bytes to them.
//
// Made in place, never destroyed (threads may sync until the last instruction of the process). Attach() and
// MakeReady() under the runtime's map lock; Replicate() from any thread and from signal handlers.
#pragma once

#include <array>
#include <atomic>
#include <optional>
#include <span>

#include "interpose/daemon_link.h"
#include "replication/capture_log.h"
#include "replication/data_session.h"
#include "replication/futex_mutex.h"
#include "replication/replicate.h"
#include "replication/staging.h"
#include "replication/types.h"
#include "replication/verify.h"
#include "replication/volume_page.h"

namespace pmirror::interpose {

// Asks the local daemon for a connected socket to one replica.
class DaemonConnector : public Connector {
 public:
  void Attach(DaemonLink& link, uint32_t volume, uint32_t replica) {
    link_ = &link;
    volume_ = volume;
    replica_ = replica;
  }
  Result<Connection> Connect(SessionId session, Sequence next_sequence, Deadline deadline) override;

 private:
  DaemonLink* link_ = nullptr;
  uint32_t volume_ = 0;
  uint32_t replica_ = 0;
};

class Volume : public SyncObserver {
 public:
  // `page` stays mapped for ever.
  void Attach(DaemonLink& link, uint32_t index, const local::Mount& mount, const VolumePage* page);
  // The page of another daemon takes the place of this one, at the same address, and the sessions are new ones.
  // Requires: no sync is under way (sync_gate.h). Takes over `page`, also on an error, after which nothing has
  // changed.
  Error Replace(const local::Mount& mount, const VolumePage* page);
  bool attached() const { return page_ != nullptr; }
  uint64_t device() const { return device_.load(std::memory_order_acquire); }
  const Uuid& uuid() const { return uuid_; }
  const char* name() const { return name_; }
  uint32_t index() const { return index_; }
  const VolumePage& page() const { return *page_; }

  // Makes the sessions (not their connections) when they are not there yet. The one place here that
  // allocates.
  Error MakeReady(StagingPool& staging);
  bool ready() const { return ready_.load(std::memory_order_acquire); }

  // Requires: ready().
  Error Replicate(const CaptureTarget& target, std::span<const Extent> extents, ByteSource& source,
                  LocalPersist* local);

  // Whether the replicas hold what a capture of this file copied. Errors as Replicate, or as verify.h.
  Error Verify(const VerifyRequest& request, VerifyResult& result);

  // As SyncedFile::Alone().
  bool Alone() const;
  // How long a sync may wait, the owner's patience included.
  Deadline WaitDeadline() const;

  // Cuts the session that uses a socket adopted with this tag (own_descriptors.h).
  void Disconnect(uint32_t replica);
  static constexpr uint32_t Tag(uint32_t volume, uint32_t replica) { return volume * kMaxReplicas + replica; }

  // In a forked child: sessions of the parent are dropped without a word to the peer.
  void ResetInChild();

  void Suspended(FileId file) override;
  void Resumed(FileId file) override;
  void Failed(FileId file, int error) override;
  void Refused(size_t replica, int error) override;
  void Recaptured() override;
  int Interrupted(bool suspended) override;

 private:
  // Has a capture log when a replica of the volume may trail. Any thread; async-signal-safe.
  Error EnsureLog();
  void Report(local::ReportKind kind, FileId file, uint64_t value);
  void TellStalls(uint64_t stalls);

  DaemonLink* link_ = nullptr;
  uint32_t index_ = 0;
  std::atomic<uint64_t> device_{0};
  Uuid uuid_{};
  char name_[sizeof(local::Mount::name)] = {};
  const VolumePage* page_ = nullptr;
  std::array<DaemonConnector, kMaxReplicas> connectors_;
  std::array<DataSession*, kMaxReplicas> sessions_{};
  std::optional<Replication> replication_;
  // Of this process, or the parent's until a forked child has its own in the same place.
  FutexMutex log_lock_;
  CaptureLogMemory* log_ = nullptr;  // guarded by log_lock_ until log_ready_
  CaptureClock* clock_ = nullptr;    // likewise
  std::optional<CaptureWriter> log_writer_;
  std::atomic<bool> log_ready_{false};
  std::atomic<bool> ready_{false};
  // What the daemon knows of the sessions' counters.
  std::atomic<uint64_t> stalls_told_{0};
  std::atomic<uint64_t> sender_full_told_{0};
  std::atomic<uint64_t> peer_congested_told_{0};
  std::atomic<uint64_t> reconnects_told_{0};
};

}  // namespace pmirror::interpose
