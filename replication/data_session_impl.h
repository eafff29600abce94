// SPDX-License-Identifier: BSD-3-Clause
// The inside of DataSession: one short lock, and four roles that threads take in turns under it. For
// data_session.cc and session_io.cc only.
//
// The lock (`mutex`) is never held across a system call that can block, and every holder has signals blocked,
// so that a handler never finds it taken by its own thread. What takes time is a *role*, marked under the
// lock and carried out without it:
//
//   reader     reads replies for all. Taken by a waiter for as long as it waits. In its poll (`reader_polls`)
//   it is
//              interruptible and touches nothing of the session: then another frame of the same thread (a
//              handler) takes the role over at once, and another thread after a slice without progress (the
//              handler may be blocked, or have jumped out of the wait).
//   receiving  somebody is inside Transport::Receive: a few microseconds, signals blocked.
//   outgoing   a frame that has its sequence and is not wholly sent; later frames wait for it. Whoever wants
//   to send helps
//              to push it on, which is what makes a handler that interrupted a half-sent frame able to send.
//   pumping    somebody is inside Transport::Send for `outgoing`: nonblocking, signals blocked.
//   connecting one thread is in the Connector; a handler that interrupts it may enter as well, and the first
//   to come
//              back with a connection wins.
//
// The connection is replaced only while nobody is receiving or pumping. Each wait ends after kWaitSlice at
// the latest and looks again, so that no correctness hangs on one wake-up.
#pragma once

#include <sys/uio.h>

#include <array>
#include <atomic>
#include <chrono>
#include <memory>

#include "replication/data_session.h"
#include "replication/futex_mutex.h"
#include "replication/reply_reader.h"
#include "replication/sender.h"
#include "replication/spin_budget.h"
#include "replication/waiter_list.h"

namespace pmirror {

constexpr std::chrono::milliseconds kWaitSlice{20};

// A frame on its way into the transport. On the stack of the sending thread, which stays until it is sent or
// lost.
struct OutgoingFrame {
  enum class State : uint8_t { kWriting, kSent, kLost };
  FrameHeader header;
  std::array<iovec, 3> parts;  // header, ranges, payload
  size_t total = 0;            // bytes
  size_t sent = 0;
  State state = State::kWriting;
};

struct DataSession::Impl {
  Impl(Connector& the_connector, std::unique_ptr<Transport> the_transport);
  ~Impl();

  Connector& connector;
  const std::unique_ptr<Transport> transport;
  const bool many_cpus;
  FutexMutex mutex;

  // Guarded by `mutex`.
  Sender sender;
  SessionCounters counters;
  uint64_t abilities = 0;           // of the replica
  std::atomic<uint64_t> stalls{0};  // also read without the lock
  WaiterList waiters;
  SpinBudget spin;
  Waiter* reader = nullptr;
  bool reader_polls = false;
  bool receiving = false;
  std::atomic<bool> pumping{false};  // also peeked at without the lock
  OutgoingFrame* outgoing = nullptr;
  uint64_t receptions = 0;  // times that something came: what "progress" is
  bool connecting = false;
  const void* connecting_thread = nullptr;
  uint64_t connect_attempts = 0;  // finished ones
  Error connect_error;            // of the latest

  ReplyReader replies;  // guarded by the role `receiving`, and by `mutex` when nobody has it

  // A waiter's membership in the list. Declared after the lock: the lock is held when it ends.
  class Waiting {
   public:
    Waiting(Impl& impl, Waiter& waiter) : impl_(impl), waiter_(waiter) { impl_.waiters.Add(waiter_); }
    ~Waiting() { impl_.StopWaiting(waiter_); }
    Waiting(const Waiting&) = delete;
    Waiting& operator=(const Waiting&) = delete;

   private:
    Impl& impl_;
    Waiter& waiter_;
  };

  // session_io.cc: all require the lock; those that take it give it up meanwhile and hold it again on return.

  // One step of waiting: returns when something may have changed. `for_room`: push a half-sent frame on, too.
  void Wait(FutexLock& lock, Waiter& self, bool for_room, Deadline deadline);
  // Sends of `outgoing` what the transport takes now. Requires: outgoing is set, nobody is pumping.
  void Pump(FutexLock& lock);
  // While somebody else pumps, which is short.
  void SpinWhilePumping(FutexLock& lock);
  void MarkLost();
  void StopWaiting(Waiter& self);
  void WakeAll();
  void WakeForRoom();
  bool TransportIdle() const { return !receiving && !pumping; }

  // data_session.cc
  Error Connect(FutexLock& lock, Deadline deadline);
  SendStatus Write(FutexLock& lock, Waiter& self, OutgoingFrame& mine, const FrameToSend& frame,
                   Deadline deadline, Receipt& receipt);
  SendStatus GiveUp(const OutgoingFrame& mine, const Receipt& taken);

 private:
  bool TakeReaderRole(Waiter& self);
  void SleepUntilWoken(FutexLock& lock, Waiter& self, Deadline deadline);
  void Poll(FutexLock& lock, Waiter& self, Readiness wanted, Deadline deadline);
  bool SpinForReply(FutexLock& lock, Deadline deadline);
  void Receive(FutexLock& lock);
  void Received(IoResult result);
  bool TakeReplies();
  void WakeSatisfied();
};

}  // namespace pmirror
