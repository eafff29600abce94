// SPDX-License-Identifier: BSD-3-Clause
// A call into another process: its work is done in that process's group, and dies with it; the caller waits for the answer.
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "tests/sim/network.h"
#include "tests/sim/replica.h"
#include "tests/sim/scheduler.h"

namespace pmirror::sim {

template <typename T>
struct Answer {
  explicit Answer(Scheduler& loop) : ready(loop) {}
  std::optional<T> value;
  Signal ready;
};

template <typename T>
Task<> RunCall(Task<T> task, std::shared_ptr<Answer<T>> answer) {
  T value = co_await task;
  answer->value = std::move(value);
  answer->ready.Notify();
}

// What a caller wants done there. Named before it is awaited: GCC 12 destroys a closure twice that is a temporary of an
// expression with co_await.
template <typename T>
using AtReplica = std::function<Task<T>(Replica&)>;

// One call of the control protocol. Nothing: no answer in time, or the replica is not there. `make` runs at the replica.
template <typename T>
Task<> ServeCall(World& world, Network& network, size_t index, Task<T> task,
                 std::shared_ptr<Answer<T>> answer) {
  T value = co_await task;
  co_await world.loop.Sleep(network.Delay(index));
  if (network.Through(index)) {
    answer->value = std::move(value);
    answer->ready.Notify();
  }
}

template <typename T>
Task<std::optional<T>> CallReplica(World& world, Network& network, Replica& replica, size_t index,
                                   Time timeout, const std::function<Task<T>(Replica&)>& make) {
  const Time deadline = world.now() + timeout;
  co_await world.loop.Sleep(network.Delay(index));
  if (!network.Through(index)) {
    co_await world.loop.Sleep(deadline > world.now() ? deadline - world.now() : 1);
    co_return std::nullopt;
  }
  if (!replica.up()) {
    co_return std::nullopt;
  }
  auto answer = std::make_shared<Answer<T>>(world.loop);
  world.loop.Spawn(replica.group(), ServeCall<T>(world, network, index, make(replica), answer));
  while (!answer->value.has_value() && world.now() < deadline) {
    co_await answer->ready.Wait(deadline);
  }
  co_return answer->value;
}

}  // namespace pmirror::sim
