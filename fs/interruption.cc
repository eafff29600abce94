// SPDX-License-Identifier: BSD-3-Clause
// The interruption state of the operation on this thread. See interruption.h.
#include "fs/interruption.h"

#include "fs/proc_status.h"

namespace pmirror::fs {
namespace {
thread_local ScopedInterruption* current = nullptr;
}  // namespace

ScopedInterruption::ScopedInterruption(pid_t tid, Signalled signalled, void* context)
    : tid_(tid), signalled_(signalled), context_(context), outer_(current) {
  current = this;
}

ScopedInterruption::~ScopedInterruption() { current = outer_; }

Interruption CurrentInterruption() {
  if (current == nullptr || !current->signalled_(current->context_)) {
    return Interruption::kNone;
  }
  return current->tid_ != 0 && IsDying(current->tid_) ? Interruption::kKill : Interruption::kSignal;
}

}  // namespace pmirror::fs
