// SPDX-License-Identifier: BSD-3-Clause
// The serving of one data connection. See replica_session.h.
#include "server/replica_session.h"

#include <poll.h>
#include <sys/socket.h>

#include <atomic>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "replication/crc32c.h"
#include "spdlog/spdlog.h"

namespace pmirror::server {
namespace {

// Frames that are small enough not to hold up the answer to the ones before them, and how many may do so.
constexpr size_t kSmallFrame = 8 * 1024;
constexpr int kMostUnanswered = 32;
// After so many good frames a path is not damaged any more.
constexpr uint64_t kFramesThatProve = 1000;

// One CPU stays free for the others, however many connections spin.
std::atomic<unsigned> spinning = 0;

}  // namespace

ReplicaSession::ReplicaSession(const Environment& environment, int socket, std::string peer)
    : environment_(environment), socket_(socket), peer_(std::move(peer)), spin_(UsableCpus()) {}

void ReplicaSession::Run() {
  if (!Greet()) {
    return;
  }
  volume_->counters().connections.fetch_add(1, std::memory_order_relaxed);
  spdlog::debug(
      "event=session_connected volume={} session={} node={} process=\"{}\" peer={} received={} durable={}",
      volume_->options().name, Raw(session_->identity.id), session_->identity.node,
      session_->identity.process, peer_, session_->receiver.received(), session_->receiver.durable());
  const bool daemon = session_->identity.kind == SessionKind::kDaemon;
  if (daemon) {
    volume_->DaemonCame();
  }
  Serve();
  if (daemon) {
    volume_->DaemonWent();  // before the session is let go, so that its next connection has the last word
  }
  spdlog::debug(
      "event=session_disconnected volume={} session={} node={} peer={} received={} durable={} reason=\"{}\"",
      volume_->options().name, Raw(session_->identity.id), session_->identity.node, peer_,
      session_->receiver.received(), session_->receiver.durable(),
      session_->interrupted() ? "cut from this side" : end_);
  session_->Release();
}

// --- hello ---

bool ReplicaSession::Greet() {
  FrameReader::Frame frame;
  return AwaitHello(frame) && AcceptHello(frame);
}

bool ReplicaSession::AwaitHello(FrameReader::Frame& frame) {
  const Deadline deadline = Deadline::After(environment_.hello_deadline);
  for (;;) {
    HeaderFault fault{};
    switch (reader_.Next(frame, fault)) {
      case FrameReader::Result::kFrame:
        return true;
      case FrameReader::Result::kMalformed:
        spdlog::warn("event=hello_refused peer={} reason=\"no frame of the data protocol: {}\"", peer_,
                     Name(fault));
        return false;
      case FrameReader::Result::kChecksum:
        spdlog::warn("event=hello_refused peer={} reason=\"checksum\"", peer_);
        return false;
      case FrameReader::Result::kIncomplete:
        break;
    }
    pollfd wait{.fd = socket_, .events = POLLIN, .revents = 0};
    const timespec left = deadline.RemainingTimespec();
    const int ready = ::ppoll(&wait, 1, &left, nullptr);
    if (ready < 0 && errno == EINTR) {
      continue;
    }
    if (ready <= 0) {
      spdlog::warn("event=hello_refused peer={} reason=\"no hello in time\"", peer_);
      return false;
    }
    if (const ssize_t got = Receive(0); got <= 0) {
      spdlog::debug("event=hello_refused peer={} reason=\"closed before the hello\"", peer_);
      return false;
    }
  }
}

bool ReplicaSession::AcceptHello(const FrameReader::Frame& frame) {
  HelloBody hello;
  if (frame.header.kind != static_cast<uint8_t>(FrameKind::kHello) || frame.header.sequence != 0 ||
      !frame.ranges.empty() || frame.payload.size() != sizeof hello) {
    RefuseHello(RefusalCode::kNotGranted, "the first frame is no hello");
    return false;
  }
  std::memcpy(&hello, frame.payload.data(), sizeof hello);
  Uuid uuid;
  Ticket16 ticket;
  std::memcpy(uuid.data(), hello.volume, uuid.size());
  std::memcpy(ticket.data(), hello.ticket, ticket.size());
  volume_ = environment_.find_volume(uuid);
  if (volume_ == nullptr || hello.reserved != 0) {
    RefuseHello(RefusalCode::kNotGranted,
                absl::StrCat("no replica of volume ", recovery::UuidText(uuid), " is open here"));
    return false;
  }
  absl::StatusOr<std::shared_ptr<Session>> session =
      volume_->sessions().Redeem(ticket, static_cast<SessionKind>(hello.kind));
  if (!session.ok()) {
    RefuseHello(RefusalCode::kNotGranted, std::string(session.status().message()));
    return false;
  }
  if (frame.header.epoch < Raw(volume_->newest_epoch()) ||
      (*session)->identity.epoch < volume_->newest_epoch()) {
    RefuseHello(RefusalCode::kOldEpoch, "epoch was superseded");
    return false;
  }
  if (!(*session)->Acquire(socket_, Deadline::After(volume_->options().handover_wait))) {
    RefuseHello(RefusalCode::kNotGranted, "the session has ended, or its last connection has not");
    return false;
  }
  session_ = *std::move(session);
  // Looked at only now: whoever makes the node unreachable cuts the sessions after.
  const bool reachable = environment_.reachable(session_->identity.node);
  if (!reachable || !session_->receiver.Connected(hello.next_sequence)) {
    RefuseHello(RefusalCode::kNotGranted,
                reachable ? "it begins with a sequence that was received already" : "node made unreachable");
    session_->Release();
    return false;
  }
  const HelloAckBody greeting = session_->receiver.Greeting(volume_->applied_operation());
  AppendReply(FrameKind::kHelloAck, std::as_bytes(std::span(&greeting, 1)));
  if (!Flush()) {
    session_->Release();
    return false;
  }
  return true;
}

void ReplicaSession::RefuseHello(RefusalCode code, std::string_view why) {
  spdlog::warn("event=hello_refused peer={} code={} reason=\"{}\"", peer_, Name(code), why);
  AppendRefusal({}, code, 0);
  Flush();
}

// --- frames ---

void ReplicaSession::Serve() {
  FrameReader::Frame frame;
  for (;;) {
    HeaderFault fault{};
    Progress progress = Progress::kContinue;
    const FrameReader::Result result = reader_.Next(frame, fault);
    if (session_->interrupted()) {
      return;
    }
    if (session_->identity.kind == SessionKind::kProcess && volume_->DaemonIsGone()) {
      end_ = "the primary's daemon is gone";
      return;
    }
    switch (result) {
      case FrameReader::Result::kFrame:
        progress = Handle(frame);
        break;
      case FrameReader::Result::kIncomplete:
        progress = Fill() ? Progress::kContinue : Progress::kEnd;
        break;
      case FrameReader::Result::kMalformed:
        end_ = absl::StrCat("no frame of the data protocol: ", Name(fault));
        DamagedFrame();
        progress = Progress::kEnd;
        break;
      case FrameReader::Result::kChecksum:
        end_ = "checksum";
        DamagedFrame();
        progress = Progress::kEnd;
        break;
    }
    if (progress == Progress::kEnd) {
      Answer();  // what was done before is told, if the peer still listens
      return;
    }
  }
}

void ReplicaSession::DamagedFrame() {
  volume_->counters().checksum_faults.fetch_add(1, std::memory_order_relaxed);
  const int in_a_row = session_->checksum_faults.fetch_add(1) + 1;
  spdlog::warn("event=frame_damaged volume={} session={} node={} peer={} in_a_row={} reason=\"{}\"",
               volume_->options().name, Raw(session_->identity.id), session_->identity.node, peer_, in_a_row,
               end_);
}

ReplicaSession::Progress ReplicaSession::Handle(const FrameReader::Frame& frame) {
  const FrameHeader& header = frame.header;
  Receiver& receiver = session_->receiver;
  ReplicaVolume::AtomicCounters& counters = volume_->counters();
  const Receiver::Decision decision = receiver.Admit(header, frame.ranges, volume_->newest_epoch());
  switch (decision.verdict) {
    case Receiver::Verdict::kCut:
      end_ = decision.why;
      return Progress::kEnd;
    case Receiver::Verdict::kDuplicate:
      counters.duplicates.fetch_add(1, std::memory_order_relaxed);
      break;
    case Receiver::Verdict::kRefuse:
      AppendRefusal(header, decision.code, 0);
      receiver.Refused(header);
      if (decision.code == RefusalCode::kOldEpoch) {
        end_ = decision.why;
        return Progress::kEnd;
      }
      break;
    case Receiver::Verdict::kAdmit:
      if (const Outcome outcome = Do(frame); outcome) {
        AppendRefusal(header, outcome->code, outcome->error_number);
        receiver.Refused(header);
      } else {
        receiver.Applied(header);
      }
      break;
  }
  if (receiver.PersistDue()) {
    barriers_.push_back(header);
  }
  counters.frames.fetch_add(1, std::memory_order_relaxed);
  counters.bytes.fetch_add(FrameBytes(header), std::memory_order_relaxed);
  if (++good_frames_ == kFramesThatProve) {
    session_->checksum_faults = 0;
  }
  ++unanswered_;
  const bool due = receiver.AckDue() || receiver.PersistDue() || !out_.empty();
  const bool more = unanswered_ < kMostUnanswered && reader_.Ready(kSmallFrame);
  return due && !more ? Answer() : Progress::kContinue;
}

// What the receiver admitted.
Outcome ReplicaSession::Do(const FrameReader::Frame& frame) {
  // Questions are answered before the acknowledgement that covers them.
  const auto answer = [this](const Outcome& outcome, FrameKind kind, const auto& body) {
    if (!outcome) {
      AppendReply(kind, std::as_bytes(std::span(&body, 1)));
    }
    return outcome;
  };
  switch (static_cast<FrameKind>(frame.header.kind)) {
    case FrameKind::kVerify: {
      VerifiedBody verified;
      return answer(volume_->Verify(*session_, frame.header, frame.ranges, verified), FrameKind::kVerified,
                    verified);
    }
    case FrameKind::kConfirm: {
      ConfirmedBody confirmed;
      return answer(volume_->Confirm(*session_, frame.header, frame.ranges.front(), frame.payload, confirmed),
                    FrameKind::kConfirmed, confirmed);
    }
    default:
      return volume_->Apply(*session_, frame.header, frame.ranges, frame.payload);
  }
}

// Serves the barriers, then sends refusals and the acknowledgement, in this order.
ReplicaSession::Progress ReplicaSession::Answer() {
  unanswered_ = 0;
  if (session_->receiver.PersistDue() && !session_->interrupted()) {
    Persist();
  }
  if (session_->receiver.AckOwed()) {
    const AckBody ack = session_->receiver.TakeAck();
    AppendReply(FrameKind::kAck, std::as_bytes(std::span(&ack, 1)));
  }
  return Flush() ? Progress::kContinue : Progress::kEnd;
}

void ReplicaSession::Persist() {
  const ReplicaVolume::Persisted persisted = volume_->Persist(*session_);
  if (persisted.error == 0) {
    session_->receiver.Persisted(persisted.operation);
  } else {
    for (const FrameHeader& header : barriers_) {
      AppendRefusal(header, RefusalCode::kIoError, persisted.error);
    }
    session_->receiver.PersistFailed();
  }
  barriers_.clear();
}

// --- the socket ---

// Reads what there is; sleeps when there is nothing.
bool ReplicaSession::Fill() {
  ssize_t got = Receive(MSG_DONTWAIT);
  if (got < 0 && errno == EAGAIN) {
    const Deadline::Duration began = Deadline::Now();
    got = Spin();
    if (got < 0 && errno == EAGAIN) {
      // Nobody waits for it, or it would have been sent; but it must not be kept for ever.
      if (session_->receiver.AckOwed() && Answer() == Progress::kEnd) {
        return false;
      }
      got = Receive(0);
    }
    spin_.Waited(Deadline::Now() - began);
  }
  if (got < 0) {
    end_ = std::strerror(errno);
  }
  return got > 0;
}

// Looks for input without sleeping while that has lately been worth it. -1 and EAGAIN: none came.
ssize_t ReplicaSession::Spin() {
  const SpinBudget::Duration budget = spin_.Next();
  if (budget == SpinBudget::Duration::zero() || spinning.fetch_add(1) + 1 >= UsableCpus()) {
    if (budget != SpinBudget::Duration::zero()) {
      spinning.fetch_sub(1);
    }
    errno = EAGAIN;
    return -1;
  }
  const Deadline until = Deadline::After(budget);
  ssize_t got = -1;
  do {
    __builtin_ia32_pause();
    got = Receive(MSG_DONTWAIT);
  } while (got < 0 && errno == EAGAIN && !until.Expired());
  spinning.fetch_sub(1);
  const int error = errno;
  spin_.Spun(got > 0);
  errno = error;
  return got;
}

ssize_t ReplicaSession::Receive(int flags) {
  const std::span<std::byte> space = reader_.Space();
  ssize_t got = 0;
  do {
    got = ::recv(socket_, space.data(), space.size(), flags);
  } while (got < 0 && errno == EINTR);
  if (got > 0) {
    reader_.Filled(static_cast<size_t>(got));
    if (session_ != nullptr) {
      session_->Heard();
    }
  }
  return got;
}

void ReplicaSession::AppendRefusal(const FrameHeader& header, RefusalCode code, int error_number) {
  if (volume_ != nullptr) {
    auto& counter =
        code == RefusalCode::kRecapture ? volume_->counters().recaptures : volume_->counters().refusals;
    counter.fetch_add(1, std::memory_order_relaxed);
  }
  const RefusalBody body{.sequence = header.sequence,
                         .file = header.file,
                         .order = header.order,
                         .code = static_cast<uint32_t>(code),
                         .error_number = error_number};
  AppendReply(FrameKind::kRefusal, std::as_bytes(std::span(&body, 1)));
}

void ReplicaSession::AppendReply(FrameKind kind, std::span<const std::byte> body) {
  FrameHeader header{};
  header.magic = kFrameMagic;
  header.version = kFrameVersion;
  header.kind = static_cast<uint8_t>(kind);
  header.epoch = volume_ == nullptr ? 0 : Raw(volume_->newest_epoch());
  header.session = session_ == nullptr ? 0 : Raw(session_->identity.id);
  header.order = kind == FrameKind::kHelloAck ? kCanConfirm : 0;
  header.durable_sequence = session_ == nullptr ? 0 : session_->receiver.durable();
  header.payload_length = static_cast<uint32_t>(body.size());
  header.payload_crc = Crc32c(0, body);
  header.header_crc = HeaderCrc(header, {}, {});
  const auto bytes = std::as_bytes(std::span(&header, 1));
  out_.insert(out_.end(), bytes.begin(), bytes.end());
  out_.insert(out_.end(), body.begin(), body.end());
}

bool ReplicaSession::Flush() {
  size_t sent = 0;
  while (sent < out_.size()) {
    const ssize_t now = ::send(socket_, out_.data() + sent, out_.size() - sent, MSG_NOSIGNAL);
    if (now < 0 && errno == EINTR) {
      continue;
    }
    if (now < 0) {
      end_ = errno == EAGAIN ? "peer does not take answers" : std::strerror(errno);
      break;
    }
    sent += static_cast<size_t>(now);
  }
  const bool all = sent == out_.size();
  out_.clear();
  return all;
}

}  // namespace pmirror::server
