// SPDX-License-Identifier: BSD-3-Clause
// Connections and greetings. See link.h.
#include "tests/sim/link.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "tests/sim/daemon.h"

namespace pmirror::sim {
namespace {

constexpr int kGreetingsPerDeadline = 4;
constexpr Time kRetryPause = 20 * kMs;
constexpr Time kLongestRetryPause = 200 * kMs;

}  // namespace

Link::Link(World& world, Network& network, Daemon& daemon, Replica& replica, size_t index)
    : world_(world),
      network_(network),
      daemon_(daemon),
      replica_(replica),
      index_(index),
      session_(world, daemon.group(), *this),
      courier_(world, daemon.log_, session_) {}

void Link::SetInSync(bool in_sync) {
  if (in_sync_ != in_sync) {
    world_.Trace("link {}: {}", index_, in_sync ? "in sync" : "not in sync");
  }
  in_sync_ = in_sync;
  if (in_sync && daemon_.Member(index_)) {
    daemon_.oracle_.Counts(index_ + 1, true);
    daemon_.oracle_.CheckCopy(index_ + 1);
  }
}

Task<> Link::Maintain() {
  const Time pause = world_.settings.deadline / kGreetingsPerDeadline;
  Time patience = world_.now() + world_.settings.deadline;
  Time next_try = kRetryPause;
  while (true) {
    bool well = false;
    if (resync_due_) {
      SetInSync(false);
      const bool back = co_await BringBack();
      next_try = back ? kRetryPause : std::min(2 * next_try, kLongestRetryPause);
      patience = world_.now() + world_.settings.deadline;
    } else {
      next_try = kRetryPause;
      well = co_await Greet(in_sync_ ? patience : world_.now() + world_.settings.deadline);
      if (well && resync_due_) {
        in_sync_ = false;
      } else if (well) {
        patience = world_.now() + world_.settings.deadline;
        if (!in_sync_) {
          SetInSync(true);
          co_await daemon_.Recovered(index_);
          proven_ = true;
        }
      } else {
        NoteSilence(patience);
      }
    }
    co_await world_.loop.Sleep(well ? pause : std::min(pause, next_try));
  }
}

void Link::NoteSilence(Time patience) {
  if (courier_.refusal() == 0) {
    if (world_.now() < patience) {
      return;
    }
    session_.Disconnect();
    if (resync_due_) {
      in_sync_ = false;
      return;
    }
  }
  in_sync_ = false;
  if (world_.now() >= patience && daemon_.Lost(index_)) {
    resync_due_ = true;
    ++demands_;
  }
}

Task<bool> Link::Greet(Time deadline) {
  const int connected = co_await session_.EnsureConnected(deadline);
  if (connected != 0) {
    co_return false;
  }
  const int greeted =
      co_await Exchange(FrameKind::kHeartbeat, FileId::kNone, 0, WaitLevel::kReceived, deadline);
  if (greeted != 0) {
    co_return false;
  }
  const int delivered = co_await courier_.Deliver(daemon_.log_.last(), deadline);
  co_return delivered == 0;
}

Task<int> Link::Exchange(FrameKind kind, FileId file, uint64_t order, WaitLevel level, Time deadline) {
  while (true) {
    const int connected = co_await session_.EnsureConnected(deadline);
    if (connected != 0 && world_.now() >= deadline) {
      co_return EIO;
    }
    CaptureInFlight capture;
    session_.Begin(capture);
    FrameToSend frame;
    frame.kind = kind;
    frame.flags = kFlagAckWanted;
    frame.epoch = Epoch{1};
    frame.file = file;
    frame.order = order;
    frame.capture = &capture;
    Receipt receipt;
    SendStatus status = co_await session_.Send(frame, deadline, receipt);
    if (status == SendStatus::kOk) {
      status = co_await session_.Await(receipt, level, &capture, deadline);
    }
    session_.End(capture);
    if (status == SendStatus::kOk) {
      co_return 0;
    }
    if (status == SendStatus::kRefused) {
      co_return EACCES;
    }
    if (world_.now() >= deadline) {
      co_return EIO;
    }
    co_await world_.loop.Sleep(5 * kMs);
  }
}

Task<std::optional<Replica::CopyState>> Link::AskCopy(Time timeout) {
  const AtReplica<Replica::CopyState> work = [](Replica& replica) { return replica.State(); };
  std::optional<Replica::CopyState> state = co_await Call<Replica::CopyState>(timeout, work);
  co_return state;
}

fs::CopyDecision Link::Evaluate(const Replica::CopyState& copy) const {
  const fs::RunningMount running{.mount_number = daemon_.mount_number_,
                                 .first_held = daemon_.log_.first(),
                                 .last = daemon_.log_.last(),
                                 .replica_took_part = took_part_,
                                 .replica_is_member = is_member_};
  const fs::CopyHistory theirs{.generation = copy.record.generation,
                               .mount_number = copy.record.mount_number,
                               .operation = copy.operation,
                               .clean = copy.record.clean,
                               .empty = copy.empty,
                               .mixed = copy.record.resyncing || copy.restarted};
  return fs::Decide(daemon_.history_, running, theirs);
}

Task<int> Link::Judge(Time deadline) {
  const Time left = deadline > world_.now() ? deadline - world_.now() : 1;
  const std::optional<Replica::CopyState> copy = co_await AskCopy(left);
  if (!copy.has_value()) {
    co_return ENOTCONN;
  }
  const fs::CopyDecision decision = Evaluate(*copy);
  if (resyncing_) {
    const bool ours = (copy->record.resyncing || world_.Has(Planted::kResyncingNotRecorded)) &&
                      copy->record.mount_number == daemon_.mount_number_ &&
                      copy->operation + 1 >= daemon_.log_.first() && copy->operation <= daemon_.log_.last();
    co_return ours ? 0 : ESHUTDOWN;
  }
  const bool good = decision == fs::CopyDecision::kNew || decision == fs::CopyDecision::kContinue ||
                    decision == fs::CopyDecision::kReplay;
  if (good && !resync_due_) {
    took_part_ = true;
    co_return 0;
  }
  if (!resync_due_) {
    resync_due_ = true;
    ++demands_;
    world_.Trace("link {}: {}", index_, fs::Explain(decision));
    daemon_.Unfit(index_);
  }
  co_return ESHUTDOWN;
}

Task<Connected> Link::Connect(SessionId session, Sequence next, Time deadline) {
  const bool resyncing = resyncing_;
  const int judged = co_await Judge(deadline);
  if (judged != 0) {
    co_return Connected{.error = judged, .connection = nullptr};
  }
  Connected made = co_await Open(true, session, next, deadline);
  if (made.error == 0 && (resyncing_ != resyncing || (resync_due_ && !resyncing_))) {
    made.connection->Close(Side::kPrimary);
    co_return Connected{.error = ESHUTDOWN, .connection = nullptr};
  }
  if (made.error == 0) {
    courier_.Resumed(made.resumed.operation_received);
  }
  co_return made;
}

Task<Connected> Link::ConnectProcess(SessionId session, Sequence next, Time deadline) {
  if (!daemon_.Wanted(index_)) {
    co_return Connected{.error = ENOTCONN, .connection = nullptr};
  }
  Connected made = co_await Open(false, session, next, deadline);
  co_return made;
}

Task<Connected> Link::Open(bool daemon, SessionId session, Sequence next, Time deadline) {
  const Replica::Terms terms{.daemon = daemon,
                             .session = session,
                             .mount_number = daemon_.mount_number_,
                             .generation = daemon_.history_.generation};
  const Time left = deadline > world_.now() ? deadline - world_.now() : 1;
  const AtReplica<Replica::Permit> work = [terms](Replica& replica) { return replica.OpenSession(terms); };
  const std::optional<Replica::Permit> permit = co_await Call<Replica::Permit>(left, work);
  if (!permit.has_value() || permit->refused || permit->unavailable) {
    co_return Connected{.error = permit.has_value() && permit->refused ? ESHUTDOWN : ENOTCONN,
                        .connection = nullptr};
  }
  if (daemon) {
    is_member_ = true;
  }
  co_await world_.loop.Sleep(network_.Delay(index_));
  if (!network_.Through(index_) || !replica_.up()) {
    co_await world_.loop.Sleep(network_.Through(index_) ? 1 : std::min<Time>(left, 50 * kMs));
    co_return Connected{.error = EHOSTUNREACH, .connection = nullptr};
  }
  const std::shared_ptr<Connection> connection = network_.Connect(index_);
  replica_.Accept(connection);
  HelloBody hello{};
  hello.next_sequence = next;
  hello.kind = static_cast<uint32_t>(daemon ? SessionKind::kDaemon : SessionKind::kProcess);
  FrameHeader header{};
  header.kind = static_cast<uint8_t>(FrameKind::kHello);
  header.epoch = 1;
  header.session = Raw(permit->session);
  connection->Send(Side::kPrimary, Encoded(header, {}, std::as_bytes(std::span(&hello, 1))));
  constexpr size_t kAnswer = sizeof(FrameHeader) + sizeof(HelloAckBody);
  std::vector<std::byte>& arrived = connection->Arrived(Side::kPrimary);
  while (arrived.size() < kAnswer) {
    if (connection->Dead(Side::kPrimary) || world_.now() >= deadline) {
      connection->Close(Side::kPrimary);
      co_return Connected{.error = ECONNRESET, .connection = nullptr};
    }
    co_await connection->Readable(Side::kPrimary).Wait(deadline);
  }
  ReplyReader reader;
  std::memcpy(reader.Room().data(), arrived.data(), kAnswer);
  reader.Filled(kAnswer);
  arrived.erase(arrived.begin(), arrived.begin() + kAnswer);
  if (reader.Take() != ReplyReader::Next::kHelloAck) {
    connection->Close(Side::kPrimary);
    co_return Connected{.error = EACCES, .connection = nullptr};
  }
  world_.Trace("link {}: {} session {} connected, next {}", index_, daemon ? "daemon" : "process",
               Raw(permit->session), next);
  co_return Connected{
      .error = 0, .connection = connection, .session = permit->session, .resumed = reader.hello_ack()};
}

Task<bool> Link::Leave() {
  const uint64_t mount = daemon_.mount_number_;
  const uint64_t last = daemon_.log_.last();
  const AtReplica<bool> work = [mount, last](Replica& replica) { return replica.Leave(mount, last); };
  const std::optional<bool> left = co_await Call<bool>(world_.settings.deadline, work);
  co_return left.value_or(false);
}

}  // namespace pmirror::sim
