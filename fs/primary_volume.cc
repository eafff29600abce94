// SPDX-License-Identifier: BSD-3-Clause
// See primary_volume.h.
#include "fs/primary_volume.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <optional>
#include <string_view>
#include <utility>

#include "recovery/backing_owner.h"
#include "recovery/inventory.h"
#include "recovery/random_value.h"
#include "replication/write_tracker.h"

namespace pmirror::fs {
namespace {

using std::chrono::milliseconds;

constexpr std::chrono::seconds kProofDeadline{10};  // of write tracking, on a file system that may hang
constexpr milliseconds kLeaveTimeout{15000};
constexpr milliseconds kRevokeDeadline{200};
constexpr size_t kStagingBytes = (kMaxFrame + kPageSize - 1) / kPageSize * kPageSize;

static_assert(std::string_view(kPrivateDirectory) == recovery::kOwnDirectory);

const FileState& StateOf(const ReplicatedFile& file) { return static_cast<const FileState&>(file); }

}  // namespace

absl::StatusOr<std::unique_ptr<PrimaryVolume>> PrimaryVolume::Mount(Options options, const OpenOracle& oracle,
                                                                    EventSink& events) {
  std::unique_ptr<PrimaryVolume> volume(new PrimaryVolume(std::move(options), events));
  absl::Status status = volume->OpenCopy();
  if (status.ok()) {
    status = volume->TakeUp();
  }
  if (status.ok()) {
    status = volume->Start(oracle);
  }
  if (!status.ok()) {
    return status;
  }
  return volume;
}

PrimaryVolume::~PrimaryVolume() {
  session_.reset();
  if (replicator_ != nullptr) {
    replicator_->Stop();
  }
  check_.reset();
  if (trailer_ != nullptr) {
    trailer_->Stop();  // it stays for the links to ask
  }
  for (const std::unique_ptr<ReplicaLink>& link : links_) {
    if (link != nullptr) {
      link->Stop();
    }
  }
}

absl::Status PrimaryVolume::OpenCopy() {
  Result<std::unique_ptr<BackingRoot>> root = BackingRoot::Open(options_.backing);
  if (!root.ok()) {
    return absl::ErrnoToStatus(root.error().code, fmt::format("cannot serve the backing directory {}: {}",
                                                              options_.backing, root.error().doing));
  }
  root_ = std::move(root).value();
  if (::mkdirat(root_->fd(), kPrivateDirectory, 0700) != 0 && errno != EEXIST) {
    return absl::ErrnoToStatus(errno, fmt::format("cannot make {}/{}", options_.backing, kPrivateDirectory));
  }
  const UniqueFd own(
      ::openat(root_->fd(), kPrivateDirectory, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!own.valid()) {
    return absl::ErrnoToStatus(errno, fmt::format("cannot open {}/{}", options_.backing, kPrivateDirectory));
  }
  return recovery::ClaimBackingDirectory(own.get(), options_.uuid, options_.backing);
}

// The record of the last mount becomes this one's, durably.
absl::Status PrimaryVolume::TakeUp() {
  absl::StatusOr<std::optional<recovery::VolumeRecord>> loaded = recovery::LoadVolumeRecord(record_path_);
  if (!loaded.ok()) {
    return loaded.status();
  }
  record_.volume = options_.uuid;
  record_ = loaded->value_or(record_);
  if (record_.volume != options_.uuid) {
    return absl::FailedPreconditionError(fmt::format("copy record {} is of volume {}, configured is {}",
                                                     record_path_, recovery::UuidText(record_.volume),
                                                     recovery::UuidText(options_.uuid)));
  }
  const absl::StatusOr<bool> empty = recovery::IsEmptyBacking(options_.backing);
  if (!empty.ok()) {
    return empty.status();
  }
  record_.generation = record_.generation != 0 ? record_.generation : recovery::RandomNumber();
  history_ = {.generation = record_.generation,
              .mount_number = record_.mount_number,
              .operation = record_.operation,
              .clean = record_.clean,
              .empty = *empty};
  record_.epoch = std::max(record_.epoch, Epoch{1});
  ++record_.mount_number;
  record_.operation = 0;
  record_.clean = false;
  record_.boot = recovery::BootId();
  if (absl::Status status = OpenMarks(); !status.ok()) {
    return status;
  }
  return recovery::StoreVolumeRecord(record_path_, record_);
}

// Before the record says the number of this mount: the map has to have seen every mount that there was.
absl::Status PrimaryVolume::OpenMarks() {
  recovery::MarkMap::Identity identity{
      .volume = options_.uuid, .generation = record_.generation, .replicas = {}};
  for (const Replica& replica : options_.replicas) {
    identity.replicas.push_back(replica.node);
  }
  absl::StatusOr<recovery::MarkMap::Opened> opened =
      recovery::MarkMap::Open(marks_path_, identity, record_.mount_number);
  if (!opened.ok()) {
    return opened.status();
  }
  marks_ = std::move(opened->map);
  if (!opened->doubt.empty()) {
    events_.Report(Severity::kWarning, "marks_in_doubt",
                   {{"volume", options_.name}, {"reason", opened->doubt}});
  }
  as_mounted_ = marks_->BeginSettle([](FileId) { return false; });
  return absl::OkStatus();
}

absl::Status PrimaryVolume::Start(const OpenOracle& oracle) {
  const Tracking tracking = ProveFileSystem(root_->fd(), Deadline::After(kProofDeadline));
  events_.Report(
      tracking == Tracking::kNone ? Severity::kWarning : Severity::kInfo, "write_tracking",
      {{"volume", options_.name},
       {"proven", tracking == Tracking::kNone ? "no: a sync sends the whole range that it names" : "yes"}});
  std::vector<std::string> names;
  ReplicaMask filling = 0;
  for (const Replica& replica : options_.replicas) {
    filling |= replica.filling ? Bit(names.size()) : ReplicaMask{0};
    names.push_back(replica.node);
  }
  absl::StatusOr<std::unique_ptr<VolumePageOwner>> page =
      VolumePageOwner::Create({.epoch = record_.epoch,
                               .on_loss = options_.on_loss,
                               .replica_count = static_cast<uint32_t>(options_.replicas.size()),
                               .deadline_ns = static_cast<uint64_t>(options_.deadline.count()),
                               .suspend_ns = static_cast<uint64_t>(options_.suspend.count()),
                               .domain = options_.domain,
                               .tracking = tracking,
                               .replica_names = std::move(names),
                               .unproven = !history_.clean && !history_.empty,
                               .filling = filling});
  if (!page.ok()) {
    return page.status();
  }
  page_ = *std::move(page);
  set_ = std::make_unique<InSyncSet>(*page_);
  Result<std::unique_ptr<StagingPool>> staging = StagingPool::Create(kStagingBytes);
  if (!staging.ok()) {
    return absl::ErrnoToStatus(staging.error().code, staging.error().doing);
  }
  staging_ = std::move(staging).value();
  std::vector<ReplicaPath> paths;
  for (const Replica& replica : options_.replicas) {
    paths.push_back(MakeLink(paths.size(), replica));
  }
  if (absl::Status status = MakeTrailer(); !status.ok()) {
    return status;
  }
  replicator_ = std::make_unique<VolumeReplicator>(
      VolumeReplicator::Options{
          .volume_name = options_.name,
          .mount_number = record_.mount_number,
          .marks = marks_.get(),
          .refused = [this](size_t replica, int error) { links_[replica]->Refused(error); },
          .sync_backing = [this] { return SyncBacking(); }},
      *page_, log_, paths, *staging_, events_);
  if (trailer_ != nullptr) {
    replicator_->UseTrailer(*trailer_, cutter_->outlet());
  }
  for (size_t i = 0; i < options_.replicas.size(); ++i) {
    MakeRunner(i);
  }
  MakeFindings();
  file_system_ = std::make_unique<FileSystem>(*root_, *replicator_, oracle, RaiseDescriptorLimit() / 2);
  Result<std::unique_ptr<FuseSession>> session =
      FuseSession::Mount(*file_system_, *root_, {.mount_point = options_.mount, .socket = options_.socket});
  if (!session.ok()) {
    return absl::ErrnoToStatus(session.error().code,
                               fmt::format("cannot mount at {}: {}", options_.mount, session.error().doing));
  }
  session_ = std::move(session).value();
  struct stat info {};
  if (::stat(options_.mount.c_str(), &info) != 0) {
    return absl::ErrnoToStatus(errno, fmt::format("cannot look at the mount {}", options_.mount));
  }
  mount_device_ = info.st_dev;
  replicator_->Start();
  if (trailer_ != nullptr) {
    trailer_->Start();
  }
  ForEachLink([this](size_t, ReplicaLink& link) { link.Start(*this); });
  StartCheck();
  events_.Report(Severity::kInfo, "mounted",
                 {{"volume", options_.name},
                  {"mount", options_.mount},
                  {"epoch", std::to_string(Raw(record_.epoch))},
                  {"mount_number", std::to_string(record_.mount_number)}});
  return absl::OkStatus();
}

// Whom syncs need.
bool PrimaryVolume::AllInSync() const {
  bool all = true;
  ForEach(
      static_cast<ReplicaMask>(page_->page().required.load(std::memory_order_acquire)),
      [&](size_t replica) { all = all && links_[replica]->status().state == ReplicaLink::State::kInSync; });
  return all;
}

void PrimaryVolume::Unmount(Deadline deadline) {
  page_->SetState(VolumeState::kClosing);
  if (check_ != nullptr) {
    check_->RequestStop();
  }
  if (!session_->Unmount(deadline)) {
    events_.Report(Severity::kWarning, "programs_cut_off",
                   {{"volume", options_.name}, {"mount", options_.mount}});
  }
}

// Under `proceed` the volume ends cleanly without the replicas that do not count: they are compared when they come back.
absl::Status PrimaryVolume::Leave(size_t writing) {
  {
    const std::lock_guard lock(members_mutex_);
    leaving_ = true;
  }
  const bool proceeds = options_.on_loss == OnLoss::kProceed;
  if (!proceeds && !AllInSync()) {
    return absl::FailedPreconditionError(
        "a replica is not in sync; the copies are compared at the next mount");
  }
  const recovery::MarkMap::Settle settle = replicator_->BeginSettle();
  const int error = replicator_->SyncVolume([this] { return SyncBacking(); });
  if (error != 0) {
    return absl::ErrnoToStatus(
        error, "not everything could be brought to the replicas; the copies are compared at the next mount");
  }
  if (absl::Status status = FlushTrail(Deadline::After(kLeaveTimeout)); !status.ok()) {
    return absl::Status(status.code(), fmt::format("{}; the copies are compared at the next mount",
                                                   std::string(status.message())));
  }
  if (writing != 0) {
    return absl::FailedPreconditionError(fmt::format(
        "{} programs still map files of the volume and may store to them; the copies are compared at "
        "the next mount; end programs before the daemon",
        writing));
  }
  replicator_->Stop();
  check_.reset();
  if (trailer_ != nullptr) {
    trailer_->Stop();
  }
  const auto counting = static_cast<ReplicaMask>(set_->set().members() | set_->set().trailing());
  absl::Status parted;
  ForEachLink([&](size_t i, ReplicaLink& link) {
    link.Stop();
    if ((counting & Bit(i)) == 0 || !parted.ok()) {
      return;
    }
    if (absl::Status status = link.Leave(log_.last(), kLeaveTimeout); !status.ok()) {
      parted = absl::Status(status.code(), fmt::format("{} did not confirm the end of the mount: {}",
                                                       link.node(), std::string(status.message())));
    }
  });
  if (!parted.ok()) {
    return parted;
  }
  marks_->EndSettle(settle, counting);
  if (absl::Status status = marks_->Flush(); !status.ok()) {
    return status;
  }
  record_.operation = log_.last();
  record_.clean = true;
  return recovery::StoreVolumeRecord(record_path_, record_);
}

// --- LinkOwner ---

// The first time in a mount, its copy was found to be ours as that mount began, or was made so since.
void PrimaryVolume::Recovered(size_t replica) {
  if (!proven_[replica]) {
    const absl::Status status = replicator_->Resynced(replica, as_mounted_);
    proven_[replica] = status.ok();
    if (!status.ok()) {
      events_.Report(Severity::kWarning, "marks_not_cleared",
                     {{"volume", options_.name}, {"reason", std::string(status.message())}});
    }
  }
  NoteFilled(replica);
  if (trailer_ != nullptr && trailer_->Wants(replica) && set_->member(replica)) {
    BeginTrail(replica);
  }
  replicator_->Wake();
}

int PrimaryVolume::SyncBacking() const { return ::syncfs(root_->fd()) == 0 ? 0 : errno; }

bool PrimaryVolume::Lost(size_t replica) {
  if (options_.on_loss != OnLoss::kProceed) {
    return false;  // syncs wait for it, and then fail
  }
  if (set_->Leave(replica)) {
    events_.Report(Severity::kError, "redundancy_lost", RedundancyOf(replica));
  }
  if (trailer_ != nullptr) {
    trailer_->End(replica);
  }
  replicator_->Wake();
  return true;
}

void PrimaryVolume::Unfit(size_t replica) {
  if (set_->Leave(replica)) {
    events_.Report(Severity::kWarning, "replica_unfit", RedundancyOf(replica));
  }
  if (trailer_ != nullptr) {
    trailer_->End(replica);
  }
}

// Also where no sync would ask the replica: under proceed, without members (promise P4).
void PrimaryVolume::Superseded(size_t replica, const std::string& reason) {
  if (page_->SetState(VolumeState::kFenced)) {
    events_.Report(Severity::kError, "superseded",
                   {{"volume", options_.name}, {"node", links_[replica]->node()}, {"reason", reason}});
  }
}

absl::Status PrimaryVolume::Resync(size_t replica, ResyncPeer& peer) {
  recovery::ResyncCounts counts;
  absl::Status status = runners_[replica]->Run(peer, counts);
  if (status.ok()) {
    proven_[replica] = true;
    EventSink::Fields fields = RedundancyOf(replica);
    fields.emplace_back("files_compared", std::to_string(counts.files_done));
    fields.emplace_back("bytes_compared", std::to_string(counts.bytes_compared));
    fields.emplace_back("bytes_sent", std::to_string(counts.bytes_sent));
    events_.Report(Severity::kInfo, "redundancy_restored", fields);
  }
  return status;
}

EventSink::Fields PrimaryVolume::RedundancyOf(size_t replica) const {
  return {{"volume", options_.name},
          {"node", links_[replica]->node()},
          {"members", std::to_string(std::popcount(set_->set().members()))},
          {"set_version", std::to_string(Raw(set_->set().version()))}};
}

// --- ClientVolume ---

ClientVolume::SharedParts PrimaryVolume::PartsOf(const ReplicatedFile& file) const {
  return {.slot = StateOf(file).slot_index(), .order_fd = StateOf(file).order_fd()};
}

Result<Connector::Connection> PrimaryVolume::OpenSession(size_t replica, const std::string& process,
                                                         SessionId session, Sequence next_sequence,
                                                         Deadline deadline) {
  if ((page_->page().configured.load(std::memory_order_acquire) & Bit(replica)) == 0) {
    return Error{ENOTCONN, "open a session: the volume has no such replica"};
  }
  return links_[replica]->ConnectProcess(process, session, next_sequence, deadline);
}

int PrimaryVolume::Grant(size_t replica, SessionId session, FileId file, Deadline deadline) {
  return links_[replica]->Exchange(FrameKind::kGrant, file, Raw(session), WaitLevel::kReceived, deadline);
}

void PrimaryVolume::EndSession(size_t replica, SessionId session) {
  // What cannot be told now, the replica finds out by itself: the connection is cut, and sessions without one are dropped.
  if (links_[replica]->session().connected()) {
    (void)links_[replica]->Exchange(FrameKind::kRevoke, FileId::kNone, Raw(session), WaitLevel::kReceived,
                                    Deadline::After(kRevokeDeadline));
  }
}

void PrimaryVolume::SetWritingMappers(ReplicatedFile& file, size_t processes) {
  static_cast<FileState&>(file).SetWritingMappers(processes);
}

void PrimaryVolume::HoldDirty(const std::shared_ptr<ReplicatedFile>& file, std::span<const Extent> extents) {
  replicator_->Hold(std::static_pointer_cast<FileState>(file), extents);
}

void PrimaryVolume::HoldDoubtful(const std::shared_ptr<ReplicatedFile>& file, Extent extent) {
  replicator_->HoldDoubtful(std::static_pointer_cast<FileState>(file), extent);
}

int PrimaryVolume::SyncOthers(const std::shared_ptr<ReplicatedFile>& file, Extent range, ProcessSerial asking,
                              Deadline) {
  return replicator_->SyncOthers(static_cast<FileState&>(*file), range, asking);
}

int PrimaryVolume::SyncAll(ProcessSerial asking, Deadline) {
  const int error = file_system_->SyncCachedStores();
  return error != 0 ? error : replicator_->SyncAll(asking);
}

void PrimaryVolume::Report(pid_t pid, local::ReportKind kind, FileId file, uint64_t value) {
  const auto say = [&](Severity severity, const char* event) {
    events_.Report(severity, event,
                   {{"volume", options_.name},
                    {"pid", std::to_string(pid)},
                    {"file", std::to_string(Raw(file))},
                    {"reason", kind == local::ReportKind::kFailed ? std::strerror(static_cast<int>(value))
                                                                  : "it waits for a replica"}});
  };
  if (kind == local::ReportKind::kFailed && value == ENOSPC) {
    replicator_->TakeOver(file);  // nothing but another attempt finds out when there is room
  }
  const std::lock_guard lock(reports_mutex_);
  switch (kind) {
    case local::ReportKind::kSuspended:
      ++reports_.suspended;
      return say(Severity::kWarning, "sync_suspended");
    case local::ReportKind::kResumed:
      --reports_.suspended;
      return say(Severity::kInfo, "sync_resumed");
    case local::ReportKind::kFailed:
      return say(Severity::kError, "sync_failed");
    case local::ReportKind::kRecaptured:
      reports_.recaptures += value;
      return;
    case local::ReportKind::kSenderFull:
      reports_.sender_full += value;
      return;
    case local::ReportKind::kPeerCongested:
      reports_.peer_congested += value;
      return;
    case local::ReportKind::kReconnected:
      reports_.reconnects += value;
      return;
    case local::ReportKind::kRefused:
      if (const uint64_t replica = value >> 32; replica < kMaxReplicas && set_->Wanted(replica)) {
        links_[replica]->Refused(static_cast<int>(value & UINT32_MAX));
      }
      return;
    case local::ReportKind::kSynced:
      return;
  }
}

}  // namespace pmirror::fs
