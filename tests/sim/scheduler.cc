// SPDX-License-Identifier: BSD-3-Clause
// See scheduler.h.
#include "tests/sim/scheduler.h"

namespace pmirror::sim {

Pause::~Pause() {
  if (slot_ != 0) {
    scheduler_.Cancel(slot_);
  }
}

void Pause::await_suspend(std::coroutine_handle<> handle) {
  handle_ = handle;
  slot_ = scheduler_.Schedule(until_, handle, {});
}

void Signal::Notify() {
  for (Waiting* waiting : waiting_) {
    if (waiting->slot_ != 0) {
      scheduler_.Cancel(waiting->slot_);
    }
    waiting->slot_ =
        scheduler_.Schedule(scheduler_.now_ + 1 + scheduler_.rng_.Below(15), waiting->handle_, {});
    waiting->linked_ = false;
  }
  waiting_.clear();
}

uint64_t Scheduler::Schedule(Time when, std::coroutine_handle<> handle, std::function<void()> call) {
  uint32_t index = 0;
  if (free_.empty()) {
    index = static_cast<uint32_t>(slots_.size());
    slots_.emplace_back();
  } else {
    index = free_.back();
    free_.pop_back();
  }
  Slot& slot = slots_[index];
  slot.taken = true;
  slot.handle = handle;
  slot.call = std::move(call);
  ++slot.use;
  queue_.push({when, static_cast<uint32_t>(rng_.Next()), index, slot.use});
  return (uint64_t{slot.use} << 32 | index) + 1;
}

void Scheduler::Cancel(uint64_t ticket) {
  const auto index = static_cast<uint32_t>((ticket - 1) & UINT32_MAX);
  Slot& slot = slots_[index];
  if (slot.taken && slot.use == static_cast<uint32_t>((ticket - 1) >> 32)) {
    slot.taken = false;
    slot.call = {};
    free_.push_back(index);
  }
}

bool Scheduler::RunOne() {
  while (!queue_.empty()) {
    const Entry entry = queue_.top();
    queue_.pop();
    Slot& slot = slots_[entry.index];
    if (!slot.taken || slot.use != entry.use) {
      continue;
    }
    now_ = entry.when > now_ ? entry.when : now_;
    ++events_;
    slot.taken = false;
    free_.push_back(entry.index);
    const std::coroutine_handle<> handle = slot.handle;
    const std::function<void()> call = std::move(slot.call);
    slot.call = {};
    if (handle) {
      handle.resume();
    } else {
      call();
    }
    return true;
  }
  return false;
}

}  // namespace pmirror::sim
