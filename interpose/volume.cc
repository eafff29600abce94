// SPDX-License-Identifier: BSD-3-Clause
// Sessions through the daemon, and what is told to it of waits; see volume.h.
#include "interpose/volume.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

#include "interpose/kernel.h"
#include "interpose/log.h"
#include "interpose/own_descriptors.h"
#include "interpose/thread_state.h"
#include "replication/patience.h"
#include "replication/replica_mask.h"
#include "replication/signal_guard.h"

namespace pmirror::interpose {

namespace {

// Maps what the daemon answered, in the place of what was there before.
template <typename Memory>
Error MapShared(int fd, Memory*& memory) {
  const int fixed = memory == nullptr ? 0 : MAP_FIXED;
  void* const mapped =
      kernel::Mmap(memory, sizeof(Memory), PROT_READ | PROT_WRITE, MAP_SHARED | fixed, fd, 0);
  if (mapped == MAP_FAILED) {
    return Error::FromErrno("map the capture log");
  }
  memory = static_cast<Memory*>(mapped);
  return Error::Ok();
}

}  // namespace

Result<Connector::Connection> DaemonConnector::Connect(SessionId session, Sequence next_sequence,
                                                       Deadline deadline) {
  Connection connection;
  const Error result = link_->AskLong(
      local::RequestKind::kOpenSession, deadline,
      [&](local::Request& request) {
        request.volume = volume_;
        request.replica = replica_;
        request.session = Raw(session);
        request.next_sequence = next_sequence;
        request.wait_ns = static_cast<uint64_t>(deadline.Remaining().count());
      },
      [&](DaemonLink::Answer& answer) -> Error {
        if (answer.descriptor_count != 1) {
          return {EPROTO, "open a session: no socket came"};
        }
        connection.socket =
            own_descriptors().AdoptSession(std::move(answer.descriptors[0]), Volume::Tag(volume_, replica_));
        connection.session = SessionId{answer.reply->session};
        connection.resumed = {.received_sequence = answer.reply->received_sequence,
                              .durable_sequence = answer.reply->durable_sequence,
                              .operation_received = 0,
                              .credit_limit = answer.reply->credit_limit};
        return connection.socket.valid() ? Error::Ok() : Error{EMFILE, "keep a session's socket"};
      });
  if (!result.ok()) {
    return result;
  }
  return connection;
}

void Volume::Attach(DaemonLink& link, uint32_t index, const local::Mount& mount, const VolumePage* page) {
  link_ = &link;
  index_ = index;
  device_.store(mount.device, std::memory_order_release);
  uuid_ = mount.volume;
  std::memcpy(name_, mount.name, sizeof(name_) - 1);
  page_ = page;
  for (uint32_t replica = 0; replica < kMaxReplicas; ++replica) {
    connectors_[replica].Attach(link, index, replica);
  }
}

Error Volume::Replace(const local::Mount& mount, const VolumePage* page) {
  // Whoever holds a pointer into it reads the new one from here on.
  if (kernel::Mremap(const_cast<VolumePage*>(page), sizeof(VolumePage), sizeof(VolumePage),
                     MREMAP_MAYMOVE | MREMAP_FIXED, const_cast<VolumePage*>(page_)) == MAP_FAILED) {
    const Error error = Error::FromErrno("put a volume page in the place of another");
    kernel::Munmap(reinterpret_cast<uintptr_t>(page), sizeof(VolumePage));
    return error;
  }
  device_.store(mount.device, std::memory_order_release);
  for (DataSession* session : sessions_) {
    if (session != nullptr) {
      session->Renew();
    }
  }
  log_ready_.store(false, std::memory_order_release);  // the other daemon has another
  return Error::Ok();
}

Error Volume::MakeReady(StagingPool& staging) {
  if (ready()) {
    return Error::Ok();
  }
  // Of those to come, too: a sync that meets a new replica cannot make one.
  for (size_t replica = 0; replica < kMaxReplicas; ++replica) {
    if (sessions_[replica] == nullptr) {
      Result<std::unique_ptr<DataSession>> session = DataSession::Create(connectors_[replica]);
      if (!session.ok()) {
        return session.error();
      }
      sessions_[replica] = std::move(session).value().release();
    }
  }
  replication_.emplace(*page_, sessions_, staging, *this);
  ready_.store(true, std::memory_order_release);
  return Error::Ok();
}

Error Volume::EnsureLog() {
  if (page_->trails == 0 || log_ready_.load(std::memory_order_acquire)) {
    return Error::Ok();
  }
  const SignalBlock block;
  const FutexLock lock(log_lock_);
  if (log_ready_.load(std::memory_order_relaxed)) {
    return Error::Ok();
  }
  const Error result = link_->AskLong(
      local::RequestKind::kOpenLog, WaitDeadline(), [&](local::Request& request) { request.volume = index_; },
      [&](DaemonLink::Answer& answer) -> Error {
        if (answer.descriptor_count != 2) {
          return {EPROTO, "open the capture log: its descriptors did not come"};
        }
        PMIRROR_RETURN_IF_ERROR(MapShared(answer.descriptors[0].get(), log_));
        return MapShared(answer.descriptors[1].get(), clock_);
      });
  if (!result.ok()) {
    return DaemonLink::IsOfLink(result) ? Error{ENOTCONN, result.doing} : result;
  }
  if (!log_writer_.has_value()) {
    log_writer_.emplace(*log_);
    replication_->UseCaptureLog({.clock = clock_, .log = &*log_writer_});
  }
  log_ready_.store(true, std::memory_order_release);
  return Error::Ok();
}

Error Volume::Replicate(const CaptureTarget& target, std::span<const Extent> extents, ByteSource& source,
                        LocalPersist* local) {
  PMIRROR_RETURN_IF_ERROR(EnsureLog());
  const Error result = replication_->Replicate(target, extents, source, WaitLevel::kDurable, local);
  uint64_t stalls = 0;
  ForEach(static_cast<ReplicaMask>(page_->configured.load(std::memory_order_acquire)),
          [&](size_t replica) { stalls += sessions_[replica]->Stalls(); });
  if (stalls != stalls_told_.load(std::memory_order_relaxed)) {
    TellStalls(stalls);
  }
  return result;
}

Error Volume::Verify(const VerifyRequest& request, VerifyResult& result) {
  const Error error = pmirror::Verify(*page_, sessions_, *this, request, result);
  if (result.replica < kMaxReplicas) {
    thread_state().failed_replica = static_cast<int>(result.replica);
  }
  return error;
}

// What sessions had to wait for, once for each sync that met it: "our buffer was full" and "the replica asked for patience" have different remedies.
void Volume::TellStalls(uint64_t stalls) {
  SessionCounters now;
  for (const DataSession* session : sessions_) {
    if (session != nullptr) {
      const SessionCounters counters = session->counters();
      now.sender_full += counters.sender_full;
      now.peer_congested += counters.peer_congested;
      now.reconnects += counters.reconnects;
    }
  }
  stalls_told_.store(stalls, std::memory_order_relaxed);
  const auto tell = [this](local::ReportKind kind, uint64_t count, std::atomic<uint64_t>& told) {
    uint64_t before = told.load(std::memory_order_relaxed);
    while (before < count && !told.compare_exchange_weak(before, count, std::memory_order_relaxed)) {
    }
    if (before < count) {
      Report(kind, FileId::kNone, count - before);
    }
  };
  tell(local::ReportKind::kSenderFull, now.sender_full, sender_full_told_);
  tell(local::ReportKind::kPeerCongested, now.peer_congested, peer_congested_told_);
  tell(local::ReportKind::kReconnected, now.reconnects, reconnects_told_);
}

bool Volume::Alone() const {
  const SetWord set = LoadSet(*page_);
  return set.sent_to() == 0 && set.trailing() == 0 && MaySucceed(*page_, set) &&
         page_->state.load(std::memory_order_acquire) == static_cast<uint32_t>(VolumeState::kServing);
}

// Whoever we wait for gives up by then; the rest is for its answer to arrive.
Deadline Volume::WaitDeadline() const {
  constexpr std::chrono::seconds kMargin{1};
  return Deadline::After(Patience::Longest(*page_) + kMargin);
}

void Volume::Disconnect(uint32_t replica) {
  if (sessions_[replica] != nullptr) {
    sessions_[replica]->Disconnect();
  }
}

void Volume::ResetInChild() {
  log_lock_.ResetAfterFork();
  log_ready_.store(false, std::memory_order_relaxed);  // the parent's: it ends with the parent
  for (DataSession* session : sessions_) {
    if (session != nullptr) {
      session->Disconnect(/*silently=*/true);
    }
  }
}

void Volume::Report(local::ReportKind kind, FileId file, uint64_t value) {
  const Error reported = link_->AskLong(
      local::RequestKind::kReport, Deadline::After(std::chrono::seconds(1)),
      [&](local::Request& request) {
        request.volume = index_;
        request.file = Raw(file);
        request.report = static_cast<uint32_t>(kind);
        request.value = value;
      },
      [](DaemonLink::Answer&) { return Error::Ok(); });
  if (!reported.ok()) {
    LogLine(LogLevel::kDebug).Text(reported.doing).Field("errno", static_cast<uint64_t>(reported.code));
  }
}

void Volume::Suspended(FileId file) {
  LogLine(LogLevel::kWarning).Text("a sync waits for the replica").Field("file", Raw(file));
  Report(local::ReportKind::kSuspended, file, 0);
}

void Volume::Resumed(FileId file) {
  LogLine(LogLevel::kWarning).Text("a sync waits no longer for the replica").Field("file", Raw(file));
  Report(local::ReportKind::kResumed, file, 0);
}

int Volume::Interrupted(bool) { return link_->Lives() ? 0 : ENOTCONN; }

void Volume::Failed(FileId file, int error) {
  if (error == ENOTCONN) {
    return;  // the daemon is gone, and the sync not at its end
  }
  if (const uint32_t configured = page_->configured.load(std::memory_order_acquire);
      std::popcount(configured) == 1 && thread_state().failed_replica < 0) {
    thread_state().failed_replica =
        std::countr_zero(configured);  // with several it is not known which one was silent
  }
  LogLine(LogLevel::kError)
      .Text("a sync failed: its bytes are not on the replica")
      .Field("file", Raw(file))
      .Field("errno", static_cast<uint64_t>(error));
  Report(local::ReportKind::kFailed, file, static_cast<uint64_t>(error));
}

void Volume::Refused(size_t replica, int error) {
  thread_state().failed_replica = static_cast<int>(replica);
  if (page_->on_loss == static_cast<uint32_t>(OnLoss::kProceed)) {  // else the sync fails, and says so
    Report(local::ReportKind::kRefused, FileId::kNone, replica << 32 | static_cast<uint32_t>(error));
  }
}

void Volume::Recaptured() {
  LogLine(LogLevel::kDebug).Text("a range was captured again");
  Report(local::ReportKind::kRecaptured, FileId::kNone, 1);
}

}  // namespace pmirror::interpose
