// SPDX-License-Identifier: BSD-3-Clause
// Accepts the data connections of a node, on any number of TCP addresses, and runs one thread for each
// (ReplicaSession).
//
// Thread-safe. Signals are blocked in its threads.
#pragma once

#include <atomic>
#include <chrono>
#include <list>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "replication/unique_fd.h"
#include "server/replica_session.h"
#include "server/replica_volume.h"

namespace pmirror::server {

class DataListener {
 public:
  struct Options {
    std::vector<std::string> addresses;  // "host:port" or "[v6]:port"; port 0: any
    std::chrono::nanoseconds hello_deadline = std::chrono::seconds(5);
    // After so long without a sign of life from the peer's host the connection is closed.
    std::chrono::milliseconds peer_timeout = std::chrono::seconds(10);
    size_t max_connections = 4096;
  };

  // Listens on every address or fails, naming the one (kInvalidArgument: no address; others as bind(2)).
  // `volumes` must outlive the listener.
  static absl::StatusOr<std::unique_ptr<DataListener>> Start(Options options,
                                                             std::vector<ReplicaVolume*> volumes);
  // As Stop().
  ~DataListener();

  // A volume more, which must outlive the listener; or one that gets no connections any more: those that it has are its own business.
  void Add(ReplicaVolume& volume);
  void Remove(ReplicaVolume& volume);

  // Where it listens, with the ports that were chosen.
  const std::vector<std::string>& addresses() const { return bound_; }

  // Test bed without network namespaces: refuse the connections of a node's sessions, and cut those that
  // exist.
  void SetReachable(const std::string& node, bool reachable);

  // Takes no more connections, cuts those that exist and waits for their threads. Sessions can be resumed
  // elsewhere. Idempotent.
  void Stop();

  size_t connections() const;

 private:
  struct Connection {
    UniqueFd socket;
    std::thread thread;
    std::atomic<bool> done = false;
  };

  DataListener(Options options, std::vector<ReplicaVolume*> volumes);
  absl::Status Listen(const std::string& address);
  void AcceptLoop();
  void AcceptOne(int listener);
  void Prepare(int socket) const;
  void Reap();
  void Wake();
  bool IsReachable(const std::string& node) const;
  ReplicaVolume* Find(const Uuid& uuid) const;

  const Options options_;
  ReplicaSession::Environment environment_;
  std::vector<UniqueFd> listeners_;
  std::vector<std::string> bound_;
  UniqueFd wake_;  // eventfd
  std::atomic<bool> stopping_ = false;
  std::thread acceptor_;

  mutable std::mutex mutex_;
  std::list<Connection> connections_;    // guarded by mutex_
  std::set<std::string> unreachable_;    // guarded by mutex_
  std::vector<ReplicaVolume*> volumes_;  // guarded by mutex_
};

}  // namespace pmirror::server
