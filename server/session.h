// SPDX-License-Identifier: BSD-3-Clause
// One session on the replica: what lives longer than a connection. A connection *holds* its session while it
// serves it; a resumed session is taken from its old connection first, so that never two threads apply frames
// of one session.
//
// Threads: the fields under "of the holder" belong to the thread that holds the session; everything else is
// thread-safe.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_set>
#include <vector>

#include "replication/deadline.h"
#include "replication/receiver.h"
#include "server/backing_file.h"

namespace pmirror::server {

// Files that were written, each once.
class TouchedFiles {
 public:
  void Add(const std::shared_ptr<BackingFile>& file) {
    if (file != nullptr && known_.insert(file.get()).second) {
      files_.push_back(file);
    }
  }
  void Clear() {
    files_.clear();
    known_.clear();
  }
  const std::vector<std::shared_ptr<BackingFile>>& files() const { return files_; }

 private:
  std::vector<std::shared_ptr<BackingFile>> files_;
  std::unordered_set<const BackingFile*> known_;
};

class Session {
 public:
  struct Identity {
    SessionId id{};
    SessionKind kind = SessionKind::kProcess;
    Epoch epoch{};
    std::string node;     // of the primary
    std::string process;  // for status and logs
  };

  Session(Identity session_identity, uint64_t credit_window)
      : identity(std::move(session_identity)),
        receiver({.session = identity.id,
                  .kind = identity.kind,
                  .epoch = identity.epoch,
                  .credit_window = credit_window}) {}

  const Identity identity;

  // Makes the caller, who serves the connected socket `socket`, the holder. Cuts the connection that holds it
  // and waits until its thread has let go. False: it did not before the deadline, or the session has ended.
  bool Acquire(int socket, Deadline deadline);
  // The holder is done. Called before it closes its socket.
  void Release();
  // Nobody may hold it any more; cuts the connection that does. With AwaitRelease a caller can be sure that
  // no frame is being applied.
  void End();
  bool AwaitRelease(Deadline deadline);
  // Cuts the connection; the session can be resumed.
  void Cut();

  // The holder has to let go: it looks before each frame, because a cut connection still delivers what had
  // arrived.
  bool interrupted() const { return interrupted_.load(std::memory_order_acquire); }
  bool ended() const;
  bool connected() const;
  // Since when nobody holds it (CLOCK_MONOTONIC).
  Deadline::Duration idle_since() const;
  // When the last bytes came, or the holder: a peer that is stopped keeps its connection and says nothing.
  Deadline::Duration heard() const { return Deadline::Duration(heard_.load(std::memory_order_relaxed)); }
  void Heard() { heard_.store(Deadline::Now().count(), std::memory_order_relaxed); }

  void Grant(FileId file);
  void Revoke(FileId file);
  bool MayWrite(FileId file) const;

  // Of the holder:
  Receiver receiver;
  TouchedFiles touched;  // since the last barrier

  std::atomic<int> checksum_faults = 0;  // connections in a row that were cut for one

 private:
  void Interrupt();  // Requires: mutex_ is held

  std::atomic<bool> interrupted_ = false;  // written under mutex_
  std::atomic<Deadline::Duration::rep> heard_ = Deadline::Now().count();
  mutable std::mutex mutex_;
  std::condition_variable released_;
  bool ended_ = false;  // guarded by mutex_, as all below
  int socket_ = -1;     // of the holder, -1 when there is none; not owned
  Deadline::Duration idle_since_ = Deadline::Now();
  std::unordered_set<uint64_t> granted_;
};

}  // namespace pmirror::server
