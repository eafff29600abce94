// SPDX-License-Identifier: BSD-3-Clause
// Keeps signal handlers out of the places where a lock is held, and lets them in where a thread waits,
// because a handler may call fsync while the thread it interrupted is inside one of ours (trap 15).
//
// Blocked are all signals but the synchronous faults (SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGTRAP, SIGSYS),
// which a thread raises itself, and the two that glibc keeps for itself (cancellation, setuid). Straight
// system calls: a program's sigprocmask may be interposed. One thread's state; nests; async-signal-safe.
#pragma once

#include <cstdint>

namespace pmirror {

using KernelSignalMask = uint64_t;  // what the kernel takes: bit n-1 is signal n

// Blocks for a scope. Only the outermost one of a thread costs system calls.
class SignalBlock {
 public:
  SignalBlock();
  ~SignalBlock();
  SignalBlock(const SignalBlock&) = delete;
  SignalBlock& operator=(const SignalBlock&) = delete;

 private:
  bool outermost_;
};

// The opposite, for a scope in which the thread waits: handlers run, and find no SignalBlock around them.
// Requires: a SignalBlock around it; no lock is held.
class SignalWindow {
 public:
  enum Opening {
    kNow,       // the mask is changed here
    kInKernel,  // a system call inside the window takes mask() for its duration (ppoll)
  };
  explicit SignalWindow(Opening opening);
  ~SignalWindow();
  SignalWindow(const SignalWindow&) = delete;
  SignalWindow& operator=(const SignalWindow&) = delete;

  // The mask that the thread had before the SignalBlock.
  const KernelSignalMask& mask() const { return mask_; }

 private:
  const Opening opening_;
  const KernelSignalMask mask_;
  const uint32_t depth_;
};

// False: the signal would wait now if it came, or nobody here knows (no SignalBlock is around). Costs no system call.
bool IsDeliverable(int signal);

// Something that differs between any two threads alive in this process, and is the same in a thread and in
// the handlers that interrupt it. Cheaper than gettid and true after fork.
const void* ThisThread();

}  // namespace pmirror
