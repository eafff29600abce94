// SPDX-License-Identifier: BSD-3-Clause
// A primary volume with replicas that trail. See primary_volume.h and docs/internals/rpo.md.
#include <fmt/format.h>

#include <cerrno>
#include <cstring>

#include "fs/primary_volume.h"

namespace pmirror::fs {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kLeastBegin{
    30000};  // a replica waits for its programs' connections to end, and makes all durable

}  // namespace

// Before the engine is made.
absl::Status PrimaryVolume::MakeTrailer() {
  std::vector<std::optional<Rpo>> rpo;
  bool any = false;
  for (const Replica& replica : options_.replicas) {
    rpo.push_back(replica.rpo);
    any = any || replica.rpo.has_value();
  }
  if (!any) {
    return absl::OkStatus();
  }
  absl::StatusOr<std::unique_ptr<Cutter>> cutter = Cutter::Create(options_.name, *page_, log_, events_);
  if (!cutter.ok()) {
    return cutter.status();
  }
  cutter_ = *std::move(cutter);
  trailer_ = std::make_unique<Trailer>(
      Trailer::Options{
          .mount_number = record_.mount_number, .rpo = std::move(rpo), .deadline = options_.deadline},
      *cutter_, *page_, log_,
      [this](absl::FunctionRef<void(uint64_t)> look) { replicator_->WithTreeAtRest(look); },
      static_cast<BatchCarrier&>(*this));
  return absl::OkStatus();
}

// Of a replica that is a member and has an RPO. First its captures are kept, then syncs capture, then its programs' sessions end there.
void PrimaryVolume::BeginTrail(size_t replica) {
  trail_full_[replica] = false;
  trailer_->Collect(replica);
  if (!set_->Trail(replica)) {
    trailer_->End(replica);
    return;
  }
  const absl::StatusOr<uint64_t> operation = links_[replica]->BeginTrailing(
      std::max(kLeastBegin, std::chrono::duration_cast<milliseconds>(options_.deadline)));
  if (!operation.ok()) {
    events_.Report(Severity::kWarning, "trail_not_begun",
                   {{"volume", options_.name},
                    {"node", links_[replica]->node()},
                    {"reason", std::string(operation.status().message())}});
    TrailEnded(replica, Fate::kUnfit);
    return;
  }
  trailer_->Begin(replica, *operation);
}

BatchCarrier::Fate PrimaryVolume::Ship(size_t replica, uint64_t number, std::span<const std::byte> batch,
                                       Deadline deadline) {
  const Fate fate = links_[replica]->ShipBatch(number, batch, deadline);
  if (fate == Fate::kFull && options_.on_loss == OnLoss::kProceed) {
    links_[replica]->Refused(ENOSPC);  // which takes it out
  }
  if (fate == Fate::kFull || fate == Fate::kApplied) {
    trail_full_[replica] = fate == Fate::kFull;
  }
  return fate;
}

void PrimaryVolume::TrailEnded(size_t replica, Fate why) {
  if (why == Fate::kFenced) {
    Superseded(replica, "it refused a batch of this epoch");
    return;
  }
  links_[replica]->DemandResync();  // which takes it out of the set
}

void PrimaryVolume::LagMoved(size_t replica, bool beyond) {
  const EventSink::Fields fields{
      {"volume", options_.name}, {"node", links_[replica]->node()}, {"rpo", trailer_->rpo(replica).text}};
  if (beyond) {
    events_.Report(Severity::kWarning, "replica_lagging", fields);
  } else {
    events_.Report(Severity::kInfo, "replica_lag_over", fields);
  }
  page_->SetLagging(replica, beyond);
}

bool PrimaryVolume::Agrees(size_t replica, bool trailing, uint64_t batch) {
  return !set_->trailing(replica) || !trailer_->Ships(replica) ||
         (trailing && trailer_->Follows(replica, batch));
}

absl::Status PrimaryVolume::FlushTrail(Deadline deadline) {
  return trailer_ == nullptr ? absl::OkStatus() : trailer_->Flush(deadline);
}

absl::StatusOr<ClientVolume::CaptureLogParts> PrimaryVolume::OpenCaptureLog(ProcessSerial program) {
  if (cutter_ == nullptr) {
    return absl::NotFoundError(fmt::format("no replica of volume {} has a recovery point objective", name()));
  }
  const absl::StatusOr<int> log = cutter_->OpenLog(program);
  if (!log.ok()) {
    return log.status();
  }
  return CaptureLogParts{.log_fd = *log, .clock_fd = cutter_->clock_fd()};
}

void PrimaryVolume::CloseCaptureLog(ProcessSerial program) {
  if (cutter_ != nullptr) {
    cutter_->CloseLog(program);
  }
}

void PrimaryVolume::FillTrail(size_t replica, control::ReplicaStatus& status) const {
  const Trailer::Status trail = trailer_->status(replica);
  control::TrailStatus& message = *status.mutable_trail();
  message.set_rpo(trailer_->rpo(replica).text);
  message.set_lag_ns(trail.lag_ns);
  message.set_lag_bytes(trail.lag_bytes);
  message.set_lag_syncs(trail.lag_syncs);
  message.set_breach_ns(trail.breach_ns);
  message.set_point_age_ns(trail.point_age_ns);
  message.set_batches(trail.batches);
  message.set_batch_bytes(trail.batch_bytes);
  message.set_captured_bytes(trail.captured_bytes);
  status.set_dirty_bytes(trail.lag_bytes);
  if (trail_full_[replica]) {
    status.set_state(Name(ReplicaLink::State::kFailed));
    status.set_reason(fmt::format("{} refused a batch: {}; cure that there, it is repeated by itself",
                                  links_[replica]->node(), std::strerror(ENOSPC)));
  } else if (trail.breached && status.state() == Name(ReplicaLink::State::kInSync)) {
    status.set_state("lagging");
    status.set_reason("it is older than its RPO");
  }
}

}  // namespace pmirror::fs
