// SPDX-License-Identifier: BSD-3-Clause
// The network between the primary's node and the replicas: byte streams that can be slow, silent in one direction, cut in the
// middle of a frame or damaged, and calls of the control protocol whose request or answer can get lost or come late.
//
// A stream keeps its order, as TCP does; streams among each other keep none. What a silence holds up arrives after it, unless
// the sender has given the connection up meanwhile (TCP_USER_TIMEOUT).
#pragma once

#include <array>
#include <cstddef>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "tests/sim/world.h"

namespace pmirror::sim {

enum class Side : uint8_t { kPrimary = 0, kReplica = 1 };

class Network;

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(Network& network, size_t replica);

  size_t replica() const { return replica_; }
  void Send(Side from, std::vector<std::byte> bytes);
  // What has arrived at that end and was not taken yet.
  std::vector<std::byte>& Arrived(Side side) { return end(side).arrived; }
  // Nothing more will arrive, nor leave.
  bool Dead(Side side) const { return ends_[static_cast<size_t>(side)].dead; }
  // It was closed from that end: what has arrived there is of no interest any more.
  bool ClosedHere(Side side) const { return ends_[static_cast<size_t>(side)].closed_here; }
  Signal& Readable(Side side) { return end(side).readable; }
  // The other end gets what is under way, then learns of it.
  void Close(Side side);
  // Both ends learn of it; what is under way arrives in part.
  void Cut();
  // The machine at that end is gone: the other end gets a part of what is under way and learns nothing.
  void Vanish(Side side);

 private:
  struct End {
    explicit End(Scheduler& loop) : readable(loop) {}
    std::vector<std::byte> arrived;
    bool dead = false;
    bool closed_here = false;
    Signal readable;
  };
  struct Chunk {
    std::vector<std::byte> bytes;
    bool last = false;  // the sender has closed
    Time sent = 0;
  };
  End& end(Side side) { return ends_[static_cast<size_t>(side)]; }
  void Put(Side from, Chunk chunk);
  void Deliver(Side from);
  void DropPart(Side from);
  void Kill(Side side);

  Network& network_;
  const size_t replica_;
  std::array<End, 2> ends_;
  std::array<std::deque<Chunk>, 2> under_way_;  // by sender
  std::array<Time, 2> last_arrival_{};
};

class Network {
 public:
  Network(World& world, size_t replicas) : sent(world.loop), world_(world), links_(replicas) {}

  World& world() { return world_; }
  std::shared_ptr<Connection> Connect(size_t replica);
  // `from` cannot be heard by the other end.
  bool Silent(size_t replica, Side from) const { return links_[replica].silent[static_cast<size_t>(from)]; }
  void SetSilent(size_t replica, Side from, bool silent) {
    links_[replica].silent[static_cast<size_t>(from)] = silent;
  }
  bool Through(size_t replica) const {
    return !Silent(replica, Side::kPrimary) && !Silent(replica, Side::kReplica);
  }
  void SetSlow(size_t replica, bool slow) { links_[replica].slow = slow; }
  Time Delay(size_t replica);
  // Cuts one of the connections, or all.
  void CutOne(size_t replica);
  void CutAll(size_t replica);
  // The replica's process (or its machine) is gone.
  void ReplicaGone(size_t replica, bool machine);
  void PrimaryGone();
  bool damage = false;    // a bit in a stream now and then
  uint64_t messages = 0;  // sent so far: each is a frame, or the answers to some
  Signal sent;            // there is one more

 private:
  struct Link {
    std::array<bool, 2> silent{};
    bool slow = false;
    std::vector<std::weak_ptr<Connection>> connections;
  };
  std::vector<std::shared_ptr<Connection>> All(size_t replica);
  World& world_;
  std::vector<Link> links_;
};

}  // namespace pmirror::sim
