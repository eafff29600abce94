// SPDX-License-Identifier: BSD-3-Clause
// See primary_volume.h.
#include "fs/primary_volume.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include "recovery/backing_owner.h"
#include "replication/write_tracker.h"

namespace pmirror::fs {
namespace {

using std::chrono::milliseconds;

constexpr std::chrono::seconds kProofDeadline{10};  // of write tracking, on a file system that may hang
constexpr std::chrono::seconds kFreezeDeadline{20};
constexpr std::chrono::seconds kPingDeadline{5};
constexpr milliseconds kLeaveTimeout{15000};
constexpr milliseconds kRevokeDeadline{200};
constexpr size_t kStagingBytes = (kMaxFrame + kPageSize - 1) / kPageSize * kPageSize;

uint64_t RandomGeneration() {
  uint64_t number = 0;
  while (number == 0) {
    if (::getrandom(&number, sizeof number, 0) != sizeof number) {
      number = 0;
    }
  }
  return number;
}

// Nothing but pmirror's own entry.
absl::StatusOr<bool> IsEmpty(const BackingRoot& root, const std::string& path) {
  const int fd = ::openat(root.fd(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  const std::unique_ptr<DIR, int (*)(DIR*)> stream(fd < 0 ? nullptr : ::fdopendir(fd), &::closedir);
  if (stream == nullptr) {
    return absl::ErrnoToStatus(errno, fmt::format("cannot read the backing directory {}", path));
  }
  while (const dirent* entry = ::readdir(stream.get())) {
    const std::string name = entry->d_name;
    if (name != "." && name != ".." && name != kPrivateDirectory) {
      return false;
    }
  }
  return true;
}

void FillProgress(const ResyncRunner::Progress& progress, control::ResyncProgress& message) {
  message.set_phase(progress.phase);
  message.set_files_done(progress.counts.files_done);
  message.set_files(progress.counts.files);
  message.set_bytes_compared(progress.counts.bytes_compared);
  message.set_bytes(progress.counts.bytes);
  message.set_bytes_sent(progress.counts.bytes_sent);
  message.set_bytes_per_second(progress.bytes_per_second);
}

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
  for (const std::unique_ptr<ReplicaLink>& link : links_) {
    link->Stop();
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
  const absl::StatusOr<bool> empty = IsEmpty(*root_, options_.backing);
  if (!empty.ok()) {
    return empty.status();
  }
  record_.generation = record_.generation != 0 ? record_.generation : RandomGeneration();
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
  return recovery::StoreVolumeRecord(record_path_, record_);
}

absl::Status PrimaryVolume::Start(const OpenOracle& oracle) {
  const Tracking tracking = ProveFileSystem(root_->fd(), Deadline::After(kProofDeadline));
  events_.Report(
      tracking == Tracking::kNone ? Severity::kWarning : Severity::kInfo, "write_tracking",
      {{"volume", options_.name},
       {"proven", tracking == Tracking::kNone ? "no: a sync sends the whole range that it names" : "yes"}});
  absl::StatusOr<std::unique_ptr<VolumePageOwner>> page =
      VolumePageOwner::Create({.epoch = record_.epoch,
                               .on_loss = options_.on_loss,
                               .replica_count = static_cast<uint32_t>(options_.replicas.size()),
                               .deadline_ns = static_cast<uint64_t>(options_.deadline.count()),
                               .suspend_ns = static_cast<uint64_t>(options_.suspend.count()),
                               .domain = options_.domain,
                               .tracking = tracking});
  if (!page.ok()) {
    return page.status();
  }
  page_ = *std::move(page);
  set_ = std::make_unique<InSyncSet>(*page_, options_.replicas.size());
  Result<std::unique_ptr<StagingPool>> staging = StagingPool::Create(kStagingBytes);
  if (!staging.ok()) {
    return absl::ErrnoToStatus(staging.error().code, staging.error().doing);
  }
  staging_ = std::move(staging).value();
  std::vector<ReplicaPath> paths;
  for (const Replica& replica : options_.replicas) {
    links_.push_back(std::make_unique<ReplicaLink>(ReplicaLink::Options{.volume_name = options_.name,
                                                                        .volume = options_.uuid,
                                                                        .primary_node = options_.node,
                                                                        .replica_node = replica.node,
                                                                        .index = links_.size(),
                                                                        .control = replica.control,
                                                                        .epoch = record_.epoch,
                                                                        .mount_number = record_.mount_number,
                                                                        .history = history_,
                                                                        .deadline = options_.deadline},
                                                   log_, events_));
    paths.push_back({&links_.back()->session(), &links_.back()->operations()});
  }
  replicator_ = std::make_unique<VolumeReplicator>(
      VolumeReplicator::Options{.volume_name = options_.name, .mount_number = record_.mount_number}, *page_,
      log_, paths, *staging_, events_);
  for (size_t i = 0; i < links_.size(); ++i) {
    runners_.push_back(std::make_unique<ResyncRunner>(
        ResyncRunner::Options{.replica = i,
                              .backing_root = root_->fd(),
                              .deadline = options_.deadline,
                              .activity = [this] { return replicator_->activity(); }},
        *replicator_, *set_));
  }
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
  for (const std::unique_ptr<ReplicaLink>& link : links_) {
    link->Start(*this);
  }
  events_.Report(Severity::kInfo, "mounted",
                 {{"volume", options_.name},
                  {"mount", options_.mount},
                  {"epoch", std::to_string(Raw(record_.epoch))},
                  {"mount_number", std::to_string(record_.mount_number)}});
  return absl::OkStatus();
}

bool PrimaryVolume::AllInSync() const {
  return std::all_of(links_.begin(), links_.end(), [](const std::unique_ptr<ReplicaLink>& link) {
    return link->status().state == ReplicaLink::State::kInSync;
  });
}

void PrimaryVolume::Unmount(Deadline deadline) {
  page_->SetState(VolumeState::kClosing);
  if (!session_->Unmount(deadline)) {
    events_.Report(Severity::kWarning, "programs_cut_off",
                   {{"volume", options_.name}, {"mount", options_.mount}});
  }
}

// Under `proceed` the volume ends cleanly without the replicas that do not count: they are compared when they come back.
absl::Status PrimaryVolume::Leave(size_t writing) {
  const bool proceeds = options_.on_loss == OnLoss::kProceed;
  if (!proceeds && !AllInSync()) {
    return absl::FailedPreconditionError(
        "a replica is not in sync; the copies are compared at the next mount");
  }
  const int error = replicator_->SyncVolume([this] { return ::syncfs(root_->fd()) == 0 ? 0 : errno; });
  if (error != 0) {
    return absl::ErrnoToStatus(
        error, "not everything could be brought to the replicas; the copies are compared at the next mount");
  }
  if (writing != 0) {
    return absl::FailedPreconditionError(fmt::format(
        "{} programs still map files of the volume and may store to them; the copies are compared at "
        "the next mount; end programs before the daemon",
        writing));
  }
  replicator_->Stop();
  for (size_t i = 0; i < links_.size(); ++i) {
    ReplicaLink& link = *links_[i];
    const bool counts = set_->member(i);
    link.Stop();
    if (!counts) {
      continue;
    }
    if (absl::Status status = link.Leave(log_.last(), kLeaveTimeout); !status.ok()) {
      return absl::Status(status.code(), fmt::format("{} did not confirm the end of the mount: {}",
                                                     link.node(), std::string(status.message())));
    }
  }
  record_.operation = log_.last();
  record_.clean = true;
  return recovery::StoreVolumeRecord(record_path_, record_);
}

// --- LinkOwner ---

void PrimaryVolume::Recovered(size_t) { replicator_->Wake(); }

bool PrimaryVolume::Lost(size_t replica) {
  if (options_.on_loss != OnLoss::kProceed) {
    return false;  // syncs wait for it, and then fail
  }
  if (set_->Leave(replica)) {
    SayRedundancy("redundancy_lost", replica);
  }
  replicator_->Wake();
  return true;
}

void PrimaryVolume::Unfit(size_t replica) {
  if (set_->Leave(replica)) {
    SayRedundancy("replica_unfit", replica);
  }
}

absl::Status PrimaryVolume::Resync(size_t replica, ResyncPeer& peer) {
  absl::Status status = runners_[replica]->Run(peer);
  if (status.ok()) {
    SayRedundancy("redundancy_restored", replica);
  }
  return status;
}

void PrimaryVolume::SayRedundancy(const char* event, size_t replica) {
  events_.Report(set_->member(replica) ? Severity::kInfo : Severity::kWarning, event,
                 {{"volume", options_.name},
                  {"node", links_[replica]->node()},
                  {"members", std::to_string(std::popcount(set_->set().members()))},
                  {"set_version", std::to_string(Raw(set_->set().version()))}});
}

absl::Status PrimaryVolume::Resync(const std::string& node, bool full) {
  bool found = false;
  for (const std::unique_ptr<ReplicaLink>& link : links_) {
    if (node.empty() || link->node() == node) {
      found = true;
      if (full) {
        link->DemandResync();
      } else {
        link->Hurry();
      }
    }
  }
  return found ? absl::OkStatus()
               : absl::NotFoundError(fmt::format("volume {} has no copy on {}", options_.name, node));
}

// --- for the control service ---

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
  size_t index = 0;
  for (const std::unique_ptr<ReplicaLink>& link : links_) {
    const ReplicaLink::Status state = link->status();
    control::ReplicaStatus& replica = *status.add_replicas();
    replica.set_node(link->node());
    const int refusal = replicator_->refusal(index);
    const bool refuses = refusal != 0 && state.state == ReplicaLink::State::kInSync;
    replica.set_state(Name(refuses ? ReplicaLink::State::kFailed : state.state));
    replica.set_reason(refuses ? fmt::format("{} refused data: {}; cure that there, it is repeated by itself",
                                             link->node(), std::strerror(refusal))
                               : state.reason);
    const ResyncRunner::Progress progress = runners_[index]->progress();
    replica.set_dirty_bytes(dirty_bytes + (progress.counts.bytes - std::min(progress.counts.bytes, progress.counts.bytes_compared)));
    if (progress.running) {
      FillProgress(progress, *replica.mutable_resync());
    }
    replica.set_durable_seq(counters.syncs + programs.syncs);
    replica.set_placement(Name(state.placement));
    replica.set_reconnects(state.counters.reconnects + reports.reconnects);
    replica.set_sender_full(state.counters.sender_full + reports.sender_full);
    replica.set_peer_congested(state.counters.peer_congested + reports.peer_congested);
    replica.set_recaptures(counters.recaptures + reports.recaptures);
    ++index;
  }
}

absl::Status PrimaryVolume::Ping(const std::string& node, control::PingReply& reply) {
  for (const std::unique_ptr<ReplicaLink>& link : links_) {
    if (link->node() != node) {
      continue;
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
  return absl::NotFoundError(fmt::format("volume {} has no copy on {}", options_.name, node));
}

void PrimaryVolume::SetReachable(const std::string& node, bool reachable) {
  for (const std::unique_ptr<ReplicaLink>& link : links_) {
    if (link->node() == node) {
      link->SetReachable(reachable);
    }
  }
}

// --- recovery::Freezer ---

absl::Status PrimaryVolume::Freeze() {
  if (!AllInSync()) {
    return absl::UnavailableError("a replica is not in sync; see pmirror status");
  }
  return replicator_->gate().Freeze(kFreezeDeadline)
             ? absl::OkStatus()
             : absl::UnavailableError(
                   "programs wait for the replicas: the volume cannot be frozen now; try again");
}

void PrimaryVolume::Thaw() { replicator_->gate().Thaw(); }

absl::Status PrimaryVolume::Flush(FileId id, Extent extent) {
  const std::shared_ptr<FileState> file = replicator_->Find(id);
  const int error = file == nullptr ? 0 : replicator_->SyncOthers(*file, extent, ProcessSerial::kNone);
  return error == 0 ? absl::OkStatus()
                    : absl::ErrnoToStatus(error, "what programs stored could not be brought to the replicas");
}

absl::StatusOr<bool> PrimaryVolume::Dirty(FileId id, Extent extent) {
  const std::shared_ptr<FileState> file = replicator_->Find(id);
  return file != nullptr && replicator_->Dirty(*file, extent);
}

// --- ClientVolume ---

ClientVolume::SharedParts PrimaryVolume::PartsOf(const ReplicatedFile& file) const {
  return {.slot = StateOf(file).slot_index(), .order_fd = StateOf(file).order_fd()};
}

Result<Connector::Connection> PrimaryVolume::OpenSession(size_t replica, const std::string& process,
                                                         SessionId session, Sequence next_sequence,
                                                         Deadline deadline) {
  if (replica >= links_.size()) {
    return Error{EINVAL, "open a session: the volume has no such replica"};
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
    case local::ReportKind::kSynced:
      return;
  }
}

}  // namespace pmirror::fs
