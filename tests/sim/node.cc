// SPDX-License-Identifier: BSD-3-Clause
// See node.h; faults.cc has what goes wrong.
#include "tests/sim/node.h"

#include <algorithm>

namespace pmirror::sim {
namespace {

constexpr Time kToSettle = 20000 * kMs;  // after which everything has to be in sync again
constexpr uint64_t kCheckEvery = 64;     // events
constexpr size_t kPrograms = 2;

}  // namespace

Settings SettingsOf(uint64_t seed) {
  Rng rng(seed * 7919 + 17);
  constexpr std::array kPolicies = {OnLoss::kSuspend, OnLoss::kProceed, OnLoss::kProceed, OnLoss::kFail};
  Settings settings;
  settings.seed = seed;
  settings.replicas = rng.Chance(400) ? 2 : 1;
  settings.on_loss = kPolicies[rng.Below(kPolicies.size())];
  settings.deadline = rng.Between(40, 120) * kMs;
  settings.suspend = rng.Between(50, 200) * kMs;
  settings.truncates = rng.Chance(250) ? 20 : 4;
  return settings;
}

Node::Node(const Settings& settings)
    : world_(settings),
      network_(world_, settings.replicas),
      oracle_(world_),
      primary_(world_),
      replica_busy_(settings.replicas, false) {
  oracle_.AddCopy(primary_.disk);
  for (size_t i = 0; i < settings.replicas; ++i) {
    replicas_.push_back(std::make_unique<Replica>(world_, network_, oracle_, i, i + 1));
    oracle_.AddCopy(replicas_[i]->disk());
    replicas_[i]->Start();
  }
  programs_.resize(kPrograms);
  Mount();
  world_.loop.Spawn(group_, SetUp());
}

Node::~Node() {
  group_.Clear();
  for (const std::unique_ptr<Program>& program : programs_) {
    if (program != nullptr) {
      program->group().Clear();
    }
  }
  if (daemon_ != nullptr) {
    daemon_->group().Clear();
  }
  for (const std::unique_ptr<Replica>& replica : replicas_) {
    if (replica->up()) {
      replica->group().Clear();
    }
  }
  programs_.clear();
  daemon_.reset();
}

void Node::Mount() {
  std::vector<Replica*> replicas;
  for (const std::unique_ptr<Replica>& replica : replicas_) {
    replicas.push_back(replica.get());
  }
  ++mounts_;
  daemon_ = std::make_unique<Daemon>(world_, network_, oracle_, primary_, replicas);
}

void Node::StartProgram(size_t index) {
  programs_[index] = std::make_unique<Program>(world_, oracle_, *this, index);
}

// The volume with its files, before anything goes wrong.
Task<> Node::SetUp() {
  for (int i = 0; i < 2; ++i) {
    auto made = std::make_shared<Answer<int>>(world_.loop);
    world_.loop.Spawn(daemon_->group(), RunCall<int>(daemon_->Create(fmt::format("m{}", i)), made));
    while (!made->value.has_value()) {
      co_await made->ready.Wait(kForever);
    }
    const FileId id = primary_.disk.FindName(fmt::format("m{}", i))->id;
    auto grown = std::make_shared<Answer<int>>(world_.loop);
    world_.loop.Spawn(daemon_->group(), RunCall<int>(daemon_->Truncate(id, kMaxSize), grown));
    while (!grown->value.has_value()) {
      co_await grown->ready.Wait(kForever);
    }
  }
  for (size_t i = 0; i < kPrograms; ++i) {
    StartProgram(i);
  }
  world_.loop.Spawn(group_, Faults());
}

bool Node::Quiet() const {
  const bool programs = std::all_of(programs_.begin(), programs_.end(), [](const auto& program) {
    return program != nullptr && program->finished();
  });
  return programs && daemon_ != nullptr && daemon_->AllInSync() && daemon_->Settled();
}

std::string Node::Run() {
  bool finishing = false;
  Time settled_by = 0;
  Time quiet_since = 0;
  while (oracle_.wrong().empty()) {
    if (!world_.loop.RunOne()) {
      return "the simulation stands still";
    }
    if (world_.loop.events() % kCheckEvery == 0) {
      oracle_.Check();
    }
    if (world_.now() > world_.settings.troubled && !finishing) {
      finishing = true;
      Heal();
      settled_by = world_.now() + kToSettle;
    }
    if (finishing) {
      for (const std::unique_ptr<Program>& program : programs_) {
        if (program != nullptr) {
          program->Finish();
        }
      }
      if (!Quiet()) {
        quiet_since = world_.now();
      } else if (world_.now() > quiet_since + 2 * world_.settings.deadline) {
        break;
      }
      if (world_.now() > settled_by) {
        oracle_.Object("P5: everything is healed, and the copies do not come in sync");
      }
    }
  }
  oracle_.Check();
  return oracle_.wrong().empty() ? Compare() : oracle_.wrong();
}

// P5: all copies are equal.
std::string Node::Compare() {
  for (size_t i = 0; i < replicas_.size(); ++i) {
    Disk& copy = replicas_[i]->disk();
    if (copy.tree().names != primary_.disk.tree().names) {
      return fmt::format("P5: the tree of replica {} differs", i);
    }
    if (replicas_[i]->record().resyncing) {
      return fmt::format("P5: replica {} is in sync and says it is resyncing", i);
    }
    for (const auto& [name, id] : copy.tree().names) {
      const DiskFile& ours = *primary_.disk.Find(id);
      const DiskFile& theirs = *copy.Find(id);
      if (ours.size != theirs.size) {
        return fmt::format("P5: {} has {} bytes and {} on replica {}", name, ours.size, theirs.size, i);
      }
      for (size_t word = 0; word * kWord < ours.size; ++word) {
        if (ours.words[word] != theirs.words[word]) {
          return fmt::format("P5: word {} of {} ({:#x}) is {} and {} on replica {}", word, name, Raw(id),
                             ours.words[word], theirs.words[word], i);
        }
      }
    }
  }
  return "";
}

}  // namespace pmirror::sim
