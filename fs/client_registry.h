// SPDX-License-Identifier: BSD-3-Clause
// The daemon's registry of programs: the server of replication/local_protocol.h. It knows which programs run the preload library and what they have
// mapped, gives them backing files and sessions, and tells the engine what they have stored.
//
// Threads: every method is thread-safe, except that Add, Start and Stop come from one thread at a time. One thread accepts, each connection has
// a thread of its own; a request that waits holds up nobody but its own connection. What is called on a ClientVolume comes from these threads.
// Locks: client_process.h.
#pragma once

#include <atomic>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "fs/client_requests.h"
#include "fs/client_table.h"
#include "fs/client_volume.h"
#include "fs/event_sink.h"
#include "fs/foreign_stores.h"
#include "fs/local_listener.h"
#include "fs/open_oracle.h"

namespace pmirror::fs {

class ClientRegistry : public OpenOracle {
 public:
  static constexpr size_t kMaxConnections = 4096;  // further ones are refused with EAGAIN

  // `events` must outlive the registry.
  explicit ClientRegistry(EventSink& events, size_t max_connections = kMaxConnections);
  ~ClientRegistry() override;  // Stop()
  ClientRegistry(const ClientRegistry&) = delete;
  ClientRegistry& operator=(const ClientRegistry&) = delete;

  // Adds a volume, which must live until Stop() has returned; answers its index in every hello reply from then on: a program that has said hello
  // before carries files of it as one without the preload library does. RESOURCE_EXHAUSTED: a node mounts at most local::kMaxVolumes.
  absl::StatusOr<size_t> Add(ClientVolume& volume);
  // For the volume with that index; lives as long as the registry.
  ForeignStores& StoresOf(size_t volume);

  // Begins to serve programs at `socket_path`. Errors as LocalListener::Open; the registry stays as it was.
  absl::Status Start(const std::string& socket_path);
  // Ends the connections of all programs as if the programs had ended (what they may owe goes to the volumes), and waits for its threads: for as long as
  // the volumes' calls take, so a volume that is to go should have ended its waits. Drops all leases. May be called again.
  void Stop();

  bool AnyAnnounced() const override { return processes_.AnyAnnounced(); }
  bool IsAnnounced(pid_t tgid) const override { return processes_.IsAnnounced(tgid); }

  // --- for `pmirror status` ---
  // Programs that have something of the volume mapped.
  size_t MappingProcesses(size_t volume) const;
  // Processes that can store to a file of the volume, whether they map it now or could.
  size_t WritingProcesses(size_t volume) const;
  // Syncs of the volume that programs got acknowledged, also those that have ended.
  uint64_t AcknowledgedSyncs(size_t volume) const { return processes_.AcknowledgedSyncs(volume); }

 private:
  struct Connection {
    UniqueFd socket;                         // closed by its thread, under mutex_
    bool main = false;                       // guarded by mutex_
    std::shared_ptr<ClientProcess> process;  // guarded by mutex_; changed by its thread only
    UniqueFd process_fd;  // of a main connection, readable when the process is over; its thread's own
    pid_t pid = 0;
    uid_t uid = 0;
    std::thread thread;
    bool done = false;  // guarded by mutex_
  };

  void Accept();
  void Admit(UniqueFd socket);
  void RefuseConnection(UniqueFd socket);
  void Reap();
  void Serve(Connection& connection);
  // False when the connection has to end.
  bool AnswerNext(Connection& connection);
  void Hello(Connection& connection, ReceivedRequest& received, ClientReply& reply);
  void Observe(Connection& connection, ClientReply& reply);
  void MainHello(Connection& connection, ReceivedRequest& received, ClientReply& reply);
  void FillMounts(ClientReply& reply);
  void AdoptPrograms();
  void WatchAdopted();
  void EndProcess(const std::shared_ptr<ClientProcess>& process);
  void Log(Severity severity, const char* event, const Connection& connection, const std::string& detail);

  EventSink& events_;
  const size_t max_connections_;
  RegisteredVolumes volumes_;
  ClientTable processes_;
  ClientRequests requests_;
  std::atomic<uint64_t> next_serial_{1};

  std::optional<LocalListener> listener_;
  UniqueFd wake_;  // eventfd: a connection is done, or all has to stop
  std::thread acceptor_;

  // Programs of an earlier daemon, watched by a thread of their own until none is left.
  struct Adopted {
    std::shared_ptr<ClientProcess> process;
    UniqueFd process_fd;    // readable when it is over
    uintptr_t address = 0;  // of one of its mappings
  };
  std::vector<Adopted> adopted_;  // the watcher's, once it runs
  UniqueFd adopted_wake_;         // eventfd: all has to stop
  std::thread watcher_;

  // A leaf, like ClientTable's (client_process.h).
  std::mutex mutex_;
  std::atomic<bool> stopping_{false};
  std::list<Connection> connections_;  // guarded by mutex_
  std::list<UniqueFd> refused_;        // the acceptor's: open until the program has read its refusal
};

}  // namespace pmirror::fs
