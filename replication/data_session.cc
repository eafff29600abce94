// SPDX-License-Identifier: BSD-3-Clause
// The calls of DataSession. data_session_impl.h has the theory.
#include "replication/data_session.h"

#include <algorithm>
#include <new>

#include "replication/crc32c.h"
#include "replication/data_session_impl.h"
#include "replication/signal_guard.h"
#include "replication/tcp_transport.h"

namespace pmirror {
namespace {

size_t BytesOf(const FrameToSend& frame) {
  return sizeof(FrameHeader) + frame.ranges.size_bytes() + frame.payload.size();
}

iovec PartOf(std::span<const std::byte> bytes) {
  return {.iov_base = const_cast<std::byte*>(bytes.data()), .iov_len = bytes.size()};
}

uint32_t PayloadCrc(const FrameToSend& frame) {
  return frame.payload_crc.has_value() ? *frame.payload_crc : Crc32c(0, frame.payload);
}

FrameHeader HeaderOf(const FrameToSend& frame) {
  FrameHeader header{};
  header.magic = kFrameMagic;
  header.version = kFrameVersion;
  header.kind = static_cast<uint8_t>(frame.kind);
  header.flags = frame.flags;
  header.epoch = Raw(frame.epoch);
  header.set_version = Raw(frame.set_version);
  header.file = Raw(frame.file);
  header.order = frame.order;
  header.size_generation = frame.size_generation;
  header.range_count = static_cast<uint32_t>(frame.ranges.size());
  header.payload_length = static_cast<uint32_t>(frame.payload.size());
  header.payload_crc = frame.payload.empty() ? 0 : PayloadCrc(frame);
  return header;
}

}  // namespace

DataSession::Impl::Impl(Connector& the_connector, std::unique_ptr<Transport> the_transport)
    : connector(the_connector),
      transport(std::move(the_transport)),
      many_cpus(UsableCpus() > 1),
      spin(UsableCpus()) {}

DataSession::Impl::~Impl() { transport->Shutdown(); }

DataSession::DataSession(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
DataSession::~DataSession() = default;

Result<std::unique_ptr<DataSession>> DataSession::Create(Connector& connector) {
  return Create(connector, std::unique_ptr<Transport>(new (std::nothrow) TcpTransport));
}

Result<std::unique_ptr<DataSession>> DataSession::Create(Connector& connector,
                                                         std::unique_ptr<Transport> transport) {
  if (transport == nullptr) {
    return Error{ENOMEM, "allocate the transport of a session"};
  }
  std::unique_ptr<Impl> impl(new (std::nothrow) Impl(connector, std::move(transport)));
  if (impl == nullptr) {
    return Error{ENOMEM, "allocate a session"};
  }
  std::unique_ptr<DataSession> session(new (std::nothrow) DataSession(std::move(impl)));
  if (session == nullptr) {
    return Error{ENOMEM, "allocate a session"};
  }
  return session;
}

Error DataSession::EnsureConnected(Deadline deadline) {
  const SignalBlock block;
  Impl& impl = *impl_;
  FutexLock lock(impl.mutex);
  Waiter self(Waiter::For::kConnection);
  const Impl::Waiting waiting(impl, self);
  const uint64_t seen_attempts = impl.connect_attempts;
  while (!impl.sender.connected()) {
    if (!impl.connecting || impl.connecting_thread == self.thread) {
      return impl.Connect(lock, deadline);
    }
    if (deadline.Expired()) {
      return {ETIMEDOUT, "wait for another thread to connect to the replica"};
    }
    impl.Wait(lock, self, false, deadline);
    if (impl.connect_attempts != seen_attempts && !impl.sender.connected() && !impl.connect_error.ok()) {
      return impl.connect_error;
    }
  }
  return Error::Ok();
}

Error DataSession::Impl::Connect(FutexLock& lock, Deadline deadline) {
  const bool interrupted_own = connecting;  // by a signal handler of the thread that is connecting
  connecting = true;
  connecting_thread = ThisThread();
  const SessionId session = sender.session();
  const Sequence next = sender.next_sequence();
  const uint64_t incarnation = sender.incarnation();
  lock.Unlock();
  auto made = [&] {
    const SignalWindow window(SignalWindow::kNow);
    return connector.Connect(session, next, deadline);
  }();
  lock.Lock();
  if (sender.incarnation() != incarnation) {  // a handler that interrupted this was faster
    connecting = interrupted_own;
    return sender.connected() ? Error::Ok() : Error{EAGAIN, "connect to the replica: cut at once"};
  }
  Error error = made.ok() ? Error::Ok() : made.error();
  while (error.ok() && !TransportIdle()) {  // those of the old connection leave at once
    lock.Unlock();
    CpuRelax();
    lock.Lock();
  }
  if (error.ok()) {
    error = transport->Attach(std::move(made.value().socket));
  }
  if (error.ok()) {
    replies.Reset();
    error = sender.Connected(made.value().session, made.value().resumed);
    abilities = made.value().abilities;
    if (!error.ok()) {
      transport->Shutdown();
    } else if (sender.incarnation() > 1) {
      ++counters.reconnects;
      ++stalls;
    }
  }
  connecting = interrupted_own;
  ++connect_attempts;
  connect_error = error;
  WakeAll();
  return error;
}

void DataSession::Begin(CaptureInFlight& capture) {
  const SignalBlock block;
  const FutexLock lock(impl_->mutex);
  impl_->sender.Begin(capture);
}

void DataSession::End(CaptureInFlight& capture) {
  const SignalBlock block;
  const FutexLock lock(impl_->mutex);
  impl_->sender.End(capture);
}

size_t DataSession::FrameBudget() const {
  const SignalBlock block;
  const FutexLock lock(impl_->mutex);
  return std::clamp<size_t>(impl_->sender.window() / 2, kMinFrameBudget, kMaxFrame);
}

SendStatus DataSession::Send(const FrameToSend& frame, Deadline deadline, Receipt& receipt) {
  const SignalBlock block;
  Impl& impl = *impl_;
  const size_t bytes = BytesOf(frame);
  OutgoingFrame mine;
  mine.header = HeaderOf(frame);
  mine.parts = {PartOf(std::as_bytes(std::span(&mine.header, 1))), PartOf(std::as_bytes(frame.ranges)),
                PartOf(frame.payload)};
  mine.total = bytes;
  FutexLock lock(impl.mutex);
  Waiter self(Waiter::For::kRoom);
  const Impl::Waiting waiting(impl, self);
  bool counted = false;
  while (true) {
    impl.SpinWhilePumping(lock);
    if (frame.capture != nullptr && frame.capture->status != SendStatus::kOk) {
      return frame.capture->status;
    }
    SendStatus stalled = SendStatus::kSenderFull;
    switch (impl.sender.Admit(bytes)) {
      case Sender::Admission::kNotConnected:
        return SendStatus::kLost;
      case Sender::Admission::kTooLarge:
        return SendStatus::kRecapture;
      case Sender::Admission::kNoCredit:
        stalled = SendStatus::kPeerCongested;
        break;
      case Sender::Admission::kAdmitted:
        if (impl.outgoing == nullptr) {
          return impl.Write(lock, self, mine, frame, deadline, receipt);
        }
        break;
    }
    if (!counted && !impl.pumping) {
      counted = true;
      ++impl.stalls;
      ++(stalled == SendStatus::kSenderFull ? impl.counters.sender_full : impl.counters.peer_congested);
    }
    if (deadline.Expired()) {
      return stalled;
    }
    impl.Wait(lock, self, true, deadline);
  }
}

SendStatus DataSession::Impl::Write(FutexLock& lock, Waiter& self, OutgoingFrame& mine,
                                    const FrameToSend& frame, Deadline deadline, Receipt& receipt) {
  const Receipt taken = sender.Commit(mine.total);
  if (frame.capture != nullptr) {
    frame.capture->latest = taken.sequence;
  }
  mine.header.session = Raw(sender.session());
  mine.header.sequence = taken.sequence;
  mine.header.durable_sequence = sender.durable();
  mine.header.header_crc = HeaderCrc(mine.header, frame.ranges, {});
  outgoing = &mine;
  Pump(lock);
  if (mine.state == OutgoingFrame::State::kWriting) {
    ++stalls;
    ++counters.sender_full;
  }
  while (mine.state == OutgoingFrame::State::kWriting) {
    if (deadline.Expired() && !pumping) {
      return GiveUp(mine, taken);
    }
    Wait(lock, self, true, deadline);
  }
  if (mine.state == OutgoingFrame::State::kLost) {
    return SendStatus::kLost;
  }
  ++counters.frames;
  counters.bytes += mine.total;
  receipt = taken;
  return SendStatus::kOk;
}

SendStatus DataSession::Impl::GiveUp(const OutgoingFrame& mine, const Receipt& taken) {
  if (mine.sent > 0) {
    MarkLost();  // the rest would have to follow, and the memory that it is in is the caller's again
    return SendStatus::kLost;
  }
  sender.Withdraw(taken, mine.total);
  outgoing = nullptr;
  WakeForRoom();
  return SendStatus::kSenderFull;
}

SendStatus DataSession::Await(const Receipt& receipt, WaitLevel level, const CaptureInFlight* capture,
                              Deadline deadline) {
  const SignalBlock block;
  Impl& impl = *impl_;
  FutexLock lock(impl.mutex);
  std::optional<SendStatus> outcome = impl.sender.Outcome(receipt, level, capture);
  if (outcome.has_value()) {
    return *outcome;
  }
  const Deadline::Duration begun = Deadline::Now();
  Waiter self(Waiter::For::kReply);
  self.receipt = &receipt;
  self.level = level;
  self.capture = capture;
  const Impl::Waiting waiting(impl, self);
  while (true) {
    impl.Wait(lock, self, false, deadline);
    outcome = impl.sender.Outcome(receipt, level, capture);
    if (outcome.has_value()) {
      impl.spin.Waited(Deadline::Now() - begun);
      return *outcome;
    }
    if (deadline.Expired()) {
      return SendStatus::kTimedOut;
    }
  }
}

Sequence DataSession::Received() const {
  const SignalBlock block;
  const FutexLock lock(impl_->mutex);
  return impl_->sender.received();
}

uint64_t DataSession::Incarnation() const {
  const SignalBlock block;
  const FutexLock lock(impl_->mutex);
  return impl_->sender.incarnation();
}

uint64_t DataSession::Abilities() const {
  const SignalBlock block;
  const FutexLock lock(impl_->mutex);
  return impl_->abilities;
}

uint64_t DataSession::OperationDurable() const {
  const SignalBlock block;
  const FutexLock lock(impl_->mutex);
  return impl_->sender.operation_durable();
}

SessionCounters DataSession::counters() const {
  const SignalBlock block;
  const FutexLock lock(impl_->mutex);
  return impl_->counters;
}

uint64_t DataSession::Stalls() const { return impl_->stalls.load(std::memory_order_relaxed); }

bool DataSession::connected() const {
  const SignalBlock block;
  const FutexLock lock(impl_->mutex);
  return impl_->sender.connected();
}

Placement DataSession::placement() const { return impl_->transport->placement(); }

void DataSession::Disconnect(bool silently) {
  const SignalBlock block;
  Impl& impl = *impl_;
  if (!silently) {
    const FutexLock lock(impl.mutex);
    impl.MarkLost();
    return;
  }
  // The child of a fork: the other threads do not exist, and what they held they hold no more.
  impl.mutex.ResetAfterFork();
  const FutexLock lock(impl.mutex);
  Forget();
}

void DataSession::Renew() {
  const SignalBlock block;
  const FutexLock lock(impl_->mutex);
  Forget();
}

// Requires: the lock is held, and nobody else is at work here.
void DataSession::Forget() {
  Impl& impl = *impl_;
  impl.waiters.RemoveAll();
  impl.reader = nullptr;
  impl.reader_polls = impl.receiving = impl.connecting = false;
  impl.pumping = false;
  if (impl.outgoing != nullptr) {
    impl.outgoing->state = OutgoingFrame::State::kLost;
    impl.outgoing = nullptr;
  }
  impl.sender.Forget();
  impl.replies.Reset();
  impl.transport->Abandon();
}

}  // namespace pmirror
