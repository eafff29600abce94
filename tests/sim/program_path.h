// SPDX-License-Identifier: BSD-3-Clause
// A program's session to one replica: asks the daemon for a connection, as interpose/volume.cc and fs/client_sessions.cc do.
#pragma once

#include "tests/sim/node.h"
#include "tests/sim/program.h"

namespace pmirror::sim {

class Program::Path : public Connecting {
 public:
  Path(World& world, Node& node, Program& program, size_t replica)
      : session(world, program.group_, *this),
        world_(world),
        node_(node),
        program_(program),
        replica_(replica) {}

  Task<Connected> Connect(SessionId id, Sequence next, Time deadline) override {
    Daemon* const daemon = node_.daemon();
    if (daemon == nullptr || daemon->shared_volume() != program_.shared_) {
      co_await world_.loop.Sleep(5 * kMs);
      co_return Connected{.error = EIO, .connection = nullptr};
    }
    const uint64_t mount = node_.mounts();
    auto answer = std::make_shared<Answer<Connected>>(world_.loop);
    world_.loop.Spawn(
        daemon->group(),
        RunCall<Connected>(daemon->OpenSession(replica_, &program_, id, next, deadline), answer));
    while (!answer->value.has_value() && node_.daemon() != nullptr && node_.mounts() == mount &&
           world_.now() < deadline + 50 * kMs) {
      co_await answer->ready.Wait(world_.now() + 20 * kMs);
    }
    if (!answer->value.has_value()) {
      co_return Connected{.error = EIO, .connection = nullptr};
    }
    co_return *answer->value;
  }

  Session session;

 private:
  World& world_;
  Node& node_;
  Program& program_;
  const size_t replica_;
};

}  // namespace pmirror::sim
