// SPDX-License-Identifier: BSD-3-Clause
// The serving of connections. See replica.h.
#include <algorithm>
#include <cstring>

#include "replication/crc32c.h"
#include "tests/sim/replica.h"
#include "tests/sim/session.h"

namespace pmirror::sim {
namespace {

constexpr Time kOperationWait = 40 * kMs;
constexpr Time kHandoverWait = 100 * kMs;

}  // namespace

void Replica::Accept(std::shared_ptr<Connection> connection) {
  world_.loop.Spawn(process_->group, Serve(std::move(connection)));
}

bool Replica::DaemonIsGone() const {
  return process_->daemon_gone_since + world_.settings.deadline < world_.now();
}

Replica::Took Replica::TakeFrame(std::vector<std::byte>& bytes, Frame& frame) {
  if (bytes.size() < sizeof(FrameHeader)) {
    return Took::kIncomplete;
  }
  std::memcpy(&frame.header, bytes.data(), sizeof(FrameHeader));
  if (CheckHeader(frame.header) != HeaderFault::kOk) {
    return Took::kDamaged;
  }
  const size_t total = FrameBytes(frame.header);
  if (bytes.size() < total) {
    return Took::kIncomplete;
  }
  frame.ranges.resize(frame.header.range_count);
  const size_t ranges = frame.ranges.size() * sizeof(WireRange);
  if (ranges != 0) {
    std::memcpy(frame.ranges.data(), bytes.data() + sizeof(FrameHeader), ranges);
  }
  const auto payload = bytes.begin() + static_cast<ptrdiff_t>(sizeof(FrameHeader) + ranges);
  frame.payload.assign(payload, payload + static_cast<ptrdiff_t>(frame.header.payload_length));
  bytes.erase(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(total));
  const uint32_t crc = frame.payload.empty() ? 0 : Crc32c(0, frame.payload);
  return HeaderCrc(frame.header, frame.ranges, {}) == frame.header.header_crc &&
                 crc == frame.header.payload_crc
             ? Took::kFrame
             : Took::kDamaged;
}

// False: the connection is at its end, or nothing on it can be trusted any more.
Task<bool> Replica::ReadFrame(const std::shared_ptr<Connection>& connection, Frame& frame) {
  while (true) {
    const Took took = TakeFrame(connection->Arrived(Side::kReplica), frame);
    if (took != Took::kIncomplete || connection->Dead(Side::kReplica)) {
      co_return took == Took::kFrame;
    }
    co_await connection->Readable(Side::kReplica).Wait(kForever);
  }
}

void Replica::Reply(const std::shared_ptr<Connection>& connection, const Held* held, FrameKind kind,
                    std::span<const std::byte> body) {
  FrameHeader header{};
  header.kind = static_cast<uint8_t>(kind);
  header.epoch = 1;
  header.session = held == nullptr ? 0 : Raw(held->receiver.config().session);
  header.durable_sequence = held == nullptr ? 0 : held->receiver.durable();
  connection->Send(Side::kReplica, Encoded(header, {}, body));
}

void Replica::Refuse(const std::shared_ptr<Connection>& connection, const Held& held,
                     const FrameHeader& header, RefusalCode code) {
  world_.Trace("replica {} refuses session {} seq {} file {:#x} order {}: {}", index_, header.session,
               header.sequence, header.file, header.order, Name(code));
  const RefusalBody body{.sequence = header.sequence,
                         .file = header.file,
                         .order = header.order,
                         .code = static_cast<uint32_t>(code),
                         .error_number = 0};
  Reply(connection, &held, FrameKind::kRefusal, std::as_bytes(std::span(&body, 1)));
}

Task<> Replica::Serve(std::shared_ptr<Connection> connection) {
  Process& p = *process_;
  Frame frame;
  const bool greeted = co_await ReadFrame(connection, frame);
  if (!greeted || frame.header.kind != static_cast<uint8_t>(FrameKind::kHello)) {
    connection->Close(Side::kReplica);
    co_return;
  }
  HelloBody hello{};
  std::memcpy(&hello, frame.payload.data(), sizeof hello);
  const auto found = p.sessions.find(frame.header.session);  // for the ticket
  if (found == p.sessions.end()) {
    connection->Close(Side::kReplica);
    co_return;
  }
  const std::shared_ptr<Held> held = found->second;
  const Time deadline = world_.now() + kHandoverWait;
  while (!held->ended && held->connection != nullptr && world_.now() < deadline) {
    held->connection->Close(Side::kReplica);
    co_await held->released.Wait(deadline);
  }
  if (held->ended || held->connection != nullptr || !held->receiver.Connected(hello.next_sequence)) {
    connection->Close(Side::kReplica);
    co_return;
  }
  held->connection = connection;
  const bool daemon = held->receiver.config().kind == SessionKind::kDaemon;
  const HelloAckBody greeting =
      held->receiver.Greeting(world_.Has(Planted::kOperationsReappliedFromStart) ? 0 : p.applied);
  Reply(connection, held.get(), FrameKind::kHelloAck, std::as_bytes(std::span(&greeting, 1)));
  if (daemon) {
    p.daemon_gone_since = kForever;
  }
  while (true) {
    const bool good = co_await ReadFrame(connection, frame);
    if (!good || held->ended || connection->ClosedHere(Side::kReplica) || (!daemon && DaemonIsGone())) {
      break;
    }
    Receiver& receiver = held->receiver;
    const Receiver::Decision decision = receiver.Admit(frame.header, frame.ranges, Epoch{1});
    if (decision.verdict == Receiver::Verdict::kCut) {
      world_.Trace("replica {} cuts session {}: {}", index_, frame.header.session, decision.why);
      break;
    }
    if (decision.verdict == Receiver::Verdict::kRefuse) {
      Refuse(connection, *held, frame.header, decision.code);
      receiver.Refused(frame.header);
    } else if (decision.verdict == Receiver::Verdict::kAdmit) {
      const std::optional<RefusalCode> refusal = co_await Apply(*held, frame);
      if (refusal.has_value()) {
        Refuse(connection, *held, frame.header, *refusal);
        receiver.Refused(frame.header);
      } else {
        receiver.Applied(frame.header);
      }
    }
    const bool more =
        world_.rng().Chance(300) && connection->Arrived(Side::kReplica).size() > sizeof(FrameHeader);
    if (more && !receiver.PersistDue()) {
      continue;
    }
    if (receiver.PersistDue()) {
      if (world_.Has(Planted::kAckBeforePersist)) {
        receiver.Persisted(p.applied);
        const AckBody ack = receiver.TakeAck();
        Reply(connection, held.get(), FrameKind::kAck, std::as_bytes(std::span(&ack, 1)));
      }
      co_await Persist(*held);
    }
    if (receiver.AckOwed()) {
      const AckBody ack = receiver.TakeAck();
      Reply(connection, held.get(), FrameKind::kAck, std::as_bytes(std::span(&ack, 1)));
    }
  }
  if (daemon) {
    p.daemon_gone_since = world_.now();
  }
  if (world_.Has(Planted::kOrdersForgottenInMount)) {
    for (auto& [id, file] : p.files) {
      file.order = ApplyOrder(8);
    }
  }
  connection->Close(Side::kReplica);
  held->connection = nullptr;
  held->released.Notify();
}

// --- frames ---

Task<std::optional<RefusalCode>> Replica::Apply(Held& held, const Frame& frame) {
  Process& p = *process_;
  std::optional<RefusalCode> refusal;
  switch (static_cast<FrameKind>(frame.header.kind)) {
    case FrameKind::kDataImage:
      refusal = co_await ApplyData(held, frame);
      break;
    case FrameKind::kNamespaceOp:
      refusal = co_await ApplyOperation(frame);
      break;
    case FrameKind::kGrant:
      refusal = Grant(frame);
      break;
    case FrameKind::kRevoke:
      if (const auto found = p.sessions.find(frame.header.order); found != p.sessions.end()) {
        found->second->ended = true;
        if (found->second->connection != nullptr) {
          found->second->connection->Close(Side::kReplica);
        }
        p.sessions.erase(found);
      }
      break;
    case FrameKind::kBarrier:
      if (frame.header.file != 0) {
        held.touched.insert(FileId{frame.header.file});
      }
      break;
    default:
      break;
  }
  co_return refusal;
}

std::optional<RefusalCode> Replica::Grant(const Frame& frame) {
  const auto found = process_->sessions.find(frame.header.order);
  if (found == process_->sessions.end()) {
    return RefusalCode::kNotGranted;
  }
  if (disk_.Find(FileId{frame.header.file}) == nullptr) {
    return RefusalCode::kNoSuchFile;
  }
  found->second->granted.insert(frame.header.file);
  return std::nullopt;
}

Task<std::optional<RefusalCode>> Replica::ApplyData(Held& held, const Frame& frame) {
  const bool daemon = held.receiver.config().kind == SessionKind::kDaemon;
  if (!daemon && !held.granted.contains(frame.header.file)) {
    co_return RefusalCode::kNotGranted;
  }
  Process& p = *process_;
  const Time deadline = world_.now() + kOperationWait;
  File& file = p.files[FileId{frame.header.file}];
  while (true) {
    while (file.locked) {
      co_await p.changed.Wait(kForever);
    }
    if (disk_.Find(FileId{frame.header.file}) == nullptr) {
      co_return RefusalCode::kNoSuchFile;
    }
    const ApplyOrder::Verdict verdict = file.order.Judge(frame.header.size_generation, p.applied);
    if (verdict == ApplyOrder::Verdict::kApply) {
      break;
    }
    if (verdict == ApplyOrder::Verdict::kRecapture || daemon || held.ended || world_.now() >= deadline) {
      co_return RefusalCode::kRecapture;
    }
    co_await p.changed.Wait(deadline);
  }
  const std::optional<RefusalCode> refusal = co_await ApplyPieces(held, frame);
  co_return refusal;
}

// Under the file's lock.
Task<std::optional<RefusalCode>> Replica::ApplyPieces(Held& held, const Frame& frame) {
  const FileId id{frame.header.file};
  File& file = process_->files[id];
  std::vector<ApplyPiece> pieces;
  if (!file.order.Plan(frame.header.order, frame.ranges, pieces)) {
    co_return RefusalCode::kRecapture;
  }
  if (disk_.full && world_.rng().Chance(700)) {
    co_return RefusalCode::kNoSpace;
  }
  file.locked = true;
  for (const ApplyPiece& piece : pieces) {
    if (world_.rng().Chance(150)) {
      co_await world_.loop.Step();
    }
    if (DiskFile* const there = disk_.Find(id); there != nullptr) {
      disk_.Write(*there, piece.offset, std::span(frame.payload).subspan(piece.payload_offset, piece.length));
    }
  }
  file.order.Record(frame.header.order, frame.ranges);
  file.locked = false;
  process_->changed.Notify();
  if (!pieces.empty() || !world_.Has(Planted::kBarrierSkipsOtherSessions)) {
    held.touched.insert(id);
  }
  world_.Trace("replica {} applies session {} seq {} file {:#x} order {} gen {}: {} pieces of {} ranges",
               index_, frame.header.session, frame.header.sequence, frame.header.file, frame.header.order,
               frame.header.size_generation, pieces.size(), frame.ranges.size());
  oracle_.CheckCopy(copy_);
  co_return std::nullopt;
}

Task<std::optional<RefusalCode>> Replica::ApplyOperation(const Frame& frame) {
  Process& p = *process_;
  const Result<NamespaceOp> op = DecodeNamespaceOp(frame.payload);
  const uint64_t number = frame.header.order;
  if (!op.ok()) {
    co_return RefusalCode::kIoError;
  }
  if (number <= p.applied && !world_.Has(Planted::kOperationsReappliedFromStart)) {
    co_return std::nullopt;
  }
  if (number > p.applied + 1) {
    co_return RefusalCode::kBlocked;
  }
  File& file = p.files[op.value().target];
  while (file.locked) {
    co_await p.changed.Wait(kForever);
  }
  if (!disk_.Apply(op.value())) {
    co_return RefusalCode::kNoSpace;
  }
  if (op.value().kind == OpKind::kTruncate) {
    file.order.SizeChanged(number);
  }
  p.tree_changed = true;
  file.locked = true;
  co_await world_.loop.Step();
  file.locked = false;
  disk_.SetMark(p.mount_number, std::max(number, p.applied));
  p.applied = std::max(number, p.applied);
  p.changed.Notify();
  world_.Trace("replica {} applies operation {}: {} {:#x}", index_, number, Name(op.value().kind),
               Raw(op.value().target));
  oracle_.CheckCopy(copy_);
  co_return std::nullopt;
}

Task<> Replica::Persist(Held& held) {
  Process& p = *process_;
  const bool daemon = held.receiver.config().kind == SessionKind::kDaemon;
  const uint64_t operation = p.applied;
  const bool everything = daemon && p.tree_changed;
  if (everything) {
    p.tree_changed = false;
  }
  const std::vector<FileId> touched(held.touched.begin(), held.touched.end());
  co_await Flush(touched, everything);
  held.touched.clear();
  if (daemon) {
    p.operation_durable = std::max(p.operation_durable, operation);
  }
  held.receiver.Persisted(p.operation_durable);
}

}  // namespace pmirror::sim
