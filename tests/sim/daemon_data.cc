// SPDX-License-Identifier: BSD-3-Clause
// Captures and syncs of the daemon. Mirrors fs/volume_replicator_data.cc.
#include <algorithm>
#include <cerrno>
#include <cstring>

#include "tests/sim/daemon.h"
#include "tests/sim/daemon_capture.h"
#include "tests/sim/program.h"

namespace pmirror::sim {
namespace {

constexpr Extent kWholeFile{0, INT64_MAX};
constexpr Time kConvergePause = 30 * kMs;

}  // namespace

void Daemon::UpdateFlag(FileId file) {
  const FileState& state = State(file);
  std::atomic<uint32_t>& flags = Slot(file).slot->flags;
  const bool up = state.flag_reasons != 0 || !state.dirty.empty() || !state.under_way.empty() ||
                  state.durable_changes < state.changes;
  up ? flags.fetch_or(kFileDaemonDirty) : flags.fetch_and(~kFileDaemonDirty);
  state.mappers.size() > 1 ? flags.fetch_or(kFileShared) : flags.fetch_and(~kFileShared);
}

void Daemon::Hold(FileId file, Extent extent) {
  FileState& state = State(file);
  if (!state.gone) {
    state.dirty.Add(extent);
    UpdateFlag(file);
    Keep(file);
  }
}

void Daemon::Keep(FileId file) {
  if (!State(file).gone) {
    unsettled_[file] = true;
  }
  wake_.Notify();
}

Sync::Terms Daemon::TermsOf(FileId file) {
  SharedVolume::File& shared = Slot(file);
  Sync::Terms terms;
  terms.sessions = Sessions();
  terms.file = file;
  terms.order = shared.order.get();
  terms.slot = shared.slot;
  return terms;
}

uint64_t Daemon::LastOperationOf(FileId file) {
  const uint64_t generation = Slot(file).slot->size_generation;
  const bool under_way = generation % 2 != 0 && !world_.Has(Planted::kSyncBesideTruncate);
  return under_way ? log_.last() : generation / 2;
}

Task<int> Daemon::TrySend(FileId file, Capture& capture, WaitLevel level, bool local, bool own) {
  FileState& state = State(file);
  int error = co_await AwaitOperation(LastOperationOf(file), own);
  if (error == 0) {
    const uint64_t mark = state.changes;
    Sync::Terms terms = TermsOf(file);
    terms.extents = capture.extents().extents();
    terms.level = level;
    terms.local = local;
    terms.own_wait = own;
    Sync sync(world_, *shared_, node_.disk, std::move(terms));
    error = co_await sync.Run();
    if (level == WaitLevel::kReceived) {
      ++state.changes;
      UpdateFlag(file);
    }
    if (error == 0) {
      capture.Succeeded();
      if (level == WaitLevel::kDurable) {
        state.durable_changes = std::max(state.durable_changes, mark);
        UpdateFlag(file);
      }
    }
  }
  co_return error != 0 && state.gone ? 0 : error;
}

Task<int> Daemon::Send(FileId file, Capture& capture, WaitLevel level, bool local) {
  const int error = co_await TrySend(file, capture, level, local, false);
  if (error != 0) {
    Keep(file);
  }
  co_return error;
}

Task<int> Daemon::SendTo(size_t replica, FileId file, Extent extent) {
  const int delivered = co_await links_[replica]->courier().Deliver(Slot(file).slot->size_generation / 2,
                                                                    world_.now() + world_.settings.deadline);
  if (delivered != 0) {
    co_return delivered;
  }
  Sync::Terms terms = TermsOf(file);
  terms.extents = {extent};
  terms.level = WaitLevel::kReceived;
  terms.own_wait = true;
  terms.only = replica;
  Sync sync(world_, *shared_, node_.disk, std::move(terms));
  const int error = co_await sync.Run();
  co_return error;
}

void Daemon::Take(FileId file, Extent range, const Program* except, fs::ExtentSet& taken) {
  for (Program* const program : State(file).mappers) {
    if (program != except) {
      program->TakePages(file, range, taken);
      program->AddTickets(file, range, taken);
    }
  }
}

Task<int> Daemon::CaptureAndSync(FileId file, Extent range, const Program* asking, bool local) {
  FileState& state = State(file);
  ++state.flag_reasons;
  UpdateFlag(file);
  co_await world_.loop.Step();
  fs::ExtentSet taken;
  Take(file, range, asking, taken);
  int error = 0;
  {
    Capture capture(*this, file, range, taken);
    error = co_await Send(file, capture, WaitLevel::kDurable, local);
  }
  --state.flag_reasons;
  UpdateFlag(file);
  if (error == 0) {
    Trim();
  }
  co_return error;
}

Task<int> Daemon::SyncOthers(FileId file, Extent range, const Program* asking) {
  const int error = co_await CaptureAndSync(file, range, asking, false);
  co_return error;
}

Task<int> Daemon::Write(FileId file, uint64_t word) {
  FileState& state = State(file);
  DiskFile* const there = node_.disk.Find(file);
  if (there == nullptr || leaving_) {
    co_return ENOENT;
  }
  const bool was_in_use = InUse(file);
  ++state.handles;
  if (!Marked(file, was_in_use)) {
    --state.handles;
    co_return EIO;
  }
  const uint64_t value = world_.Stamp();
  const uint64_t old_size = there->size;
  oracle_.Stored(file, word, value);
  node_.disk.Write(*there, word * kWord, std::as_bytes(std::span(&value, 1)));
  world_.Trace("primary: WRITE of {} to word {} of {:#x}", value, word, Raw(file));
  fs::ExtentSet written;
  written.Add({word * kWord, kWord});
  if (old_size < word * kWord) {  // what mappings stored behind the old end (TailOf)
    const uint64_t page_end = (old_size + 4095) / 4096 * 4096;
    if (page_end > old_size) {
      written.Add({old_size, std::min(page_end, word * kWord + kWord) - old_size});
    }
  }
  int error = 0;
  {
    Capture capture(*this, file, {word * kWord, kWord}, written);
    error = co_await Send(file, capture, WaitLevel::kReceived, false);
  }
  --state.handles;
  co_return error;
}

Task<int> Daemon::Fsync(FileId file) {
  if (node_.disk.Find(file) == nullptr || leaving_) {
    co_return ENOENT;
  }
  const int delivered = co_await AwaitOperation(log_.last(), false);
  if (delivered != 0) {
    co_return delivered;
  }
  const int error = co_await CaptureAndSync(file, kWholeFile, nullptr, true);
  co_return error;
}

Task<int> Daemon::Barrier(bool own) {
  const int delivered = co_await AwaitOperation(log_.last(), own);
  if (delivered != 0) {
    co_return delivered;
  }
  Sync::Terms terms;
  terms.sessions = Sessions();
  terms.own_wait = own;
  Sync sync(world_, *shared_, node_.disk, std::move(terms));
  const int error = co_await sync.Run();
  if (error == 0) {
    Trim();
  }
  co_return error;
}

// --- programs ---

Task<int> Daemon::Map(FileId file, Program* program, uint64_t serial) {
  if (leaving_ || ended_.contains(serial) || node_.disk.Find(file) == nullptr) {
    co_return ENOENT;
  }
  const bool was_in_use = InUse(file);
  State(file).mappers.push_back(program);
  UpdateFlag(file);
  if (!Marked(file, was_in_use)) {
    std::erase(State(file).mappers, program);
    UpdateFlag(file);
    co_return EIO;
  }
  Slot(file);
  co_return 0;
}

Task<Connected> Daemon::OpenSession(size_t replica, Program* program, SessionId session, Sequence next,
                                    Time deadline) {
  Connected made = co_await links_[replica]->ConnectProcess(session, next, deadline);
  if (made.error != 0) {
    co_return made;
  }
  for (const auto& [id, state] : files_) {
    if (std::find(state.mappers.begin(), state.mappers.end(), program) == state.mappers.end()) {
      continue;
    }
    const int error = co_await links_[replica]->Exchange(FrameKind::kGrant, id, Raw(made.session),
                                                         WaitLevel::kReceived, deadline);
    if (error != 0) {
      made.connection->Close(Side::kPrimary);
      made.error = error;
      co_return made;
    }
  }
  co_return made;
}

void Daemon::ProcessEnded(Program* program, uint64_t serial) {
  ended_[serial] = true;
  for (auto& [id, state] : files_) {
    if (std::erase(state.mappers, program) != 0) {
      if (!world_.Has(Planted::kDeadProcessForgotten)) {
        Hold(id, {0, kMaxSize});
      }
      UpdateFlag(id);
    }
  }
}

// --- what is left behind ---

bool Daemon::WantedConnected() const {
  const SetWord set = shared_->set();
  for (size_t i = 0; i < links_.size(); ++i) {
    if (Wanted(i) && !links_[i]->session().connected()) {
      return false;
    }
  }
  return MaySucceed(shared_->page(), set);
}

Task<> Daemon::Converge() {
  while (true) {
    co_await wake_.Wait(world_.now() + 200 * kMs);
    while (true) {
      const bool settled = co_await ConvergeOnce();
      if (settled) {
        break;
      }
      co_await wake_.Wait(world_.now() + kConvergePause);
    }
    co_await Settle();
  }
}

Task<bool> Daemon::ConvergeOnce() {
  std::vector<FileId> unsettled;
  for (const auto& [id, kept] : unsettled_) {
    unsettled.push_back(id);
  }
  bool settled = true;
  for (const FileId id : unsettled) {
    int error = ENOTCONN;
    if (WantedConnected()) {
      const fs::ExtentSet nothing;
      Capture capture(*this, id, kWholeFile, nothing);
      error = co_await TrySend(id, capture, WaitLevel::kReceived, false, true);
    }
    if (error != 0 || !State(id).dirty.empty() || !State(id).under_way.empty()) {
      settled = false;
    } else {
      unsettled_.erase(id);
    }
  }
  co_return settled;
}

}  // namespace pmirror::sim
