// SPDX-License-Identifier: BSD-3-Clause
// The greeting loop of each peer.
#include "server/peer_watch.h"

#include <fmt/format.h>

#include <utility>

#include "server/abilities.h"

namespace pmirror::server {

using std::chrono::nanoseconds;

PeerWatch::PeerWatch(const Config& config, uint64_t boot, OnChange on_change)
    : on_change_(std::move(on_change)) {
  greeting_.set_node(config.name);
  greeting_.set_boot(boot);
  *greeting_.mutable_abilities() = OwnAbilities(config);
  for (const PeerConfig& peer : config.peers) {
    peers_.push_back(std::make_unique<Peer>(peer));
    peers_.back()->status.set_node(peer.name);
    peers_.back()->status.set_reason("not greeted yet");
  }
}

PeerWatch::~PeerWatch() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  stopping_changed_.notify_all();
  for (const std::unique_ptr<Peer>& peer : peers_) {
    if (peer->thread.joinable()) {
      peer->thread.join();
    }
  }
}

void PeerWatch::Start() {
  for (const std::unique_ptr<Peer>& peer : peers_) {
    peer->thread = std::thread([this, &peer = *peer] { Watch(peer); });
  }
}

void PeerWatch::Watch(Peer& peer) {
  for (;;) {
    (void)Greet(peer);
    std::unique_lock lock(mutex_);
    if (stopping_changed_.wait_for(lock, kHeartbeatPause, [this] { return stopping_; })) {
      return;
    }
  }
}

absl::StatusOr<nanoseconds> PeerWatch::Greet(Peer& peer) {
  const auto begin = std::chrono::steady_clock::now();
  absl::StatusOr<control::HelloReply> reply = IsCut(peer.name)
                                                  ? absl::UnavailableError("cut off by the test bed")
                                                  : peer.client.Hello(greeting_, kHeartbeatTimeout);
  const nanoseconds round_trip = std::chrono::steady_clock::now() - begin;
  if (reply.ok() && reply->node() != peer.name) {
    reply = absl::FailedPreconditionError(fmt::format(
        "the daemon that answers calls itself {}; correct the [[node]] of {}", reply->node(), peer.name));
  }
  control::PeerStatus status;
  status.set_node(peer.name);
  status.set_reachable(reply.ok());
  if (reply.ok()) {
    status.set_round_trip_ns(round_trip.count());
    status.set_version(reply->abilities().version());
  } else {
    status.set_reason(std::string(reply.status().message()));
  }
  bool changed = false;
  {
    const std::lock_guard lock(mutex_);
    changed = !peer.greeted || peer.status.reachable() != status.reachable();
    peer.greeted = true;
    peer.status = status;
    if (reply.ok()) {
      peer.warnings =
          CompareAbilities(greeting_.node(), greeting_.abilities(), peer.name, reply->abilities());
    }
  }
  if (changed && on_change_) {
    on_change_(status);
  }
  if (!reply.ok()) {
    return reply.status();
  }
  return round_trip;
}

PeerWatch::Peer* PeerWatch::Find(const std::string& node) const {
  for (const std::unique_ptr<Peer>& peer : peers_) {
    if (peer->name == node) {
      return peer.get();
    }
  }
  return nullptr;
}

std::vector<control::PeerStatus> PeerWatch::Peers() const {
  const std::lock_guard lock(mutex_);
  std::vector<control::PeerStatus> peers;
  for (const std::unique_ptr<Peer>& peer : peers_) {
    peers.push_back(peer->status);
  }
  return peers;
}

std::vector<std::string> PeerWatch::Warnings() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> warnings;
  for (const std::unique_ptr<Peer>& peer : peers_) {
    warnings.insert(warnings.end(), peer->warnings.begin(), peer->warnings.end());
  }
  return warnings;
}

absl::StatusOr<nanoseconds> PeerWatch::Ping(const std::string& node) {
  Peer* peer = Find(node);
  if (peer == nullptr) {
    return absl::NotFoundError(
        fmt::format("{} is no [[node]] of {}'s configuration", node, greeting_.node()));
  }
  return Greet(*peer);
}

void PeerWatch::SetReachable(const std::string& node, bool reachable) {
  const std::lock_guard lock(mutex_);
  if (Peer* peer = Find(node); peer != nullptr) {
    peer->cut = !reachable;
  }
}

bool PeerWatch::IsCut(const std::string& node) const {
  const std::lock_guard lock(mutex_);
  const Peer* peer = Find(node);
  return peer != nullptr && peer->cut;
}

}  // namespace pmirror::server
