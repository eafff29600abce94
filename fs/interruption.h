// SPDX-License-Identifier: BSD-3-Clause
// Whether the program whose operation this thread carries out still wants to wait for it.
//
// The kernel does not give up a request that the daemon has taken: a program that waits for a slow replica
// cannot even be killed until the daemon answers. So whoever waits long (Replicator) polls
// CurrentInterruption(), every 100 ms or so, and gives up with EINTR: always at kKill; at kSignal only where
// the owner chose an interruptible wait, because a program with timers or a garbage collector gets harmless
// signals all the time and does not expect EINTR from a file.
#pragma once

#include <sys/types.h>

namespace pmirror::fs {

enum class Interruption {
  kNone,
  kSignal,  // a signal is pending or being handled
  kKill,    // a fatal signal is pending: nobody will see the answer
};

// Of the operation that this thread carries out; kNone outside of one.
Interruption CurrentInterruption();

// Set by the FUSE adapter around each operation. `signalled(context)` is asked at each poll, on this thread.
class ScopedInterruption {
 public:
  using Signalled = bool (*)(void* context);
  ScopedInterruption(pid_t tid, Signalled signalled, void* context);
  ~ScopedInterruption();
  ScopedInterruption(const ScopedInterruption&) = delete;
  ScopedInterruption& operator=(const ScopedInterruption&) = delete;

 private:
  friend Interruption CurrentInterruption();
  const pid_t tid_;
  const Signalled signalled_;
  void* const context_;
  ScopedInterruption* const outer_;
};

}  // namespace pmirror::fs
