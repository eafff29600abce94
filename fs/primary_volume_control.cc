// SPDX-License-Identifier: BSD-3-Clause
// What the control service asks of a primary volume. See primary_volume.h.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "fs/primary_volume.h"

namespace pmirror::fs {
namespace {

constexpr std::chrono::seconds kFreezeDeadline{20};
constexpr std::chrono::seconds kPingDeadline{5};

void FillProgress(const ResyncRunner::Progress& progress, control::ResyncProgress& message) {
  message.set_phase(progress.phase);
  message.set_files_done(progress.counts.files_done);
  message.set_files(progress.counts.files);
  message.set_bytes_compared(progress.counts.bytes_compared);
  message.set_bytes(progress.counts.bytes);
  message.set_bytes_sent(progress.counts.bytes_sent);
  message.set_bytes_per_second(progress.bytes_per_second);
}

}  // namespace

void PrimaryVolume::FillStatus(control::VolumeStatus& status, const ProgramCounters& programs) {
  const VolumeReplicator::Counters counters = replicator_->counters();
  const uint64_t dirty_bytes = replicator_->dirty_bytes();
  Reports reports;
  {
    const std::lock_guard lock(reports_mutex_);
    reports = reports_;
  }
  status.set_epoch(Raw(record_.epoch));
  status.set_set_version(Raw(LoadSet(page_->page()).version()));
  status.set_suspended_syncs(counters.suspended +
                             static_cast<uint64_t>(std::max<int64_t>(0, reports.suspended)));
  status.set_mapped_processes(programs.processes);
  ForEachLink([&](size_t index, ReplicaLink& link) {
    const ReplicaLink::Status state = link.status();
    control::ReplicaStatus& replica = *status.add_replicas();
    replica.set_node(link.node());
    const int refusal = replicator_->refusal(index);
    const bool refuses = refusal != 0 && state.state == ReplicaLink::State::kInSync;
    replica.set_state(Name(refuses ? ReplicaLink::State::kFailed : state.state));
    replica.set_reason(refuses ? fmt::format("{} refused data: {}; cure that there, it is repeated by itself",
                                             link.node(), std::strerror(refusal))
                               : state.reason);
    const ResyncRunner::Progress progress = runners_[index]->progress();
    if (progress.running) {
      FillProgress(progress, *replica.mutable_resync());
    }
    // Of a replica that counts: what it has not acknowledged. Of another: the files in which it may differ.
    replica.set_dirty_bytes(set_->member(index) ? dirty_bytes
                                                : dirty_bytes + replicator_->MarkedBytes(index));
    if (trailer_ != nullptr && set_->trailing(index)) {
      FillTrail(index, replica);
    }
    replica.set_durable_seq(counters.syncs + programs.syncs);
    replica.set_placement(Name(state.placement));
    findings_->Fill(index, replica);
    if (options_.check.count() == 0) {
      replica.clear_check();
    }
    replica.set_reconnects(state.counters.reconnects + reports.reconnects);
    replica.set_sender_full(state.counters.sender_full + reports.sender_full);
    replica.set_peer_congested(state.counters.peer_congested + reports.peer_congested);
    replica.set_recaptures(counters.recaptures + reports.recaptures);
  });
}

absl::Status PrimaryVolume::Ping(const std::string& node, control::PingReply& reply) {
  ReplicaLink* const link = Find(node);
  if (link == nullptr) {
    return absl::NotFoundError(fmt::format("volume {} has no copy on {}", options_.name, node));
  }
  const auto time = [&](FrameKind kind, WaitLevel level) -> int64_t {
    const Deadline::Duration begun = Deadline::Now();
    const int error = link->Exchange(kind, FileId::kNone, 0, level, Deadline::After(kPingDeadline));
    return error == 0 ? (Deadline::Now() - begun).count() : -1;
  };
  reply.set_data_ns(time(FrameKind::kHeartbeat, WaitLevel::kReceived));
  reply.set_durable_ns(time(FrameKind::kBarrier, WaitLevel::kDurable));
  if (reply.data_ns() < 0 || reply.durable_ns() < 0) {
    const ReplicaLink::Status status = link->status();
    return absl::UnavailableError(fmt::format("the data session to {} does not answer: {}", node,
                                              status.reason.empty() ? "timed out" : status.reason));
  }
  return absl::OkStatus();
}

void PrimaryVolume::SetReachable(const std::string& node, bool reachable) {
  if (ReplicaLink* const link = Find(node); link != nullptr) {
    link->SetReachable(reachable);
  }
}

absl::Status PrimaryVolume::Resync(const std::string& node, bool full) {
  if (node == options_.node) {
    return absl::FailedPreconditionError(
        fmt::format("{} is the primary of {}: its programs have these files mapped, and bytes that are "
                    "exchanged beneath them can take "
                    "back what they store at that moment; write the right bytes through the mount, and they "
                    "reach the replicas",
                    node, options_.name));
  }
  bool found = false;
  ForEachLink([&](size_t, ReplicaLink& link) {
    if (node.empty() || link.node() == node) {
      found = true;
      full ? link.DemandResync() : link.Hurry();
    }
  });
  return found ? absl::OkStatus()
               : absl::NotFoundError(fmt::format("volume {} has no copy on {}", options_.name, node));
}

// --- comparisons ---

void PrimaryVolume::MakeFindings() {
  std::vector<std::string> nodes;
  ForEachLink([&](size_t, ReplicaLink& link) { nodes.push_back(link.node()); });
  findings_ = std::make_unique<CopyFindings>(options_.name, std::move(nodes), events_);
}

// Of the replicas that there are now. Under members_mutex_, or at the start.
void PrimaryVolume::StartCheck() {
  check_.reset();
  if (options_.check.count() == 0 || links_.front() == nullptr) {
    return;
  }
  BackgroundCheck::Options options{
      .volume_name = options_.name,
      .volume = options_.uuid,
      .backing_root = root_->fd(),
      .period = options_.check,
      .deadline = options_.deadline,
      .copies = {},
      .counts = [this](size_t i) { return links_[i]->status().state == ReplicaLink::State::kInSync; }};
  for (size_t i = 0; i < links_.size() && links_[i] != nullptr; ++i) {
    options.copies.push_back({links_[i]->node(), links_[i]->control()});
  }
  check_ = std::make_unique<BackgroundCheck>(std::move(options), *replicator_, *set_, trailer_.get(),
                                             *findings_, events_);
  check_->Start();
}

void PrimaryVolume::NoteVerified(const std::string& node, const recovery::VerifyResult& result) {
  findings_->Verified(node, result);
}

// --- recovery::Freezer ---

absl::Status PrimaryVolume::Freeze() {
  if (!AllInSync()) {
    return absl::UnavailableError("a replica is not in sync; see pmirror status");
  }
  if (!replicator_->gate().Freeze(kFreezeDeadline)) {
    return absl::UnavailableError(
        "programs wait for the replicas: the volume cannot be frozen now; try again");
  }
  absl::Status status = FlushTrail(Deadline::After(kFreezeDeadline));
  if (!status.ok()) {
    Thaw();
  }
  return status;
}

void PrimaryVolume::Thaw() { replicator_->gate().Thaw(); }

absl::Status PrimaryVolume::Flush(FileId id, Extent extent) {
  const std::shared_ptr<FileState> file = replicator_->Find(id);
  const int error = file == nullptr ? 0 : replicator_->SyncOthers(*file, extent, ProcessSerial::kNone);
  return error == 0 ? FlushTrail(Deadline::After(kFreezeDeadline))
                    : absl::ErrnoToStatus(error, "what programs stored could not be brought to the replicas");
}

absl::StatusOr<std::vector<bool>> PrimaryVolume::Dirty(FileId id, std::span<const Extent> ranges) {
  std::vector<bool> dirty(ranges.size());
  if (const std::shared_ptr<FileState> file = replicator_->Find(id); file != nullptr) {
    for (size_t i = 0; i < ranges.size(); ++i) {
      dirty[i] = replicator_->Dirty(*file, ranges[i]);
    }
  }
  // What was captured before that look is on the replicas that trail, too, when it is said to be clean.
  if (absl::Status status = FlushTrail(Deadline::After(kFreezeDeadline)); !status.ok()) {
    return status;
  }
  return dirty;
}

}  // namespace pmirror::fs
