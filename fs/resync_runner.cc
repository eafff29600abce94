// SPDX-License-Identifier: BSD-3-Clause
// See resync_runner.h.
#include "fs/resync_runner.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "recovery/inventory.h"
#include "recovery/object_id.h"

namespace pmirror::fs {
namespace {

using Clock = std::chrono::steady_clock;
using Step = recovery::ResyncMachine::Step;

constexpr std::chrono::milliseconds kRetryPause{50};
constexpr std::chrono::milliseconds kLongestPause{200};  // for programs, after one step
constexpr size_t kMostMarked = 1000;  // files, one write to the map each; beyond, everything is marked

// Syncs wait for a joiner as for a member.
absl::Status Silent() { return absl::UnavailableError("the replica has been silent for the deadline"); }

bool MayPass(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) || absl::IsAborted(status);
}

}  // namespace

absl::Status ResyncRunner::Run(ResyncPeer& peer, recovery::ResyncCounts& counts) {
  joined_ = false;
  walked_at_.reset();
  regular_.clear();
  begun_ = Clock::now();
  activity_ = options_.activity();
  Machine machine;
  absl::Status status = RunSteps(machine, peer);
  counts = machine.counts();
  if (!status.ok()) {
    set_.Leave(options_.replica);
  }
  replicator_.ReleaseOperations(options_.replica);
  file_.reset();
  tree_.reset();
  const std::lock_guard lock(mutex_);
  progress_ = {};
  return status;
}

absl::Status ResyncRunner::RunSteps(Machine& machine, ResyncPeer& peer) {
  Clock::time_point last_success = Clock::now();
  while (machine.action().step != Step::kDone) {
    Publish(machine);
    if (peer.GivenUp()) {
      return absl::CancelledError("the volume is being left, or the replica was cut off");
    }
    if (joined_ && !set_.Wanted(options_.replica)) {
      return absl::AbortedError("the replica left the set again");
    }
    if (joined_ && !peer.Alive()) {
      return Silent();
    }
    const Clock::time_point begun = Clock::now();
    const Step step = machine.action().step;
    const absl::Status status = RunStep(machine, peer);
    const bool repeatable = step == Step::kCompare || step == Step::kSend;
    if (status.ok()) {
      last_success = Clock::now();
      GiveWay(last_success - begun);
    } else if (joined_ && !peer.Alive()) {
      return Silent();
    } else if (!repeatable || !MayPass(status) || Clock::now() - last_success > options_.deadline) {
      return status;
    } else {
      // Sleep because: nobody tells when a peer that did not answer can be asked again.
      std::this_thread::sleep_for(kRetryPause);
    }
  }
  return absl::OkStatus();
}

absl::Status ResyncRunner::RunStep(Machine& machine, ResyncPeer& peer) {
  absl::Status status;
  switch (machine.action().step) {
    case Step::kBegin:
      status = Begin(peer);
      break;
    case Step::kChangeTree:
      status = ChangeTree(peer);
      break;
    case Step::kJoin:
      status = Join(peer);
      break;
    case Step::kListFiles:
      return ListFiles(machine);
    case Step::kCompare:
      return Compare(machine, peer);
    case Step::kSend:
      return Send(machine);
    case Step::kEnd:
      status = End(peer);
      break;
    case Step::kAdmit:
      status = set_.Admit(options_.replica) ? absl::OkStatus()
                                            : absl::AbortedError("the replica left the set again");
      break;
    case Step::kDone:
      return absl::OkStatus();
  }
  if (status.ok()) {
    machine.Done();
  }
  return status;
}

// What the marks do not name has to be compared as well.
absl::Status ResyncRunner::Begin(ResyncPeer& peer) {
  const std::optional<uint64_t> followed = peer.FollowedMount();
  recovery::MarkMap& marks = *replicator_.marks();
  if (!followed.has_value() || !marks.NamesEverything(options_.replica, *followed)) {
    if (absl::Status status = marks.MarkAll(options_.replica); !status.ok()) {
      return status;
    }
  }
  return peer.Begin();
}

// --- the tree ---

absl::StatusOr<recovery::Inventory> ResyncRunner::TakeInventory() {
  if (tree_ == nullptr) {
    UniqueFd root(::fcntl(options_.backing_root, F_DUPFD_CLOEXEC, 0));
    if (!root.valid()) {
      return absl::ErrnoToStatus(errno, "cannot duplicate the descriptor of the backing directory");
    }
    tree_ = std::make_unique<recovery::LocalTree>(std::move(root), recovery::InventoryDetail::kFull);
  }
  absl::StatusOr<recovery::Inventory> inventory;
  replicator_.WithTreeAtRest([&](uint64_t last) {
    if (!walked_at_.has_value() && !joined_) {
      replicator_.KeepOperations(options_.replica, last);
    }
    walked_at_ = last;
    inventory = tree_->Inventory();
    if (inventory.ok()) {
      replicator_.AddOrphans(*inventory);
    }
  });
  if (inventory.ok()) {
    regular_.clear();
    for (const recovery::TreeItem& item : *inventory) {
      if (S_ISREG(item.mode)) {
        regular_.emplace(item.id, item.size);  // once, whatever names it has
      }
    }
  }
  return inventory;
}

absl::Status ResyncRunner::ChangeTree(ResyncPeer& peer) {
  if (const std::optional<uint64_t> operation = peer.TreeAsOf(); operation.has_value()) {
    replicator_.KeepOperations(options_.replica, *operation);
    return peer.AdoptMount(*operation);
  }
  const absl::StatusOr<recovery::Inventory> ours = TakeInventory();
  if (!ours.ok()) {
    return ours.status();
  }
  const uint64_t operation = *walked_at_;
  const absl::StatusOr<recovery::Inventory> theirs = peer.Inventory();
  if (!theirs.ok()) {
    return theirs.status();
  }
  const recovery::TreePlan plan = recovery::PlanTree(*ours, *theirs);
  if (!plan.obstacles.empty()) {
    return absl::FailedPreconditionError(
        fmt::format("{} objects carry no id, so that nothing can be done about them, the first is '{}': "
                    "pmirror did not make them; move them away",
                    plan.obstacles.size(), plan.obstacles.front().path));
  }
  if (absl::Status status = MarkChanged(plan); !status.ok()) {
    return status;
  }
  if (absl::Status status = peer.ChangeTree(plan.operations); !status.ok()) {
    return status;
  }
  return peer.AdoptMount(operation);
}

// A file that the plan makes or cuts there has lost its bytes there, although no mark may say so: a power cut has taken back here an unlink or
// a truncate that the replica has applied. Durably before it happens, because the next attempt finds the trees equal.
absl::Status ResyncRunner::MarkChanged(const recovery::TreePlan& plan) {
  recovery::MarkMap& marks = *replicator_.marks();
  if (marks.AllMarked(options_.replica)) {
    return absl::OkStatus();
  }
  std::set<FileId> changed;
  for (const NamespaceOp& op : plan.operations) {
    const bool changes =
        op.kind == OpKind::kCreate || op.kind == OpKind::kCreateOrphan || op.kind == OpKind::kTruncate;
    if (changes && regular_.contains(op.target) &&
        recovery::MountOf(op.target) < marks.base_mount(options_.replica)) {
      changed.insert(op.target);  // later ones are compared in any case (ListFiles)
    }
  }
  if (changed.size() > kMostMarked) {
    return marks.MarkAll(options_.replica);
  }
  for (const FileId id : changed) {
    if (absl::Status status = marks.Mark(id); !status.ok()) {
      return status;
    }
  }
  return absl::OkStatus();
}

absl::Status ResyncRunner::Join(ResyncPeer& peer) {
  if (absl::Status status = peer.Connect(); !status.ok()) {
    return status;
  }
  set_.Join(options_.replica);
  joined_ = true;
  // An operation whose thread looked at the set before is in the log by now, and is waited for by nobody else.
  absl::Status status = peer.DeliverAll();
  if (status.ok()) {
    replicator_.ReleaseOperations(options_.replica);  // it gets them as they come from here on
  }
  return status;
}

// --- data ---

// What is marked, and what was made in a mount that did not end as it should have: its marks were noted in memory only.
absl::Status ResyncRunner::ListFiles(Machine& machine) {
  recovery::MarkMap& marks = *replicator_.marks();
  settle_ = replicator_.BeginSettle();  // before the marks are read
  const bool all = marks.AllMarked(options_.replica);
  const uint64_t base = marks.base_mount(options_.replica);
  if ((all || base < replicator_.mount_number()) && !walked_at_.has_value()) {
    if (const absl::StatusOr<recovery::Inventory> inventory = TakeInventory(); !inventory.ok()) {
      return inventory.status();
    }
  }
  std::map<FileId, uint64_t> doubtful;
  for (const auto& [id, size] : regular_) {
    if (all || recovery::MountOf(id) >= base) {
      doubtful.emplace(id, size);
    }
  }
  for (const FileId id : marks.Marked(options_.replica)) {
    const auto known = regular_.find(id);
    doubtful.emplace(id, known == regular_.end() ? 0 : known->second);
  }
  std::vector<recovery::FileInDoubt> files;
  for (const auto& [id, size] : doubtful) {
    files.push_back({.id = id, .size = size});
  }
  machine.Listed(std::move(files));
  return absl::OkStatus();
}

// Null when it is not in the volume any more.
std::shared_ptr<FileState> ResyncRunner::Open(FileId file) {
  if (file_ != nullptr && file_->id() == file) {
    return file_;
  }
  file_ = replicator_.Find(file);
  for (int attempt = 0; attempt < 2 && file_ == nullptr; ++attempt) {
    if (const absl::StatusOr<UniqueFd> fd = OpenKnown(file); fd.ok()) {
      file_ = std::static_pointer_cast<FileState>(replicator_.Attach(file, fd->get()));
    } else if (walked_at_.has_value() &&
               (walked_at_ == replicator_.last_operation() || !regular_.contains(file))) {
      break;  // a walk of this run did not find it, or nothing was renamed since one: it is gone
    } else if (!TakeInventory().ok()) {
      break;
    }
  }
  return file_;
}

absl::StatusOr<UniqueFd> ResyncRunner::OpenKnown(FileId file) const {
  UniqueFd fd = tree_ == nullptr ? UniqueFd() : tree_->OpenKnown(file);
  return fd.valid() ? absl::StatusOr<UniqueFd>(std::move(fd)) : absl::NotFoundError("not where it was");
}

absl::Status ResyncRunner::Compare(Machine& machine, ResyncPeer& peer) {
  const Machine::Action action = machine.action();
  const std::shared_ptr<FileState> file = Open(action.file);
  if (file == nullptr || file->gone()) {
    machine.Gone();
    return absl::OkStatus();
  }
  // Theirs first: what reaches them in between can only make ours look newer.
  const absl::StatusOr<recovery::BlockChecksums> theirs =
      peer.Checksums(action.file, action.extent, action.block);
  const absl::StatusOr<recovery::BlockChecksums> ours =
      theirs.ok() ? recovery::ChecksumBlocks(file->backing_fd(), action.extent, action.block) : theirs;
  if (!ours.ok()) {
    if (file->gone()) {  // whatever the side that has already removed it calls that
      machine.Gone();
      return absl::OkStatus();
    }
    return ours.status();
  }
  machine.Compared(recovery::DifferingBlocks(*ours, *theirs, action.extent, action.block), ours->size);
  return absl::OkStatus();
}

absl::Status ResyncRunner::Send(Machine& machine) {
  const Machine::Action action = machine.action();
  const std::shared_ptr<FileState> file = Open(action.file);
  if (file == nullptr || file->gone()) {
    machine.Gone();
    return absl::OkStatus();
  }
  if (const int error = replicator_.SendTo(options_.replica, *file, action.extent); error != 0) {
    if (file->gone()) {
      machine.Gone();
      return absl::OkStatus();
    }
    const absl::Status status =
        absl::ErrnoToStatus(error, fmt::format("file {:#x} could not be sent", Raw(action.file)));
    return error == EIO || error == EINTR ? absl::UnavailableError(status.message()) : status;
  }
  machine.Sent();
  return absl::OkStatus();
}

// Files were compared as they are here: an operation that the comparison has seen, and that is still on its way, belongs to the copy before it
// calls itself whole. Those whose local change is behind are in the log once the tree has rested.
absl::Status ResyncRunner::End(ResyncPeer& peer) {
  replicator_.WithTreeAtRest([](uint64_t) {});
  if (absl::Status status = peer.DeliverAll(); !status.ok()) {
    return status;
  }
  if (absl::Status status = peer.End(); !status.ok()) {
    return status;
  }
  return replicator_.Resynced(options_.replica, settle_);
}

// --- around it ---

// Programs that sync keep half of the time, and with it at least half of their speed.
void ResyncRunner::GiveWay(Clock::duration worked) {
  const uint64_t activity = options_.activity();
  if (std::exchange(activity_, activity) != activity) {
    // Sleep because: this is the pause in which others work.
    std::this_thread::sleep_for(std::min<Clock::duration>(worked, kLongestPause));
  }
}

void ResyncRunner::Publish(const Machine& machine) {
  const std::chrono::duration<double> elapsed = Clock::now() - begun_;
  const std::lock_guard lock(mutex_);
  progress_ = {.running = true,
               .phase = Name(machine.action().step),
               .counts = machine.counts(),
               .bytes_per_second =
                   static_cast<double>(machine.counts().bytes_compared) / std::max(elapsed.count(), 1e-3)};
}

ResyncRunner::Progress ResyncRunner::progress() const {
  const std::lock_guard lock(mutex_);
  return progress_;
}

}  // namespace pmirror::fs
