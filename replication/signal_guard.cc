// SPDX-License-Identifier: BSD-3-Clause
// See signal_guard.h.
#include "replication/signal_guard.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cassert>
#include <csignal>

namespace pmirror {
namespace {

constexpr KernelSignalMask Bit(int signal) { return KernelSignalMask{1} << (signal - 1); }

constexpr int kGlibcCancel = 32;
constexpr int kGlibcSetId = 33;
constexpr KernelSignalMask kBlocked = ~(Bit(SIGBUS) | Bit(SIGSEGV) | Bit(SIGFPE) | Bit(SIGILL) |
                                        Bit(SIGTRAP) | Bit(SIGSYS) | Bit(kGlibcCancel) | Bit(kGlibcSetId));

// Plain data and initial-exec: no allocation at first use, no destructor, safe in a handler.
struct ThreadState {
  KernelSignalMask outer_mask;
  uint32_t depth;  // SignalBlocks around, not counting those outside an open window
};
constinit thread_local ThreadState thread_state __attribute__((tls_model("initial-exec"))) = {};

KernelSignalMask ChangeMask(int how, KernelSignalMask mask) {
  KernelSignalMask old = 0;
  ::syscall(SYS_rt_sigprocmask, how, &mask, &old, sizeof mask);
  return old;
}

}  // namespace

SignalBlock::SignalBlock() : outermost_(thread_state.depth == 0) {
  if (outermost_) {
    const KernelSignalMask old = ChangeMask(SIG_BLOCK, kBlocked);
    thread_state.outer_mask = old;
  }
  ++thread_state.depth;
}

SignalBlock::~SignalBlock() {
  --thread_state.depth;
  if (outermost_) {
    ChangeMask(SIG_SETMASK, thread_state.outer_mask);
  }
}

// The depth is zero before the first handler can run, and again what it was only after the last one has run.
SignalWindow::SignalWindow(Opening opening)
    : opening_(opening), mask_(thread_state.outer_mask), depth_(thread_state.depth) {
  assert(depth_ > 0);
  thread_state.depth = 0;
  if (opening_ == kNow) {
    ChangeMask(SIG_SETMASK, mask_);
  }
}

SignalWindow::~SignalWindow() {
  if (opening_ == kNow) {
    ChangeMask(SIG_BLOCK, kBlocked);
  }
  thread_state = {mask_, depth_};
}

bool IsDeliverable(int signal) {
  return thread_state.depth != 0 && ((thread_state.outer_mask | kBlocked) & Bit(signal)) == 0;
}

const void* ThisThread() { return &thread_state; }

}  // namespace pmirror
