// SPDX-License-Identifier: BSD-3-Clause
// The one thing of pmirror in a process: what it has mapped, its link to the daemon, its tickets and its
// tracker. Made by the constructor when a daemon was found; otherwise there is none and every call goes
// straight to the kernel.
//
// Lock order: map_lock, the gate, the link's lock, the descriptors' lock, the tickets' lock. None is held across a wait
// for a replica. Never destroyed.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <memory>

#include "interpose/daemon_link.h"
#include "interpose/file_table.h"
#include "interpose/mapping_table.h"
#include "interpose/own_descriptors.h"
#include "interpose/signal_lock.h"
#include "interpose/sync_gate.h"
#include "interpose/ticket_log.h"
#include "interpose/volume.h"
#include "replication/patience.h"
#include "replication/staging.h"
#include "replication/tracker.h"

namespace pmirror::interpose {

class Runtime {
 public:
  // Null: passive. Also notices that this is a forked child which no atfork handler announced, and starts
  // over there.
  static Runtime* Get() {
    Runtime* runtime = instance.load(std::memory_order_acquire);
    if (runtime != nullptr && runtime->alive_->load(std::memory_order_relaxed) == 0) {
      runtime->StartInChild();
    }
    return runtime;
  }
  // Called once, by the constructor. Stays passive when there is no daemon.
  static void Start();

  MappingTable& maps() { return maps_; }
  FileTable& files() { return files_; }
  const FileTable& files() const { return files_; }
  TicketLog& tickets() { return tickets_; }
  DaemonLink& link() { return link_; }
  FutexMutex& map_lock() { return map_lock_; }
  // How long mmap waits for programs without the library to close the file.
  std::chrono::milliseconds close_patience() const { return close_patience_; }
  Volume& volume(uint32_t index) { return volumes_[index]; }
  uint32_t volume_count() const { return volume_count_.load(std::memory_order_acquire); }
  const char* socket_path() const { return socket_path_; }
  // The volume whose mount has this device number, or null.
  Volume* VolumeOfDevice(uint64_t device);
  Volume* VolumeOfDescriptor(int fd, uint64_t& inode);

  // Under the map lock. The staging memory is made with the first mapping.
  Error MakeReady(Volume& volume);

  // A reference that FileTable::Pin took, or the mappings', is given back; the last one frees the entry.
  // Takes the map lock when `holding_map_lock` is false.
  void Unpin(uint32_t file, bool holding_map_lock);

  // --- a daemon that has gone (relink.cc) ---
  // Around the part of a sync that uses volume pages, order pages, sessions and requests to the daemon.
  SyncGate& gate() { return gate_; }
  // What an attempt of a sync returns when it found the daemon gone: nothing is known of its outcome.
  static bool IsGone(const Error& error) { return error.code == ENOTCONN; }
  // Makes the attempt, and again as long as it finds the daemon gone: joins the one that has taken its place, or
  // waits for it as the volume's policy has syncs wait. EIO in the end.
  template <typename Function>
  Error WithDaemon(Volume& volume, FileId file, Function&& attempt) {
    const Error result = attempt();
    return IsGone(result) ? AwaitDaemon(volume, file, attempt) : result;
  }
  // One try, without waiting for a daemon that is not there. Nothing to do is success. The second one: the map
  // lock is held.
  Error Relink();
  Error RelinkLocked();

  // Around fork; the child gets a new link, tracker and ticket table before the program runs on. In
  // process.cc.
  void BeforeFork();
  void AfterForkInParent();
  void StartInChild();

  // Hands over to the daemon what is dirty in every mapping, which it then counts as gone: the process ends
  // or becomes another program. The mappings stay usable; TakeBack() says that they are still there (exec
  // failed). Nothing happens in the child of a vfork, whose memory is its parent's.
  void HandOverAll();
  void TakeBack();

 private:
  // A reference to a callable, which must outlive it.
  class Attempt {
   public:
    template <typename Function>
    Attempt(Function& function)  // NOLINT(google-explicit-constructor): an argument of AwaitDaemon only
        : object_(&function), call_([](void* object) { return (*static_cast<Function*>(object))(); }) {}
    Error operator()() const { return call_(object_); }

   private:
    void* object_;
    Error (*call_)(void*);
  };

  Runtime(MappingTable& maps, FileTable& files, TicketLog& tickets)
      : maps_(maps), files_(files), tickets_(tickets) {}
  Error Announce();
  Error AcceptMounts(DaemonLink::Answer& answer);
  Error AcceptMount(uint32_t index, const local::Mount& mount, int fd);
  Error AwaitDaemon(Volume& volume, FileId file, Attempt attempt);
  Error Rejoin();
  Error ServeFile(uint32_t file);
  Error MakeTicketTable(UniqueFd& memory);
  Error MakeAlivePage();
  void OpenTracker();
  void RestoreMappingsInChild(bool may_have_stored);
  void RestoreFilesInChild();
  bool FindSocket();

  static std::atomic<Runtime*> instance;

  MappingTable& maps_;
  FileTable& files_;
  TicketLog& tickets_;
  FutexMutex map_lock_;
  DaemonLink link_;
  SyncGate gate_;
  std::atomic<uint32_t> unserved_{0};  // files that the daemon may serve later; guarded by the map lock
  std::atomic<uint32_t> volume_count_{0};
  std::array<Volume, local::kMaxVolumes> volumes_;
  std::unique_ptr<StagingPool> staging_;
  std::atomic<uint32_t>* alive_ = nullptr;  // a page that fork wipes
  KernelSignalMask fork_mask_ = 0;          // of the thread that forks, guarded by map_lock_
  std::chrono::milliseconds close_patience_{0};
  int pid_ = 0;
  char socket_path_[108] = {};
};

}  // namespace pmirror::interpose
