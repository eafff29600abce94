// SPDX-License-Identifier: BSD-3-Clause
// How a copy is brought back. Mirrors fs/resync_runner.cc and fs/replica_link_resync.cc.
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>

#include "recovery/object_id.h"
#include "recovery/tree_plan.h"
#include "tests/sim/daemon.h"
#include "tests/sim/link.h"

namespace pmirror::sim {
namespace {

using Step = recovery::ResyncMachine::Step;

constexpr Time kRetryPause = 10 * kMs;
constexpr Time kCallTimeout = 100 * kMs;

}  // namespace

Task<bool> Link::BringBack() {
  const std::optional<Replica::CopyState> copy = co_await AskCopy(world_.settings.deadline);
  if (!copy.has_value()) {
    co_return false;
  }
  const fs::CopyDecision decision = Evaluate(*copy);
  tree_as_of_.reset();
  followed_mount_.reset();
  if (copy->record.generation == daemon_.history_.generation) {
    followed_mount_ = copy->record.mount_number;
  }
  if (decision == fs::CopyDecision::kReplay) {
    tree_as_of_ = copy->operation;
  }
  const uint64_t demands = demands_;
  resyncing_ = true;
  world_.Trace("link {}: resync begins, {}", index_,
               tree_as_of_.has_value() ? "tree by replay" : "whole tree");
  const bool back = co_await RunResync();
  resyncing_ = false;
  world_.Trace("link {}: resync {}", index_, back ? "done" : "failed");
  const bool counts = back && demands_ == demands;
  if (counts) {
    proven_ = true;
    resync_due_ = false;
  } else {
    daemon_.SetLeave(index_);
  }
  co_return counts;
}

Task<bool> Link::RunResync() {
  joined_ = false;
  walked_at_.reset();
  regular_.clear();
  Machine machine;
  Time last_success = world_.now();
  while (machine.action().step != Step::kDone) {
    if (joined_ && !daemon_.Wanted(index_)) {
      co_return false;
    }
    const Step step = machine.action().step;
    const int error = co_await RunStep(machine);
    const bool repeatable = step == Step::kCompare || step == Step::kSend;
    if (error == 0) {
      last_success = world_.now();
      co_await world_.loop.Step();
    } else if (!repeatable || error != EAGAIN || world_.now() - last_success > world_.settings.deadline) {
      co_return false;
    } else {
      co_await world_.loop.Sleep(kRetryPause);
    }
  }
  co_return true;
}

Task<int> Link::RunStep(Machine& machine) {
  int error = 0;
  switch (machine.action().step) {
    case Step::kBegin:
      error = co_await BeginStep();
      break;
    case Step::kChangeTree:
      error = co_await ChangeTree();
      break;
    case Step::kJoin:
      error = co_await JoinStep();
      break;
    case Step::kListFiles:
      error = co_await ListFiles(machine);
      co_return error;
    case Step::kCompare:
      error = co_await Compare(machine);
      co_return error;
    case Step::kSend:
      error = co_await SendStep(machine);
      co_return error;
    case Step::kEnd:
      error = co_await EndStep();
      break;
    case Step::kAdmit:
      if (world_.Has(Planted::kJoinedAfterData)) {
        daemon_.SetJoin(index_);
      }
      error = daemon_.SetAdmit(index_) ? 0 : EIO;
      break;
    case Step::kDone:
      break;
  }
  if (error == 0) {
    machine.Done();
  }
  co_return error;
}

Task<int> Link::BeginStep() {
  recovery::MarkMap& marks = *daemon_.marks_;
  if (!followed_mount_.has_value() || !marks.NamesEverything(index_, *followed_mount_)) {
    if (!marks.MarkAll(index_).ok()) {
      co_return EIO;
    }
  }
  const uint64_t mount = daemon_.mount_number_;
  const uint64_t generation = daemon_.history_.generation;
  const AtReplica<uint64_t> work = [mount, generation](Replica& replica) {
    return replica.BeginResync(mount, generation);
  };
  const std::optional<uint64_t> token = co_await Call<uint64_t>(kCallTimeout, work);
  token_ = token.value_or(0);
  co_return token_ != 0 ? 0 : EIO;
}

Task<int> Link::AdoptMount(uint64_t operation) {
  const uint64_t token = token_;
  const AtReplica<bool> work = [token, operation](Replica& replica) {
    return replica.AdoptMount(token, operation);
  };
  const std::optional<bool> adopted = co_await Call<bool>(kCallTimeout, work);
  is_member_ = is_member_ || adopted.value_or(false);
  co_return adopted.value_or(false) ? 0 : EIO;
}

Task<int> Link::ChangeTree() {
  if (tree_as_of_.has_value()) {
    const int adopted = co_await AdoptMount(*tree_as_of_);
    co_return adopted;
  }
  // The tree at rest, for one moment.
  walked_at_ = daemon_.log_.last();
  const recovery::Inventory ours = daemon_.node_.disk.Inventory();
  for (const recovery::TreeItem& item : ours) {
    if (S_ISREG(item.mode)) {
      regular_.emplace(item.id, item.size);
    }
  }
  const uint64_t operation = *walked_at_;
  const AtReplica<recovery::Inventory> work = [](Replica& replica) { return replica.Inventory(); };
  const std::optional<recovery::Inventory> theirs = co_await Call<recovery::Inventory>(kCallTimeout, work);
  if (!theirs.has_value()) {
    co_return EIO;
  }
  const recovery::TreePlan plan = recovery::PlanTree(ours, *theirs);
  if (!plan.obstacles.empty()) {
    daemon_.oracle_.Object("the plan of a tree meets an obstacle");
    co_return EIO;
  }
  recovery::MarkMap& marks = *daemon_.marks_;
  for (const NamespaceOp& op : plan.operations) {
    // More than MarkChanged: also what is compared in any case.
    const bool data = op.kind == OpKind::kCreate || op.kind == OpKind::kTruncate;
    if (data && !world_.Has(Planted::kPlanNotMarked) && !marks.Mark(op.target).ok()) {
      co_return EIO;
    }
  }
  const uint64_t token = token_;
  const AtReplica<bool> change = [token, operations = plan.operations](Replica& replica) {
    return replica.ChangeTree(token, operations);
  };
  const std::optional<bool> changed = co_await Call<bool>(kCallTimeout, change);
  if (!changed.value_or(false)) {
    co_return EIO;
  }
  const int adopted = co_await AdoptMount(operation);
  co_return adopted;
}

Task<int> Link::JoinStep() {
  session_.Disconnect();
  const int connected = co_await session_.EnsureConnected(world_.now() + world_.settings.deadline);
  if (connected != 0) {
    co_return connected;
  }
  if (!world_.Has(Planted::kJoinedBeforeTree)) {
    const int delivered =
        co_await courier_.Deliver(daemon_.log_.last(), world_.now() + world_.settings.deadline);
    if (delivered != 0) {
      co_return delivered;
    }
  }
  if (world_.Has(Planted::kJoinedAfterData)) {
    co_return 0;
  }
  daemon_.SetJoin(index_);
  joined_ = true;
  if (!world_.Has(Planted::kJoinedBeforeTree)) {
    const int again = co_await courier_.Deliver(daemon_.log_.last(), world_.now() + world_.settings.deadline);
    co_return again;
  }
  co_return 0;
}

Task<int> Link::ListFiles(Machine& machine) {
  recovery::MarkMap& marks = *daemon_.marks_;
  settle_ = daemon_.BeginSettle();
  const bool all = marks.AllMarked(index_);
  const uint64_t base = marks.base_mount(index_);
  if ((all || base < daemon_.mount_number_) && !walked_at_.has_value()) {
    walked_at_ = daemon_.log_.last();
    for (const recovery::TreeItem& item : daemon_.node_.disk.Inventory()) {
      if (S_ISREG(item.mode)) {
        regular_.emplace(item.id, item.size);
      }
    }
  }
  std::map<FileId, uint64_t> doubtful;
  for (const auto& [id, size] : regular_) {
    if (all || recovery::MountOf(id) >= base) {
      doubtful.emplace(id, size);
    }
  }
  for (const FileId id : world_.Has(Planted::kMarksNotAsked) ? std::vector<FileId>() : marks.Marked(index_)) {
    const auto known = regular_.find(id);
    doubtful.emplace(id, known == regular_.end() ? 0 : known->second);
  }
  std::vector<recovery::FileInDoubt> files;
  for (const auto& [id, size] : doubtful) {
    files.push_back({.id = id, .size = size});
  }
  world_.Trace("link {}: {} files in doubt of {}{}", index_, files.size(), regular_.size(),
               all ? " (all)" : "");
  machine.Listed(std::move(files));
  co_await world_.loop.Step();
  co_return 0;
}

Task<int> Link::Compare(Machine& machine) {
  const Machine::Action action = machine.action();
  if (daemon_.node_.disk.Find(action.file) == nullptr) {
    machine.Gone();
    co_return 0;
  }
  using Sums = std::optional<recovery::BlockChecksums>;
  const AtReplica<Sums> work = [action](Replica& replica) {
    return replica.Checksums(action.file, action.extent, action.block);
  };
  const std::optional<Sums> theirs = co_await Call<Sums>(kCallTimeout, work);
  if (!theirs.has_value()) {
    co_return EAGAIN;
  }
  const DiskFile* const file = daemon_.node_.disk.Find(action.file);
  if (!theirs->has_value()) {
    if (file == nullptr) {
      machine.Gone();
      co_return 0;
    }
    co_return EIO;
  }
  if (file == nullptr) {
    machine.Gone();
    co_return 0;
  }
  const recovery::BlockChecksums ours = daemon_.node_.disk.Checksums(*file, action.extent, action.block);
  std::vector<Extent> differing = recovery::DifferingBlocks(ours, **theirs, action.extent, action.block);
  if (world_.Has(Planted::kEndBeforeLastSend) && action.block == Machine::kFineBlock && !differing.empty()) {
    differing.pop_back();
  }
  machine.Compared(differing, ours.size);
  co_return 0;
}

Task<int> Link::SendStep(Machine& machine) {
  const Machine::Action action = machine.action();
  if (daemon_.node_.disk.Find(action.file) == nullptr) {
    machine.Gone();
    co_return 0;
  }
  const int error = co_await daemon_.SendTo(index_, action.file, action.extent);
  if (error != 0) {
    if (daemon_.node_.disk.Find(action.file) == nullptr) {
      machine.Gone();
      co_return 0;
    }
    co_return error == EIO || error == EINTR ? EAGAIN : error;
  }
  machine.Sent();
  co_return 0;
}

Task<int> Link::EndStep() {
  // The files were compared as they are now: what has cut them has to be there, too.
  if (!world_.Has(Planted::kEndWithoutOperations) && !world_.Has(Planted::kJoinedBeforeTree)) {
    const int delivered =
        co_await courier_.Deliver(daemon_.log_.last(), world_.now() + world_.settings.deadline);
    if (delivered != 0) {
      co_return delivered;
    }
  }
  const uint64_t token = token_;
  const AtReplica<bool> work = [token](Replica& replica) { return replica.EndResync(token); };
  const std::optional<bool> ended = co_await Call<bool>(kCallTimeout, work);
  if (!ended.value_or(false)) {
    co_return EIO;
  }
  const bool settled = co_await daemon_.Resynced(index_, settle_);
  co_return settled ? 0 : EIO;
}

}  // namespace pmirror::sim
