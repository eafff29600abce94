// SPDX-License-Identifier: BSD-3-Clause
// Which files a replica may lack something of, and what a resync needs. docs/internals/resync.md has the argument. See volume_replicator.h.
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "fs/volume_replicator.h"
#include "recovery/object_id.h"

namespace pmirror::fs {
namespace {

constexpr uint64_t kLeastBytes = 4096;  // of a file in doubt whose size is not known

}  // namespace

void VolumeReplicator::WithTreeAtRest(absl::FunctionRef<void(uint64_t last)> look) {
  const std::lock_guard lock(namespace_mutex_);
  look(log_.last());
}

void VolumeReplicator::AddOrphans(recovery::Inventory& inventory) const {
  for (const auto& [id, mode] : orphans_) {
    recovery::TreeItem item;
    item.id = id;
    item.orphan = true;
    item.mode = mode != 0 ? mode : S_IFREG | 0600;
    struct stat info {};
    if (const std::shared_ptr<FileState> file = Find(id);
        file != nullptr && ::fstat(file->backing_fd(), &info) == 0) {
      item.mode = info.st_mode;
      item.uid = info.st_uid;
      item.gid = info.st_gid;
      item.size = static_cast<uint64_t>(info.st_size);
    }
    inventory.push_back(std::move(item));
  }
}

int VolumeReplicator::SendTo(size_t replica, FileState& file, Extent extent) {
  const auto patience = std::chrono::nanoseconds(page_.page().deadline_ns);
  // Of an odd generation the one before: it promises nothing to anybody, and no capture takes a number until the generation is even again.
  const uint64_t operation = file.slot().size_generation.load(std::memory_order_acquire) / 2;
  if (const int error = couriers_[replica]->Deliver(operation, Deadline::After(patience)); error != 0) {
    return error;
  }
  Replication only(page_.page(), sessions_, staging_, own_waits_, replica);
  DescriptorSource source(file.backing_fd());
  return only.Replicate(file.target(), {&extent, 1}, source, WaitLevel::kReceived, nullptr).code;
}

int VolumeReplicator::DeliverTree(size_t replica, Deadline deadline) {
  uint64_t last = 0;
  WithTreeAtRest([&last](uint64_t number) { last = number; });
  return couriers_[replica]->Deliver(last, deadline);
}

// --- marks ---

int VolumeReplicator::BeforeWriting(ReplicatedFile& replicated) {
  FileState& file = StateOf(replicated);
  if (options_.marks == nullptr || file.marked()) {
    return 0;
  }
  file.MayBeWritten(sizes_);  // before the mark: a settle in between must see it in use
  if (recovery::MountOf(file.id()) == options_.mount_number) {
    options_.marks->Note(file.id());
  } else if (const absl::Status status = options_.marks->Mark(file.id()); !status.ok()) {
    events_.Report(Severity::kError, "mark_failed",
                   {{"volume", options_.volume_name},
                    {"file", std::to_string(Raw(file.id()))},
                    {"reason", std::string(status.message())}});
    return absl::IsResourceExhausted(status) ? ENOSPC : EIO;
  }
  file.marked() = true;
  return 0;
}

recovery::MarkMap::Settle VolumeReplicator::BeginSettle() {
  return options_.marks->BeginSettle([this](FileId id) {
    const std::shared_ptr<FileState> file = Find(id);
    return file != nullptr && file->may_be_written();
  });
}

absl::Status VolumeReplicator::Resynced(size_t replica, const recovery::MarkMap::Settle& settle) {
  if (const int error = options_.sync_backing(); error != 0) {
    return absl::ErrnoToStatus(error, "make the backing directory durable");
  }
  return options_.marks->Resynced(replica, settle);
}

// Of the converger, now and then: marks that are needed no more.
void VolumeReplicator::Settle() {
  const SetWord set = LoadSet(page_.page());
  if (options_.marks == nullptr || set.joiners() != 0 || !WantedConnected()) {
    return;
  }
  const recovery::MarkMap::Settle settle = BeginSettle();
  if (settle.empty() || AwaitOperation(log_.last(), Sender::kVolume) != 0) {
    return;
  }
  DescriptorSource nothing(-1);
  if (own_replication_.Replicate({}, {}, nothing, WaitLevel::kDurable, nullptr).code != 0 ||
      options_.sync_backing() != 0) {
    return;
  }
  const bool same_set = LoadSet(page_.page()).raw == set.raw;
  options_.marks->EndSettle(settle, same_set ? set.members() : 0);
}

uint64_t VolumeReplicator::MarkedBytes(size_t replica) const {
  uint64_t sum = 0;
  if (options_.marks != nullptr) {
    if (options_.marks->AllMarked(replica)) {
      sum = kLeastBytes;  // nobody has counted them: not nothing
    }
    for (const FileId id : options_.marks->Marked(replica)) {
      const std::shared_ptr<FileState> file = Find(id);
      sum += std::max(file != nullptr ? file->size() : sizes_->Of(id), kLeastBytes);
    }
  }
  return sum;
}

}  // namespace pmirror::fs
