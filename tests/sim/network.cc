// SPDX-License-Identifier: BSD-3-Clause
// How network.h does it.
#include "tests/sim/network.h"

#include <algorithm>

namespace pmirror::sim {
namespace {

constexpr Time kUserTimeout =
    100 * kMs;                        // what sent bytes may go unacknowledged before their sender gives up
constexpr Time kLookAgain = 8 * kMs;  // whether a silence is over

constexpr Side Other(Side side) { return side == Side::kPrimary ? Side::kReplica : Side::kPrimary; }

}  // namespace

Connection::Connection(Network& network, size_t replica)
    : network_(network), replica_(replica), ends_{End(network.world().loop), End(network.world().loop)} {}

void Connection::Send(Side from, std::vector<std::byte> bytes) {
  if (end(from).dead || bytes.empty()) {
    return;
  }
  Rng& rng = network_.world().rng();
  if (network_.damage && rng.Chance(4)) {
    bytes[rng.Below(bytes.size())] ^= std::byte{1};
  }
  if (bytes.size() > 1 && rng.Chance(80)) {  // in two segments
    const auto half = bytes.begin() + static_cast<ptrdiff_t>(1 + rng.Below(bytes.size() - 1));
    Put(from, {.bytes = {bytes.begin(), half}});
    Put(from, {.bytes = {half, bytes.end()}});
  } else {
    Put(from, {.bytes = std::move(bytes)});
  }
  ++network_.messages;
  network_.sent.Notify();
}

void Connection::Put(Side from, Chunk chunk) {
  const auto index = static_cast<size_t>(from);
  Scheduler& loop = network_.world().loop;
  const Time arrival = std::max(last_arrival_[index], loop.now() + network_.Delay(replica_));
  last_arrival_[index] = arrival;
  chunk.sent = loop.now();
  under_way_[index].push_back(std::move(chunk));
  loop.At(arrival, [self = shared_from_this(), from] { self->Deliver(from); });
}

void Connection::Deliver(Side from) {
  std::deque<Chunk>& queue = under_way_[static_cast<size_t>(from)];
  if (queue.empty()) {
    return;
  }
  if (network_.Silent(replica_, from)) {
    if (network_.world().now() > queue.front().sent + kUserTimeout) {
      queue.clear();
      Kill(from);
      return;
    }
    network_.world().loop.At(network_.world().now() + kLookAgain,
                             [self = shared_from_this(), from] { self->Deliver(from); });
    return;
  }
  const Chunk chunk = std::move(queue.front());
  queue.pop_front();
  End& to = end(Other(from));
  if (to.dead) {
    if (!network_.Silent(replica_, Other(from))) {
      Kill(from);  // it is told that nobody is there
    }
    return;
  }
  if (chunk.last) {
    Kill(Other(from));
    return;
  }
  to.arrived.insert(to.arrived.end(), chunk.bytes.begin(), chunk.bytes.end());
  to.readable.Notify();
}

void Connection::Kill(Side side) {
  if (!end(side).dead) {
    // The other end asks when it hears nothing (SO_KEEPALIVE), and learns of it at the latest so.
    network_.world().loop.At(network_.world().now() + 2 * kUserTimeout,
                             [self = shared_from_this(), side] { self->Kill(Other(side)); });
  }
  end(side).dead = true;
  end(side).readable.Notify();
}

void Connection::Close(Side side) {
  end(side).closed_here = true;
  if (!end(side).dead) {
    Kill(side);
    Put(side, {.bytes = {}, .last = true});
  }
}

void Connection::DropPart(Side from) {
  std::deque<Chunk>& queue = under_way_[static_cast<size_t>(from)];
  if (!queue.empty() && !network_.Silent(replica_, from) && !end(Other(from)).dead) {
    const std::vector<std::byte>& bytes = queue.front().bytes;
    const size_t part = bytes.empty() ? 0 : network_.world().rng().Below(bytes.size() + 1);
    std::vector<std::byte>& arrived = end(Other(from)).arrived;
    arrived.insert(arrived.end(), bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(part));
    end(Other(from)).readable.Notify();
  }
  queue.clear();
}

void Connection::Cut() {
  DropPart(Side::kPrimary);
  DropPart(Side::kReplica);
  Kill(Side::kPrimary);
  Kill(Side::kReplica);
}

void Connection::Vanish(Side side) {
  DropPart(side);
  Kill(side);
  under_way_[static_cast<size_t>(Other(side))].clear();
}

std::shared_ptr<Connection> Network::Connect(size_t replica) {
  auto connection = std::make_shared<Connection>(*this, replica);
  std::erase_if(links_[replica].connections, [](const auto& weak) { return weak.expired(); });
  links_[replica].connections.push_back(connection);
  return connection;
}

Time Network::Delay(size_t replica) {
  Rng& rng = world_.rng();
  return links_[replica].slow ? rng.Between(kMs, 15 * kMs) : rng.Between(15, 120);
}

std::vector<std::shared_ptr<Connection>> Network::All(size_t replica) {
  std::vector<std::shared_ptr<Connection>> all;
  for (const std::weak_ptr<Connection>& weak : links_[replica].connections) {
    if (std::shared_ptr<Connection> connection = weak.lock()) {
      all.push_back(std::move(connection));
    }
  }
  return all;
}

void Network::CutOne(size_t replica) {
  const std::vector<std::shared_ptr<Connection>> all = All(replica);
  if (!all.empty()) {
    all[world_.rng().Below(all.size())]->Cut();
  }
}

void Network::CutAll(size_t replica) {
  for (const std::shared_ptr<Connection>& connection : All(replica)) {
    connection->Cut();
  }
}

void Network::ReplicaGone(size_t replica, bool machine) {
  for (const std::shared_ptr<Connection>& connection : All(replica)) {
    machine ? connection->Vanish(Side::kReplica) : connection->Close(Side::kReplica);
  }
}

void Network::PrimaryGone() {
  for (size_t replica = 0; replica < links_.size(); ++replica) {
    for (const std::shared_ptr<Connection>& connection : All(replica)) {
      connection->Vanish(Side::kPrimary);
    }
  }
}

}  // namespace pmirror::sim
