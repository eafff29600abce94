// SPDX-License-Identifier: BSD-3-Clause
// What a program does. See program.h; program_sync.cc has the sync.
#include "tests/sim/program.h"

#include <algorithm>
#include <cerrno>

#include "tests/sim/node.h"
#include "tests/sim/program_path.h"

namespace pmirror::sim {
namespace {

constexpr size_t kThreads = 2;
constexpr size_t kMapped = 2;  // files that every program maps

}  // namespace

Program::Program(World& world, Oracle& oracle, Node& node, size_t index)
    : world_(world),
      oracle_(oracle),
      node_(node),
      index_(index),
      serial_(world.Stamp()),
      tickets_changed_(world.loop) {
  for (size_t i = 0; i < world.settings.replicas; ++i) {
    paths_.push_back(std::make_unique<Path>(world, node, *this, i));
  }
  threads_ = kThreads;
  for (size_t i = 0; i < kThreads; ++i) {
    world.loop.Spawn(group_, Thread());
  }
}

Program::~Program() {
  group_.Clear();
  for (const uint64_t token : running_syncs_) {
    oracle_.SyncDied({token});
  }
}

std::vector<Session*> Program::Sessions() {
  std::vector<Session*> sessions;
  for (const std::unique_ptr<Path>& path : paths_) {
    sessions.push_back(&path->session);
  }
  return sessions;
}

// The request runs in the daemon, and dies with it.
Task<int> Program::Ask(const Request& request) {
  co_await world_.loop.Step();
  Daemon* const daemon = node_.daemon();
  if (daemon == nullptr || daemon->shared_volume() != shared_) {
    co_return EIO;
  }
  const uint64_t mount = node_.mounts();
  auto answer = std::make_shared<Answer<int>>(world_.loop);
  world_.loop.Spawn(daemon->group(), RunCall<int>(request(*daemon), answer));
  while (!answer->value.has_value() && node_.daemon() != nullptr && node_.mounts() == mount) {
    co_await answer->ready.Wait(world_.now() + 20 * kMs);
  }
  co_return answer->value.value_or(EIO);
}

Task<bool> Program::MapFiles() {
  for (size_t i = 0; i < kMapped; ++i) {
    const std::string name = fmt::format("m{}", i);
    DiskFile* const file = node_.disk().FindName(name);
    if (file == nullptr || mapped_.contains(file->id)) {
      continue;
    }
    const FileId id = file->id;
    const Request request = [id, this](Daemon& daemon) { return daemon.Map(id, this, serial_); };
    const int error = co_await Ask(request);
    if (error != 0) {
      co_return false;
    }
    mapped_.insert(id);
  }
  co_return !mapped_.empty();
}

Task<> Program::Thread() {
  co_await world_.loop.Sleep(world_.rng().Below(world_.rng().Chance(700) ? 2 * kMs : 150 * kMs));
  if (shared_ == nullptr && node_.daemon() != nullptr) {
    shared_ = node_.daemon()->shared_volume();
  }
  while (!finishing_) {
    co_await Act();
    co_await world_.loop.Sleep(world_.rng().Between(20, 3 * kMs));
  }
  // What was stored is to be on every copy at the end.
  for (const FileId file : mapped_) {
    bool synced = false;
    for (int attempt = 0; attempt < 20 && !synced; ++attempt) {
      synced = co_await Msync(file, 0, kPages);
      co_await world_.loop.Sleep(5 * kMs);
    }
  }
  --threads_;
}

Task<> Program::Act() {
  const uint64_t what = world_.rng().Below(100);
  if (mapped_.size() < kMapped || what >= 92) {
    if (mapped_.size() < kMapped) {
      co_await MapFiles();
    }
    co_await NameSomething();
    co_return;
  }
  const FileId file = *std::next(mapped_.begin(), static_cast<ptrdiff_t>(world_.rng().Below(mapped_.size())));
  if (world_.rng().Below(100) < world_.settings.truncates) {
    const uint64_t size = world_.rng().Below(kMaxSize / 512 + 1) * 512;
    const Request request = [file, size](Daemon& daemon) { return daemon.Truncate(file, size); };
    co_await Ask(request);
  } else if (what < 84) {
    StoreSome(file);
    co_await world_.loop.Step();
    if (world_.rng().Chance(700)) {
      const uint64_t first = world_.rng().Below(kPages);
      const uint64_t pages = world_.rng().Chance(300) ? kPages - first : 1;
      co_await Msync(file, first, pages);
    }
  } else if (what < 89) {
    const uint64_t word =
        world_.rng().Below(kPages) * 512 + kStoredWords[world_.rng().Below(kStoredWords.size())];
    const Request request = [file, word](Daemon& daemon) { return daemon.Write(file, word); };
    co_await Ask(request);
  } else {
    const Oracle::SyncToken token = oracle_.SyncBegins(file, 0, kMaxWords, LongestSync(world_.settings) * 2);
    running_syncs_.insert(token.id);
    const Request request = [file](Daemon& daemon) { return daemon.Fsync(file); };
    const int error = co_await Ask(request);
    running_syncs_.erase(token.id);
    oracle_.SyncReturned(token, error == 0);
  }
}

void Program::StoreSome(FileId id) {
  DiskFile* const file = node_.disk().Find(id);
  for (uint64_t stores = world_.rng().Between(1, 3); file != nullptr && stores > 0; --stores) {
    const uint64_t word =
        world_.rng().Below(kPages) * 512 + kStoredWords[world_.rng().Below(kStoredWords.size())];
    if ((word + 1) * kWord > file->size) {
      continue;  // SIGBUS
    }
    const uint64_t value = world_.Stamp();
    oracle_.Stored(id, word, value);
    node_.disk().Store(*file, word, value);
    dirty_pages_[id].insert(word / 512);
    world_.Trace("p{}: store {} to word {} of {:#x}", index_, value, word, Raw(id));
  }
}

Task<> Program::NameSomething() {
  const std::string name = fmt::format("n{}", world_.rng().Below(3));
  const std::string other = fmt::format("n{}", world_.rng().Below(3));
  const uint64_t what = world_.rng().Below(10);
  DiskFile* const file = node_.disk().FindName(name);
  const FileId id = file == nullptr ? FileId::kNone : file->id;
  if (what < 4 || file == nullptr) {
    const Request request = [name](Daemon& daemon) { return daemon.Create(name); };
    co_await Ask(request);
  } else if (what < 6) {
    const Request request = [name](Daemon& daemon) { return daemon.Unlink(name); };
    co_await Ask(request);
  } else if (what < 8) {
    const Request request = [name, other](Daemon& daemon) { return daemon.Rename(name, other); };
    co_await Ask(request);
  } else {
    const uint64_t word = kStoredWords[world_.rng().Below(3)];
    const Request request = [id, word](Daemon& daemon) { return daemon.Write(id, word); };
    co_await Ask(request);
  }
}

// --- for the daemon ---

void Program::TakePages(FileId id, Extent range, fs::ExtentSet& taken) {
  std::set<uint64_t>& pages = dirty_pages_[id];
  for (auto page = pages.begin(); page != pages.end();) {
    const Extent extent{*page * 4096, 4096};
    if (extent.Overlaps(range)) {
      taken.Add(extent);
      page = pages.erase(page);
    } else {
      ++page;
    }
  }
}

void Program::AddTickets(FileId id, Extent range, fs::ExtentSet& taken) const {
  for (const Ticket& ticket : tickets_) {
    if (ticket.state != TicketState::kFree && ticket.file == id && ticket.range.Overlaps(range)) {
      taken.Add(ticket.range);
    }
  }
}

}  // namespace pmirror::sim
