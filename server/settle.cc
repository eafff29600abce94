// SPDX-License-Identifier: BSD-3-Clause
// Takes a copy back and records that, with the daemon of its state directory locked out. See settle.h.
#include "server/settle.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <optional>
#include <utility>

#include "recovery/backing_owner.h"
#include "recovery/inventory.h"
#include "recovery/log_storage.h"
#include "recovery/volume_record.h"
#include "replication/unique_fd.h"
#include "server/group_journal.h"
#include "server/host.h"
#include "server/replica_volume.h"
#include "server/undo_log.h"
#include "server/undo_rollback.h"

namespace pmirror::server {
namespace {

using recovery::VolumeRecord;

absl::StatusOr<VolumeRecord> Load(const std::string& path) {
  absl::StatusOr<std::optional<VolumeRecord>> record = recovery::LoadVolumeRecord(path);
  if (!record.ok()) {
    return record.status();
  }
  if (!record->has_value()) {
    return absl::FailedPreconditionError(fmt::format(
        "the copy's record {} is not there; name the file NAME.copy of the daemon's state_dir with --state",
        path));
  }
  return **std::move(record);
}

// Opening a copy completes the batch or group that a crash interrupted. With the state directory locked.
absl::StatusOr<ReplicaVolume::State> OpenAndClose(const std::string& backing, const std::string& record_path,
                                                  const VolumeRecord& record) {
  const std::filesystem::path path = std::filesystem::absolute(record_path);
  absl::StatusOr<std::unique_ptr<ReplicaVolume>> volume =
      ReplicaVolume::Open({.name = path.stem(),
                           .uuid = record.volume,
                           .backing = backing,
                           .state_directory = path.parent_path(),
                           .domain = Domain::kFile,
                           .sessions = {}});
  if (!volume.ok()) {
    return volume.status();
  }
  ReplicaVolume::State state = (*volume)->state();
  if (absl::Status status = (*volume)->Shutdown(); !status.ok()) {
    return status;
  }
  return state;
}

absl::StatusOr<std::string> CompleteBatch(const std::string& backing, const std::string& record_path,
                                          const VolumeRecord& record) {
  const absl::StatusOr<ReplicaVolume::State> state = OpenAndClose(backing, record_path, record);
  if (!state.ok()) {
    return state.status();
  }
  if (!state->promotable) {
    return absl::DataLossError(fmt::format(
        "{}: what its files show is perhaps half of a batch, and only a resync makes it whole: {}", backing,
        state->image));
  }
  return fmt::format("{}: its files are what the last complete batch left, {}, operation {}", backing,
                     state->image, state->operation);
}

absl::StatusOr<std::string> CompleteGroup(const std::string& backing, const std::string& record_path,
                                          const VolumeRecord& record) {
  const absl::StatusOr<ReplicaVolume::State> state = OpenAndClose(backing, record_path, record);
  return state.ok() ? absl::StatusOr<std::string>(
                          fmt::format("{}: completed the flush group that a crash had interrupted", backing))
                    : state.status();
}

std::string Describe(const VolumeRecord& record) {
  return fmt::format("operation {} of mount {}", record.operation, record.mount_number);
}

}  // namespace

absl::StatusOr<std::string> Settle(const std::string& backing, const std::string& record_path) {
  const std::string own_path = fmt::format("{}/{}", backing, recovery::kOwnDirectory);
  UniqueFd own(::open(own_path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!own.valid()) {
    return absl::FailedPreconditionError(fmt::format("{} is no backing directory of a volume: it has no {}",
                                                     backing, recovery::kOwnDirectory));
  }
  if (absl::Status status = recovery::LockBackingDirectory(own.get(), backing); !status.ok()) {
    return status;
  }
  recovery::LogStorage& storage = recovery::LogStorage::Real();
  uint64_t id = 0;
  const absl::StatusOr<UndoPoint> point = ReadUndoLog(backing, id, storage);
  const bool none = absl::IsNotFound(point.status());
  if (!point.ok() && !none) {
    return point.status();
  }
  absl::StatusOr<std::string> found = recovery::FindCopyRecord(own.get(), backing);
  if (!found.ok()) {
    return found.status();
  }
  const std::string path = record_path.empty() ? *found : record_path;
  if (path.empty()) {
    return fmt::format("{}: nothing to settle", backing);  // no replica ever used it
  }
  if (absl::StatusOr<VolumeRecord> record = Load(path); !record.ok()) {
    return record.status();
  }
  const absl::StatusOr<UniqueFd> lock = LockStateDirectory(std::filesystem::absolute(path).parent_path());
  if (!lock.ok()) {
    return lock.status();
  }
  // Again, now that no daemon writes it.
  const absl::StatusOr<VolumeRecord> record = Load(path);
  if (!record.ok()) {
    return record.status();
  }
  if (record->trailing) {
    own.Reset();  // and its lock: the state directory's keeps daemons away
    return CompleteBatch(backing, path, *record);
  }
  if (point.ok() && record->volume != point->record.volume) {
    return absl::FailedPreconditionError(
        fmt::format("record {} is of volume {}, the undo log of {} of volume {}", path,
                    recovery::UuidText(record->volume), backing, recovery::UuidText(point->record.volume)));
  }
  if (!record->resyncing || none || record->undo != id) {
    if (record->resyncing) {
      return absl::FailedPreconditionError(fmt::format(
          "the files of {} are a mixture, because a resync of it has not ended, and no undo log leads back: "
          "only a resync makes it whole",
          backing));
    }
    const auto group = GroupJournal(backing, /*durable=*/true, storage).Load();
    if (!group.ok()) {
      return group.status();
    }
    if (group->has_value()) {
      own.Reset();  // as above
      return CompleteGroup(backing, path, *record);
    }
    // What a crash left between the record and the removal of the log.
    const absl::Status removed = RemoveUndoLog(own.get(), backing, storage);
    return removed.ok() ? absl::StatusOr<std::string>(fmt::format("{}: nothing to settle", backing))
                        : removed;
  }
  const absl::StatusOr<RolledBack> rolled = RollBack(backing, storage);
  if (!rolled.ok()) {
    return rolled.status();
  }
  VolumeRecord next = rolled->point.record;
  next.epoch = record->epoch;  // an older primary stays refused
  next.boot = recovery::BootId();
  next.rolled_back = true;
  absl::Status status = recovery::StoreVolumeRecord(path, next);
  if (status.ok()) {
    status = RemoveUndoLog(own.get(), backing, storage);
  }
  if (!status.ok()) {
    return status;
  }
  return fmt::format(
      "{}: taken back to its last consistency point, {}: {} changes of the tree, {} bytes, {} removed files "
      "brought back",
      backing, Describe(next), rolled->operations, rolled->bytes, rolled->brought_back);
}

}  // namespace pmirror::server
