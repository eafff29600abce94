// SPDX-License-Identifier: BSD-3-Clause
// A sync that is entered again or left early: by signal handlers that sync themselves, by thread
// cancellation, by fork.
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <thread>

#include "tests/unit/replication/replication_rig.h"
#include "tests/unit/replication/run_threads.h"

namespace pmirror {
namespace {

using Answer = FakeReplica::Answer;
using Frame = FakeReplica::Frame;
using Reaction = FakeReplica::Reaction;

constexpr FileId kFile = ReplicationRig::kFile;
constexpr uint64_t kHandlersPart = 32 * 1024;  // offset that only handlers sync

// What the handler works on: signal handlers take no arguments.
ReplicationRig* g_rig = nullptr;
std::atomic<int> g_synced{0};
std::atomic<int> g_failed{0};

void SyncInHandler(int) {
  const Extent extent{kHandlersPart, 64};
  const Error error = g_rig->replication->Replicate(g_rig->target(), {&extent, 1}, g_rig->source,
                                                    WaitLevel::kDurable, nullptr);
  ++(error.ok() ? g_synced : g_failed);
}

// Handlers for SIGALRM, and a timer that raises it all the time.
class Storm {
 public:
  Storm(ReplicationRig& rig, int microseconds) {
    g_rig = &rig;
    g_synced = g_failed = 0;
    struct sigaction action {};
    action.sa_handler = SyncInHandler;
    action.sa_flags = SA_RESTART;
    ::sigaction(SIGALRM, &action, &old_);
    Arm(microseconds);
  }
  ~Storm() {
    Arm(0);
    ::sigaction(SIGALRM, &old_, nullptr);
  }

 private:
  static void Arm(int microseconds) {
    const itimerval timer{.it_interval = {0, microseconds}, .it_value = {0, microseconds}};
    ::setitimer(ITIMER_REAL, &timer, nullptr);
  }
  struct sigaction old_ {};
};

class Reentry : public testing::Test {
 protected:
  void SetUp() override {
    if (PMIRROR_TEST_TSAN) {
      GTEST_SKIP() << "the thread sanitizer runs handlers later, where the kernel would have kept them out";
    }
  }
};

TEST_F(Reentry, Trap15_HandlersThatSyncInterruptSmallSyncsAndAllSucceed) {
  ReplicationRig rig(1);
  rig.Fill(1);
  const Storm storm(rig, 150);
  for (int i = 0; i < 20'000 || g_synced < 100; ++i) {
    ASSERT_TRUE(rig.Replicate({{0, 64}}).ok());
  }
  EXPECT_EQ(g_failed, 0);
}

TEST_F(Reentry, Trap15_HandlersThatSyncInterruptHalfSentFramesAndAllSucceed) {
  ReplicationRig rig(1, 1 << 20);
  rig.source.memory.resize(8 << 20);
  rig.replicas[0]->SetWindow(4 << 20);
  const Storm storm(rig, 300);
  for (int i = 0; i < 20 || g_synced < 50; ++i) {
    rig.Fill(static_cast<uint8_t>(i));
    ASSERT_TRUE(rig.Replicate({{0, 8 << 20}}).ok());
  }
  EXPECT_EQ(g_failed, 0);
  rig.ExpectNoFaults();
}

TEST_F(Reentry, Trap15_HandlersThatSyncInterruptReconnectsAndAllSucceed) {
  ReplicationRig rig(1);
  int frames = 0;
  rig.replicas[0]->SetScript([&](const Frame&) {
    return Answer{.reaction = ++frames % 20 == 0 ? Reaction::kCut : Reaction::kApply};
  });
  const Storm storm(rig, 300);
  for (int i = 0; i < 1000 || g_synced < 20; ++i) {
    ASSERT_TRUE(rig.Replicate({{0, 64}}).ok());
  }
  EXPECT_EQ(g_failed, 0);
}

// Interrupts its own first call with a signal.
class InterruptedConnector : public Connector {
 public:
  explicit InterruptedConnector(Connector& real) : real_(real) {}
  Result<Connection> Connect(SessionId session, Sequence next_sequence, Deadline deadline) override {
    if (calls++ == 0) {
      ::raise(SIGALRM);
    }
    return real_.Connect(session, next_sequence, deadline);
  }
  int calls = 0;

 private:
  Connector& real_;
};

TEST_F(Reentry, Trap15_AHandlerThatInterruptsTheConnectorConnectsItself) {
  ReplicationRig rig(1);
  InterruptedConnector connector(*rig.replicas[0]);
  auto session = std::move(DataSession::Create(connector).value());
  rig.sessions[0] = session.get();
  const Storm handler_only(rig, 0);
  EXPECT_TRUE(rig.Replicate({{0, 64}}).ok());
  EXPECT_EQ(connector.calls, 2);
  EXPECT_EQ(g_synced, 1);
  EXPECT_EQ(g_failed, 0);
}

void MaskAlarm(int how) {
  sigset_t alarm;
  ::sigemptyset(&alarm);
  ::sigaddset(&alarm, SIGALRM);
  ::pthread_sigmask(how, &alarm, nullptr);
}

// Only the syncing threads get the signal, and only while they sync: a handler that waits here for the replica's thread must not have interrupted an
// allocator that this thread needs (the address sanitizer's has one lock for all).
TEST_F(Reentry, Trap15_HandlersOnManyThreadsAtOnce) {
  MaskAlarm(SIG_BLOCK);
  ReplicationRig rig(1);
  ASSERT_TRUE(rig.Replicate({{0, 64}}).ok());  // the replica's thread begins here, and inherits the mask
  {
    const Storm storm(rig, 200);
    RunThreads(6, [&](int thread) {
      const std::array<Extent, 1> range{{{static_cast<uint64_t>(thread) * 64, 64}}};
      MaskAlarm(SIG_UNBLOCK);
      bool good = true;
      for (int i = 0; i < 2000; ++i) {
        good =
            rig.replication->Replicate(rig.target(), range, rig.source, WaitLevel::kDurable, nullptr).ok() &&
            good;
      }
      MaskAlarm(SIG_BLOCK);
      EXPECT_TRUE(good);
    });
  }
  const auto old = ::signal(SIGALRM, SIG_IGN);  // one that is pending here goes
  MaskAlarm(SIG_UNBLOCK);
  ::signal(SIGALRM, old);
  EXPECT_EQ(g_failed, 0);
}

// The thread that reads for all is caught in a handler that waits for another thread's sync.
TEST_F(Reentry, AReaderHeldUpByItsHandlerDoesNotHoldUpTheOthers) {
  static std::atomic<bool> other_done{false};
  static std::atomic<bool> in_handler{false};
  other_done = in_handler = false;
  struct sigaction action {};
  action.sa_handler = [](int) {
    in_handler = true;
    in_handler.notify_all();
    while (!other_done) {
      ::sched_yield();
    }
  };
  struct sigaction old {};
  ::sigaction(SIGUSR1, &action, &old);
  ReplicationRig rig(1);
  rig.replicas[0]->SetScript([](const Frame& frame) {
    return Answer{.reaction = frame.header.order == 1 ? Reaction::kNoAnswer : Reaction::kApply};
  });
  std::thread reader([&] { EXPECT_TRUE(rig.Replicate({{0, 64}}).ok()); });
  ASSERT_TRUE(rig.replicas[0]->WaitFor(
      [](const FakeReplica& replica) { return replica.frames(FrameKind::kDataImage) == 1; }));
  ::pthread_kill(reader.native_handle(), SIGUSR1);
  in_handler.wait(false);
  EXPECT_TRUE(rig.Replicate({{64, 64}}).ok());
  other_done = true;
  reader.join();
  ::sigaction(SIGUSR1, &old, nullptr);
}

void* SyncUntilCancelled(void* argument) {
  auto& rig = *static_cast<ReplicationRig*>(argument);
  int type = 0;
  ::pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, &type);
  EXPECT_TRUE(rig.Replicate({{0, 8 << 20}}).ok());
  // Not reached: cancellation takes effect when the call gives it back.
  return rig.replicas.data();
}

TEST(Cancellation, Trap15_CancelledInTheMiddleOfASendTheSyncIsCompletedAndTheSessionStaysWhole) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "the address sanitizer takes the frames that cancellation unwinds for still in use";
#endif
  ReplicationRig rig(1, 1 << 20);
  rig.source.memory.resize(8 << 20);
  rig.Fill(5);
  rig.replicas[0]->SetWindow(16 << 20);
  rig.replicas[0]->Pause(true);
  pthread_t thread{};
  ASSERT_EQ(::pthread_create(&thread, nullptr, SyncUntilCancelled, &rig), 0);
  while (rig.sessions[0]->counters().sender_full == 0) {
    ::sched_yield();
  }
  ASSERT_EQ(::pthread_cancel(thread), 0);
  rig.replicas[0]->Pause(false);
  void* result = nullptr;
  ASSERT_EQ(::pthread_join(thread, &result), 0);
  EXPECT_EQ(result, PTHREAD_CANCELED);
  EXPECT_EQ(rig.replicas[0]->Image(kFile), std::vector<std::byte>(8 << 20, std::byte{5}));
  EXPECT_TRUE(rig.Replicate({{0, 64}}).ok());
  EXPECT_EQ(rig.sessions[0]->counters().reconnects, 0U);
  rig.ExpectNoFaults();
}

TEST_F(Reentry, Trap6_AForkedChildLetsGoWithoutTouchingTheParentsConnection) {
  ReplicationRig rig(1);
  rig.replicas[0]->SetScript([](const Frame& frame) {
    return Answer{.reaction = frame.header.order == 1 ? Reaction::kNoAnswer : Reaction::kApply};
  });
  std::thread waiting([&] { EXPECT_TRUE(rig.Replicate({{0, 64}}).ok()); });
  ASSERT_TRUE(rig.replicas[0]->WaitFor(
      [](const FakeReplica& replica) { return replica.frames(FrameKind::kDataImage) == 1; }));
  const pid_t child = ::fork();
  if (child == 0) {
    DataSession& session = *rig.sessions[0];
    session.Disconnect(true);
    rig.pool->ResetAfterFork();
    FrameToSend frame;
    frame.kind = FrameKind::kHeartbeat;
    Receipt receipt;
    const bool lost =
        session.Send(frame, Deadline::After(std::chrono::seconds(10)), receipt) == SendStatus::kLost;
    ::_exit(lost && !session.connected() ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  EXPECT_TRUE(rig.Replicate({{64, 64}}).ok());
  waiting.join();
  EXPECT_EQ(rig.sessions[0]->counters().reconnects, 0U);
}

}  // namespace
}  // namespace pmirror
