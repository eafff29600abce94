// SPDX-License-Identifier: BSD-3-Clause
// Replicas that come and go while the volume is mounted. See primary_volume.h and docs/internals/volumes.md.
#include <fmt/format.h>

#include <bit>
#include <utility>

#include "fs/primary_volume.h"

namespace pmirror::fs {

ReplicaPath PrimaryVolume::MakeLink(size_t replica, const Replica& described) {
  links_[replica] = std::make_unique<ReplicaLink>(ReplicaLink::Options{.volume_name = options_.name,
                                                                       .volume = options_.uuid,
                                                                       .primary_node = options_.node,
                                                                       .replica_node = described.node,
                                                                       .index = replica,
                                                                       .control = described.control,
                                                                       .epoch = record_.epoch,
                                                                       .mount_number = record_.mount_number,
                                                                       .history = history_,
                                                                       .deadline = options_.deadline,
                                                                       .filling = described.filling},
                                                  log_, events_);
  return {&links_[replica]->session(), &links_[replica]->operations()};
}

void PrimaryVolume::MakeRunner(size_t replica) {
  runners_[replica] = std::make_unique<ResyncRunner>(
      ResyncRunner::Options{.replica = replica,
                            .backing_root = root_->fd(),
                            .deadline = options_.deadline,
                            .activity = [this] { return replicator_->activity(); }},
      *replicator_, *set_);
}

ReplicaLink* PrimaryVolume::Find(const std::string& node) const {
  ReplicaLink* found = nullptr;
  ForEachLink([&](size_t, ReplicaLink& link) { found = link.node() == node ? &link : found; });
  return found;
}

std::string PrimaryVolume::StateOfReplica(const std::string& node) const {
  const ReplicaLink* const link = Find(node);
  return link == nullptr ? "" : Name(link->status().state);
}

std::vector<std::string> PrimaryVolume::RequiredNodes() const {
  std::vector<std::string> nodes;
  ForEach(static_cast<ReplicaMask>(page_->page().required.load(std::memory_order_acquire)),
          [&](size_t replica) { nodes.push_back(links_[replica]->node()); });
  return nodes;
}

// Its marks come first: whatever is opened for writing from then on is marked for it, and everything else is.
absl::Status PrimaryVolume::AddReplica(Replica replica) {
  const std::lock_guard lock(members_mutex_);
  if (leaving_) {
    return absl::UnavailableError(fmt::format("volume {} is being left", options_.name));
  }
  if (Find(replica.node) != nullptr) {
    return absl::AlreadyExistsError(
        fmt::format("volume {} has a copy on {} already", options_.name, replica.node));
  }
  if (links_.back() != nullptr) {
    return absl::ResourceExhaustedError(
        fmt::format("volume {} has had {} replicas since it was mounted, and a place is used once: restart "
                    "the daemon of {} first",
                    options_.name, kMaxReplicas, options_.node));
  }
  if (replica.rpo.has_value() && trailer_ == nullptr) {
    return absl::FailedPreconditionError(
        fmt::format("no replica of volume {} had an RPO when it was mounted; restart the daemon of {} first",
                    options_.name, options_.node));
  }
  const absl::StatusOr<size_t> index = marks_->AddReplica(replica.node);
  if (!index.ok()) {
    return index.status();
  }
  replica.filling = true;
  replicator_->AddReplica(*index, MakeLink(*index, replica));
  MakeRunner(*index);
  if (replica.rpo.has_value()) {
    trailer_->Add(*index, *replica.rpo);
  }
  findings_->Add(replica.node);
  page_->Configure(*index, replica.node);
  links_[*index]->Start(*this);
  StartCheck();
  events_.Report(Severity::kInfo, "replica_added", {{"volume", options_.name}, {"node", replica.node}});
  return absl::OkStatus();
}

absl::Status PrimaryVolume::RemoveReplica(const std::string& node) {
  const std::lock_guard lock(members_mutex_);
  size_t index = kMaxReplicas;
  ForEachLink([&](size_t i, ReplicaLink& link) { index = link.node() == node ? i : index; });
  if (leaving_ || index == kMaxReplicas) {
    return absl::NotFoundError(fmt::format("volume {} has no copy on {}", options_.name, node));
  }
  page_->Dismiss(index);
  set_->Leave(index);
  links_[index]->Stop();
  set_->Leave(index);  // a resync may just have made it a member
  if (trailer_ != nullptr) {
    trailer_->End(index);
  }
  replicator_->ReleaseOperations(index);
  marks_->DropReplica(index);
  findings_->Remove(index);
  replicator_->Wake();
  events_.Report(Severity::kInfo, "replica_removed", {{"volume", options_.name}, {"node", node}});
  return absl::OkStatus();
}

// It counts. From the record on, no sync succeeds without it.
void PrimaryVolume::NoteFilled(size_t replica) {
  if ((page_->page().required.load(std::memory_order_acquire) & Bit(replica)) != 0) {
    return;
  }
  const std::string& node = links_[replica]->node();
  if (absl::Status status = options_.filled(node); !status.ok()) {
    events_.Report(Severity::kWarning, "members_not_recorded",
                   {{"volume", options_.name}, {"node", node}, {"reason", std::string(status.message())}});
    return;
  }
  if (page_->Require(replica)) {
    events_.Report(Severity::kInfo, "replica_filled", {{"volume", options_.name}, {"node", node}});
  }
}

}  // namespace pmirror::fs
