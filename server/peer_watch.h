// SPDX-License-Identifier: BSD-3-Clause
// Control heartbeats: greets every peer of the configuration about once a second and remembers who answers,
// how fast, and what differs there. One thread a peer, so that one that is silent does not delay the others.
// Thread-safe.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/control.pb.h"
#include "proto/control_client.h"
#include "server/config.h"

namespace pmirror::server {

constexpr std::chrono::milliseconds kHeartbeatPause{1000};  // between a greeting's answer and the next
constexpr std::chrono::milliseconds kHeartbeatTimeout{
    2000};  // a peer that does not answer within it is not reachable

class PeerWatch {
 public:
  // Called from a peer's thread when it becomes reachable or ceases to be.
  using OnChange = std::function<void(const control::PeerStatus& peer)>;

  PeerWatch(const Config& config, uint64_t boot, OnChange on_change);
  // Stops the threads; waits at most for the greetings under way.
  ~PeerWatch();
  PeerWatch(const PeerWatch&) = delete;
  PeerWatch& operator=(const PeerWatch&) = delete;

  void Start();

  // In the configuration's order.
  std::vector<control::PeerStatus> Peers() const;
  // Sentences about differences between this node and those that have answered since the start.
  std::vector<std::string> Warnings() const;
  // One greeting now: its round trip. kNotFound for a name that is no peer, kUnavailable when it does not
  // answer.
  absl::StatusOr<std::chrono::nanoseconds> Ping(const std::string& node);
  // Test bed: greet the node no more, or again.
  void SetReachable(const std::string& node, bool reachable);
  bool IsCut(const std::string& node) const;

  const control::HelloRequest& greeting() const { return greeting_; }

 private:
  struct Peer {
    explicit Peer(const PeerConfig& config) : name(config.name), client(config.control) {}
    const std::string name;
    proto::ControlClient client;
    std::thread thread;
    // Guarded by mutex_.
    control::PeerStatus status;
    std::vector<std::string> warnings;
    bool greeted = false;  // at least one greeting has ended
    bool cut = false;
  };

  void Watch(Peer& peer);
  absl::StatusOr<std::chrono::nanoseconds> Greet(Peer& peer);
  Peer* Find(const std::string& node) const;

  control::HelloRequest greeting_;
  OnChange on_change_;
  std::vector<std::unique_ptr<Peer>> peers_;
  mutable std::mutex mutex_;
  std::condition_variable stopping_changed_;
  bool stopping_ = false;  // guarded by mutex_
};

}  // namespace pmirror::server
