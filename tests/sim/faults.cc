// SPDX-License-Identifier: BSD-3-Clause
// What goes wrong, and how it is mended. See node.h.
#include <algorithm>

#include "tests/sim/node.h"

namespace pmirror::sim {

Task<> Node::Faults() {
  if (const std::optional<PowerCut>& cut = world_.settings.only_cut; cut.has_value()) {
    const uint64_t from = network_.messages;
    while (network_.messages - from < cut->message && !healing_) {
      co_await network_.sent.Wait(world_.settings.troubled + 1);
    }
    troubled_messages_ = network_.messages - from;
    cut_ = !healing_;
    if (cut_) {
      world_.loop.Spawn(group_, cut->node == 0 ? RestartDaemon(true) : RestartReplica(cut->node - 1, true));
    }
    co_return;
  }
  while (!healing_) {
    co_await world_.loop.Sleep(world_.rng().Between(2 * kMs, 60 * kMs));
    if (!healing_) {
      world_.loop.Spawn(group_, Fault());
    }
  }
}

Task<> Node::Fault() {
  Rng& rng = world_.rng();
  const size_t replica = rng.Below(replicas_.size());
  const uint64_t what = rng.Below(100);
  const Time duration = rng.Chance(600) ? rng.Between(kMs, 60 * kMs) : rng.Between(60 * kMs, 350 * kMs);
  if (what < 22) {
    world_.Trace("FAULT cut of replica {}", replica);
    rng.Chance(700) ? network_.CutOne(replica) : network_.CutAll(replica);
  } else if (what < 34) {
    const bool to = rng.Chance(700);
    co_await Silence(replica, to, !to || rng.Chance(600), duration);
  } else if (what < 40) {
    network_.SetSlow(replica, true);
    co_await world_.loop.Sleep(duration);
    network_.SetSlow(replica, false);
  } else if (what < 44) {
    network_.damage = true;
    co_await world_.loop.Sleep(duration);
    network_.damage = false;
  } else if (what < 54) {
    co_await RestartReplica(replica, false);
  } else if (what < 64) {
    co_await RestartReplica(replica, true);
  } else if (what < 70) {
    co_await RestartDaemon(false);
  } else if (what < 75) {
    co_await RestartDaemon(true);
  } else if (what < 78) {
    co_await LeaveAndMount();
  } else if (what < 86) {
    co_await RestartProgram();
  } else if (what < 90) {
    co_await FullDisk(replica);
  } else if (what < 94) {
    replicas_[replica]->SetSlowDisk(true);
    co_await world_.loop.Sleep(duration);
    replicas_[replica]->SetSlowDisk(false);
  } else {
    primary_.disk.WriteBackSomething();
    replicas_[replica]->disk().WriteBackSomething();
  }
}

Task<> Node::Silence(size_t replica, bool to, bool from, Time duration) {
  world_.Trace("FAULT silence of replica {}: to {} from {} for {}", replica, to, from, duration);
  network_.SetSilent(replica, Side::kPrimary, to);
  network_.SetSilent(replica, Side::kReplica, from);
  co_await world_.loop.Sleep(duration);
  network_.SetSilent(replica, Side::kPrimary, false);
  network_.SetSilent(replica, Side::kReplica, false);
}

Task<> Node::RestartReplica(size_t replica, bool power) {
  if (replica_busy_[replica]) {
    co_return;
  }
  replica_busy_[replica] = true;
  world_.Trace("FAULT replica {} {}", replica, power ? "power cut" : "kill");
  power ? replicas_[replica]->PowerCut() : replicas_[replica]->Kill();
  co_await world_.loop.Sleep(world_.rng().Between(kMs, 250 * kMs));
  if (!replicas_[replica]->up()) {
    replicas_[replica]->Start();
  }
  replica_busy_[replica] = false;
}

void Node::KillProgram(size_t index) {
  if (programs_[index] == nullptr) {
    return;
  }
  world_.Trace("FAULT program {} killed", index);
  programs_[index]->group().Clear();
  if (daemon_ != nullptr) {
    daemon_->ProcessEnded(programs_[index].get(), programs_[index]->serial());
  }
  programs_[index].reset();
}

void Node::KillDaemon() {
  const std::string marks = primary_.storage->Content("marks");
  primary_.storage->CutBefore(primary_.storage->operations());  // no destructor writes after the kill
  daemon_.reset();
  primary_.storage = std::make_unique<recovery::ForgetfulStorage>();
  primary_.storage->SetContent("marks", marks);
}

// Programs outlive a daemon that is killed for a while; they are ended before the next one mounts.
Task<> Node::RestartDaemon(bool power) {
  if (primary_busy_ || daemon_ == nullptr) {
    co_return;
  }
  primary_busy_ = true;
  world_.Trace("FAULT primary {}", power ? "power cut" : "daemon killed");
  Rng& rng = world_.rng();
  if (power) {
    for (size_t i = 0; i < programs_.size(); ++i) {
      if (programs_[i] != nullptr) {
        programs_[i]->group().Clear();
        programs_[i].reset();
      }
    }
    recovery::RandomChoice choice(rng.Next());
    std::unique_ptr<recovery::ForgetfulStorage> left = primary_.storage->AfterPowerCut(choice);
    primary_.storage->CutBefore(primary_.storage->operations());
    daemon_->group().Clear();
    network_.PrimaryGone();
    daemon_.reset();
    primary_.storage = std::move(left);
    primary_.disk.PowerCut();
    primary_.booted = world_.now();
    oracle_.PrimaryReverted();
  } else {
    KillDaemon();
  }
  co_await world_.loop.Sleep(rng.Between(kMs, 150 * kMs));
  for (size_t i = 0; i < programs_.size(); ++i) {
    KillProgram(i);
  }
  Mount();
  primary_busy_ = false;
  for (size_t i = 0; i < programs_.size(); ++i) {
    StartProgram(i);
  }
}

// Programs end, the daemon leaves the volume and mounts it again.
Task<> Node::LeaveAndMount() {
  if (primary_busy_ || daemon_ == nullptr) {
    co_return;
  }
  primary_busy_ = true;
  for (size_t i = 0; i < programs_.size(); ++i) {
    KillProgram(i);
  }
  auto left = std::make_shared<Answer<bool>>(world_.loop);
  world_.loop.Spawn(daemon_->group(), RunCall<bool>(daemon_->Leave(), left));
  const Time deadline = world_.now() + 1000 * kMs;
  while (!left->value.has_value() && world_.now() < deadline) {
    co_await left->ready.Wait(deadline);
  }
  world_.Trace("FAULT the mount ended {}", left->value.value_or(false) ? "cleanly" : "uncleanly");
  KillDaemon();
  co_await world_.loop.Sleep(world_.rng().Between(kMs, 50 * kMs));
  Mount();
  primary_busy_ = false;
  for (size_t i = 0; i < programs_.size(); ++i) {
    StartProgram(i);
  }
}

Task<> Node::RestartProgram() {
  const size_t index = world_.rng().Below(programs_.size());
  if (primary_busy_) {
    co_return;
  }
  KillProgram(index);
  co_await world_.loop.Sleep(world_.rng().Between(kMs, 20 * kMs));
  if (!primary_busy_ && programs_[index] == nullptr) {
    StartProgram(index);
  }
}

Task<> Node::FullDisk(size_t replica) {
  world_.Trace("FAULT replica {} is full", replica);
  replicas_[replica]->disk().full = true;
  co_await world_.loop.Sleep(world_.rng().Between(5 * kMs, 120 * kMs));
  replicas_[replica]->disk().full = false;
}

// Restarts that are under way go on by themselves.
void Node::Heal() {
  world_.Trace("HEALED");
  healing_ = true;
  network_.damage = false;
  for (size_t i = 0; i < replicas_.size(); ++i) {
    network_.SetSlow(i, false);
    network_.SetSilent(i, Side::kPrimary, false);
    network_.SetSilent(i, Side::kReplica, false);
    replicas_[i]->SetSlowDisk(false);
    replicas_[i]->disk().full = false;
  }
}

}  // namespace pmirror::sim
