// SPDX-License-Identifier: BSD-3-Clause
// What the daemon knows of one program that runs the preload library, from the hello on its main connection to the end of that connection.
//
// Threads: any. Lock order of the registry of programs, outermost first; what is not named here may be called while it is held:
//   1. work_mutex() of one process: one request of its main connection, or its end. Held across ClientVolume's SetWritingMappers, HoldDirty, Grant
//      and FileSystem::AcquireDirect, so it may be held for seconds; nobody but that process's own threads and its successor wait for it.
//   2. the lock of WritingMappers (one a volume), held across SetWritingMappers.
//   3. the lock behind View and Edit, those of sessions and suspended syncs, and ClientTable's: each a leaf. Nothing of ClientVolume or FileSystem is called and no lease
//      is dropped under them. ForeignCapture takes them (and no other) with the volume's lock of a file held.
// View's lock is held while a page table is scanned: what a program told to be mapped at an address cannot be replaced by something else
// meanwhile, because the program waits for the answer to kUnmapped before it unmaps.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "fs/client_mappings.h"
#include "fs/foreign_stores.h"
#include "fs/shared_object.h"
#include "replication/ticket_table.h"
#include "replication/unique_fd.h"

namespace pmirror::fs {

// What the process has of the volumes' files.
struct ClientFiles {
  ClientMappings mappings;
  std::map<FileKey, std::shared_ptr<LeasedFile>>
      leases;  // until kCloseBacking; mappings hold theirs on their own

  // The best hold the process has on the file; null when it has none.
  std::shared_ptr<LeasedFile> Find(const FileKey& key) const;
  // Files that the process may store to.
  std::map<FileKey, std::shared_ptr<LeasedFile>> Writable() const;
};

// A data session of the process, with a duplicate of its socket.
struct ClientSession {
  size_t volume = 0;
  size_t replica = 0;
  SessionId id{};
  UniqueFd socket;

  // The program's end of it learns at once that it is cut.
  void Cut() const;
};

class ClientProcess {
 public:
  static constexpr size_t kMaxSessions = 8;  // to one replica; a program uses one

  struct Identity {
    ProcessSerial serial = ProcessSerial::kNone;
    pid_t pid = 0;
    uid_t uid = 0;
    std::string command;   // for people
    bool adopted = false;  // it has not said hello: what is known of it is from /proc
  };

  // `pagemap` may be invalid: nothing can be scanned then. `tickets` holds a TicketTable.
  ClientProcess(Identity identity, UniqueFd pagemap, SharedMemory tickets)
      : identity_(std::move(identity)), pagemap_(std::move(pagemap)), tickets_(std::move(tickets)) {}

  ProcessSerial serial() const { return identity_.serial; }
  pid_t pid() const { return identity_.pid; }
  uid_t uid() const { return identity_.uid; }
  bool adopted() const { return identity_.adopted; }
  const std::string& command() const { return identity_.command; }
  std::string name() const { return identity_.command + "[" + std::to_string(identity_.pid) + "]"; }
  int pagemap() const { return pagemap_.get(); }
  const TicketTable& tickets() const { return *static_cast<const TicketTable*>(tickets_.address()); }

  std::mutex& work_mutex() { return work_mutex_; }
  // Set once, under work_mutex(): the process has nothing any more, and gets nothing.
  bool ended() const { return ended_.load(std::memory_order_acquire); }
  void SetEnded() { ended_.store(true, std::memory_order_release); }

  // Access to the files under their lock, for as long as the object lives.
  class View {
   public:
    const ClientFiles* operator->() const { return files_; }
    const ClientFiles& operator*() const { return *files_; }

   private:
    friend class ClientProcess;
    View(std::mutex& mutex, const ClientFiles& files) : lock_(mutex), files_(&files) {}
    std::unique_lock<std::mutex> lock_;
    const ClientFiles* files_;
  };
  View Look() const { return {files_mutex_, files_}; }

  // The same, to change them. Requires: work_mutex() is held.
  class Edit {
   public:
    ClientFiles* operator->() const { return files_; }

   private:
    friend class ClientProcess;
    Edit(std::mutex& mutex, ClientFiles& files) : lock_(mutex), files_(&files) {}
    std::unique_lock<std::mutex> lock_;
    ClientFiles* files_;
  };
  Edit Change() {
    changes_.fetch_add(1, std::memory_order_seq_cst);
    return {files_mutex_, files_};
  }
  // Grows before each change of the files.
  uint64_t changes() const { return changes_.load(std::memory_order_seq_cst); }

  // --- sessions ---
  bool HasSession(size_t volume, size_t replica, SessionId id) const;
  // Keeps a session, in place of `resumed` (0: of none). Hands back one that has to go for it: the oldest of too many, or the new one itself
  // when the process has ended.
  std::optional<ClientSession> KeepSession(ClientSession session, SessionId resumed);
  std::optional<ClientSession> DropSession(size_t volume, size_t replica, SessionId id);
  // Cuts a session, which stays known: the program resumes it.
  void CutSession(size_t volume, size_t replica, SessionId id);
  struct SessionName {
    size_t replica;
    SessionId id;
  };
  std::vector<SessionName> SessionsOf(size_t volume) const;
  // Requires: ended().
  std::vector<ClientSession> TakeSessions();

  // --- what it says of its syncs ---
  static constexpr size_t kMaxSuspended = 65536;  // threads of one process
  // A sync of the file waits beyond the deadline, or waits no longer. False: there is nothing to count, because the process has ended, says it too
  // often, or has not said the one before the other.
  bool Suspended(const FileKey& file);
  bool Resumed(const FileKey& file);
  // The files whose syncs still waited. Requires: ended().
  std::vector<FileKey> TakeSuspended();

 private:
  const Identity identity_;
  const UniqueFd pagemap_;
  const SharedMemory tickets_;

  std::mutex work_mutex_;
  std::atomic<bool> ended_{false};

  mutable std::mutex files_mutex_;
  ClientFiles files_;  // guarded by files_mutex_
  std::atomic<uint64_t> changes_{0};

  mutable std::mutex sessions_mutex_;
  std::vector<ClientSession> sessions_;  // guarded by sessions_mutex_; oldest first

  std::mutex suspended_mutex_;
  std::vector<FileKey> suspended_;  // guarded by suspended_mutex_; one entry a sync
};

}  // namespace pmirror::fs
