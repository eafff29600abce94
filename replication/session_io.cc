// SPDX-License-Identifier: BSD-3-Clause
// How threads wait, read and push bytes inside a session: the roles of data_session_impl.h.
#include <algorithm>

#include "replication/data_session_impl.h"
#include "replication/signal_guard.h"

namespace pmirror {
namespace {

constexpr int kPumpSpins = 500;        // some microseconds: as long as a small frame takes
constexpr int kRelaxBetweenReads = 8;  // leave the socket's lock to the packet that is to arrive

Deadline SliceOf(Deadline deadline) {
  return Deadline::After(std::min<Deadline::Duration>(deadline.Remaining(), kWaitSlice));
}

}  // namespace

void DataSession::Impl::Wait(FutexLock& lock, Waiter& self, bool for_room, Deadline deadline) {
  Readiness wanted;
  if (sender.connected()) {
    wanted.readable = TakeReaderRole(self);
    wanted.writable = for_room && outgoing != nullptr && !pumping;
  }
  if (!wanted.readable && !wanted.writable) {
    SleepUntilWoken(lock, self, deadline);
    return;
  }
  if (wanted.readable && !wanted.writable && SpinForReply(lock, deadline)) {
    return;
  }
  Poll(lock, self, wanted, deadline);
}

bool DataSession::Impl::TakeReaderRole(Waiter& self) {
  if (reader == &self) {
    return !receiving;
  }
  const bool abandoned = reader != nullptr && reader_polls && (reader->thread == self.thread || self.stalled);
  if (receiving || (reader != nullptr && !abandoned)) {
    return false;
  }
  reader = &self;
  reader_polls = false;
  self.stalled = false;
  return true;
}

void DataSession::Impl::SleepUntilWoken(FutexLock& lock, Waiter& self, Deadline deadline) {
  const uint64_t before = receptions;
  self.PrepareToSleep();
  lock.Unlock();
  self.Sleep(SliceOf(deadline));
  lock.Lock();
  self.stalled = !self.woken() && receptions == before;
  self.Wake();  // nobody needs to wake it any more
}

void DataSession::Impl::Poll(FutexLock& lock, Waiter& self, Readiness wanted, Deadline deadline) {
  const uint64_t incarnation = sender.incarnation();
  if (wanted.readable) {
    reader_polls = true;
  }
  lock.Unlock();
  Readiness ready;
  {
    const SignalWindow window(SignalWindow::kInKernel);
    ready = transport->Wait(wanted, SliceOf(deadline), window.mask());
  }
  lock.Lock();
  const bool still_reader = wanted.readable && reader == &self;
  if (still_reader) {
    reader_polls = false;
  }
  if (!sender.connected() || sender.incarnation() != incarnation) {
    return;
  }
  if (ready.readable && still_reader && !receiving) {
    Receive(lock);
  }
  if (ready.writable && wanted.writable && sender.connected() && outgoing != nullptr && !pumping) {
    Pump(lock);
  }
}

// Only a thread that waits alone spins: others would rather have the CPU.
bool DataSession::Impl::SpinForReply(FutexLock& lock, Deadline deadline) {
  const SpinBudget::Duration budget = waiters.HasOneOnly() ? spin.Next() : SpinBudget::Duration::zero();
  if (budget == SpinBudget::Duration::zero()) {
    return false;
  }
  receiving = true;
  lock.Unlock();
  const Deadline::Duration end = std::min(Deadline::Now() + budget, deadline.at());
  IoResult result;
  do {
    result = transport->Receive(replies.Room());
    for (int i = 0; i < kRelaxBetweenReads && result.error == EAGAIN; ++i) {
      CpuRelax();
    }
  } while (result.error == EAGAIN && Deadline::Now() < end);
  lock.Lock();
  const bool hit = result.error != EAGAIN;
  spin.Spun(hit);
  ++(hit ? counters.spins_hit : counters.spins_missed);
  Received(result);
  return hit;
}

void DataSession::Impl::Receive(FutexLock& lock) {
  receiving = true;
  lock.Unlock();
  const IoResult result = transport->Receive(replies.Room());
  lock.Lock();
  Received(result);
}

void DataSession::Impl::Received(IoResult result) {
  receiving = false;
  if (!sender.connected()) {
    WakeAll();  // somebody may wait for the transport to be idle
    return;
  }
  if (result.error == EAGAIN) {
    return;
  }
  if (result.error != 0) {
    MarkLost();
    return;
  }
  ++receptions;
  replies.Filled(result.bytes);
  if (!TakeReplies()) {
    ++counters.protocol_faults;
    MarkLost();
    return;
  }
  WakeSatisfied();
}

bool DataSession::Impl::TakeReplies() {
  while (true) {
    const ReplyReader::Next next = replies.Take();
    Sender::ReplyFault fault = Sender::ReplyFault::kNone;
    switch (next) {
      case ReplyReader::Next::kNone:
        return true;
      case ReplyReader::Next::kFault:
      case ReplyReader::Next::kHelloAck:  // the connector has read the only one
        return false;
      case ReplyReader::Next::kOther:
        break;
      case ReplyReader::Next::kAck:
        fault = sender.OnAck(SessionId{replies.header().session}, replies.ack());
        break;
      case ReplyReader::Next::kRefusal:
        ++counters.refusals;
        fault = sender.OnRefusal(SessionId{replies.header().session}, replies.refusal());
        break;
      case ReplyReader::Next::kVerified:
        fault = sender.OnAnswer(SessionId{replies.header().session}, replies.verified());
        break;
      case ReplyReader::Next::kConfirmed:
        fault = sender.OnAnswer(SessionId{replies.header().session}, replies.confirmed());
        break;
    }
    if (fault != Sender::ReplyFault::kNone) {
      return false;
    }
  }
}

void DataSession::Impl::WakeSatisfied() {
  waiters.WakeIf([this](const Waiter& waiter) {
    switch (waiter.what) {
      case Waiter::For::kReply:
        return sender.Outcome(*waiter.receipt, waiter.level, waiter.capture).has_value();
      case Waiter::For::kRoom:
        return true;
      case Waiter::For::kConnection:
        return false;
    }
    return true;
  });
}

void DataSession::Impl::Pump(FutexLock& lock) {
  OutgoingFrame& frame = *outgoing;
  pumping = true;
  lock.Unlock();
  const IoResult result = transport->Send(frame.parts, frame.sent);
  lock.Lock();
  pumping = false;
  frame.sent += result.bytes;
  if (frame.sent == frame.total) {
    frame.state = OutgoingFrame::State::kSent;
    outgoing = nullptr;
    WakeForRoom();
  }
  const bool ended = result.error != 0 && result.error != EAGAIN;
  if (ended || !sender.connected()) {
    MarkLost();  // also when it was lost meanwhile: to see to the frame
  }
}

void DataSession::Impl::SpinWhilePumping(FutexLock& lock) {
  if (!pumping || !many_cpus) {
    return;
  }
  lock.Unlock();
  for (int i = 0; i < kPumpSpins && pumping.load(std::memory_order_relaxed); ++i) {
    CpuRelax();
  }
  lock.Lock();
}

void DataSession::Impl::MarkLost() {
  if (sender.connected()) {
    sender.Lost();
    transport->Shutdown();
  }
  if (outgoing != nullptr && !pumping) {
    outgoing->state = OutgoingFrame::State::kLost;
    outgoing = nullptr;
  }
  reader = nullptr;
  reader_polls = false;
  WakeAll();
}

void DataSession::Impl::StopWaiting(Waiter& self) {
  waiters.Remove(self);
  if (reader == &self) {
    reader = nullptr;
    reader_polls = false;
    waiters.WakeOneReader();
  }
}

void DataSession::Impl::WakeAll() {
  waiters.WakeIf([](const Waiter&) { return true; });
}

void DataSession::Impl::WakeForRoom() {
  waiters.WakeIf([](const Waiter& waiter) { return waiter.what == Waiter::For::kRoom; });
}

}  // namespace pmirror
