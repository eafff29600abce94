// SPDX-License-Identifier: BSD-3-Clause
#include "fs/volume_page_owner.h"

#include <linux/futex.h>
#include <sys/syscall.h>

#include <algorithm>
#include <climits>
#include <cstring>

#include "replication/futex_mutex.h"

namespace pmirror::fs {
namespace {

// Low half of a little-endian 64-bit word: what other processes sleep on.
void WakeAll(const std::atomic<uint64_t>& word) {
  ::syscall(SYS_futex, reinterpret_cast<const uint32_t*>(&word), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void WriteName(const std::string& name, char (&to)[kReplicaNameBytes]) {
  std::memcpy(to, name.data(), std::min(name.size(), kReplicaNameBytes - 1));
}

}  // namespace

absl::StatusOr<std::unique_ptr<VolumePageOwner>> VolumePageOwner::Create(const Settings& settings) {
  absl::StatusOr<SharedObject<VolumePage>> page =
      SharedObject<VolumePage>::Create("pmirror-volume", Receivers::kReadOnly);
  if (!page.ok()) {
    return page.status();
  }
  VolumePage& fields = **page;
  fields.magic = kVolumePageMagic;
  fields.version = 1;
  fields.epoch.store(Raw(settings.epoch));
  fields.on_loss = static_cast<uint32_t>(settings.on_loss);
  ConfigureReplicas(fields, settings.replica_count);
  fields.required.fetch_and(~uint32_t{settings.filling});
  fields.deadline_ns = settings.deadline_ns;
  fields.suspend_ns = settings.suspend_ns;
  fields.domain = static_cast<uint32_t>(settings.domain);
  fields.tracking = static_cast<uint32_t>(settings.tracking);
  fields.unproven.store(settings.unproven ? (1U << settings.replica_count) - 1 : 0);
  for (size_t i = 0; i < std::min(settings.replica_names.size(), kMaxReplicas); ++i) {
    WriteName(settings.replica_names[i], fields.replica_names[i]);
  }
  fields.state.store(static_cast<uint32_t>(VolumeState::kServing));
  return std::unique_ptr<VolumePageOwner>(new VolumePageOwner(*std::move(page)));
}

bool VolumePageOwner::SetState(VolumeState state) {
  const std::lock_guard lock(mutex_);
  const auto wanted = static_cast<uint32_t>(state);
  const uint32_t old = page_->state.load();
  if (old == static_cast<uint32_t>(VolumeState::kFenced) || old == wanted) {
    return false;
  }
  page_->state.store(wanted, std::memory_order_release);
  WakeAll(page_->set);  // who waits for a change looks at the state, too
  for (PageListener* listener : listeners_) {
    listener->StateChanged(state, LoadSet(*page_));
  }
  return true;
}

void VolumePageOwner::SetMembers(uint8_t members, uint8_t joiners, uint8_t trailing) {
  std::lock_guard lock(mutex_);
  const SetWord old = LoadSet(*page_);
  const SetVersion version{Raw(old.version()) + 1};
  const SetWord now = SetWord::Make(members, joiners, version, trailing);
  page_->set.store(now.raw, std::memory_order_seq_cst);
  // Who has left comes back proven. After the set, and read before it.
  page_->unproven.fetch_and(members, std::memory_order_seq_cst);
  WakeAll(page_->set);
  for (PageListener* listener : listeners_) {
    listener->SetMoved(old, now, VolumeState{page_->state.load()});
  }
}

void VolumePageOwner::Listen(PageListener& listener) {
  std::lock_guard lock(mutex_);
  listeners_.push_back(&listener);
  listener.Began(LoadSet(*page_), VolumeState{page_->state.load()}, lagging_);
}

void VolumePageOwner::StopListening(PageListener& listener) {
  std::lock_guard lock(mutex_);
  std::erase(listeners_, &listener);
}

void VolumePageOwner::Configure(size_t replica, const std::string& node) {
  const std::lock_guard lock(mutex_);
  WriteName(node, page_->replica_names[replica]);
  page_->configured.fetch_or(Bit(replica), std::memory_order_release);
}

bool VolumePageOwner::Require(size_t replica) {
  const std::lock_guard lock(mutex_);
  if ((page_->configured.load() & Bit(replica)) == 0) {
    return false;
  }
  page_->required.fetch_or(Bit(replica), std::memory_order_seq_cst);
  return true;
}

void VolumePageOwner::Dismiss(size_t replica) {
  const std::lock_guard lock(mutex_);
  page_->required.fetch_and(~uint32_t{Bit(replica)}, std::memory_order_seq_cst);
  page_->configured.fetch_and(~uint32_t{Bit(replica)}, std::memory_order_seq_cst);
  WakeAll(page_->set);  // who waits for it waits no more
}

void VolumePageOwner::SetTrailLimits(size_t replica, uint64_t rpo_ns, OnLag on_lag) {
  TrailLimits& limits = page_->trail[replica];
  limits.rpo_ns = rpo_ns;
  limits.on_lag = static_cast<uint32_t>(on_lag);
  limits.bytes = UINT64_MAX;
  limits.syncs = UINT64_MAX;
  page_->trails |= 1U << replica;
}

void VolumePageOwner::SetLagging(size_t replica, bool lagging) {
  const std::lock_guard lock(mutex_);
  const auto bit = static_cast<uint8_t>(1U << replica);
  if (((lagging_ & bit) != 0) == lagging) {
    return;
  }
  lagging_ ^= bit;
  for (PageListener* listener : listeners_) {
    listener->LagMoved(replica, lagging_, VolumeState{page_->state.load()}, LoadSet(*page_));
  }
}

void VolumePageOwner::AllowCaptures(size_t replica, uint64_t bytes, uint64_t syncs) {
  page_->trail[replica].bytes.store(bytes, std::memory_order_release);
  page_->trail[replica].syncs.store(syncs, std::memory_order_release);
  page_->trail_acks.fetch_add(1, std::memory_order_seq_cst);
  FutexWake(&page_->trail_acks, INT_MAX, FutexScope::kShared);
}

void VolumePageOwner::AwaitChange(SetWord seen, Deadline deadline) const {
  FutexWait(&page_->set, static_cast<uint32_t>(seen.raw), deadline, FutexScope::kShared);
}

absl::StatusOr<uint32_t> VolumePageOwner::TakeSlot(FileId file, uint64_t size_generation, uint64_t size) {
  std::lock_guard lock(mutex_);
  uint32_t index = 0;
  if (!free_slots_.empty()) {
    index = free_slots_.back();
    free_slots_.pop_back();
  } else if (used_slots_ < kMaxFileSlots) {
    index = used_slots_++;
  } else {
    return absl::ResourceExhaustedError("more than 65536 files of one volume are open; close some");
  }
  FileSlot& slot = page_->slots[index];
  slot.size_generation.store(size_generation);
  slot.size.store(size);
  slot.flags.store(0);
  slot.file.store(Raw(file), std::memory_order_release);
  return index;
}

void VolumePageOwner::FreeSlot(uint32_t slot) {
  std::lock_guard lock(mutex_);
  page_->slots[slot].file.store(Raw(FileId::kNone), std::memory_order_release);
  free_slots_.push_back(slot);
}

void VolumePageOwner::BeginSizeOperation(uint32_t slot) { page_->slots[slot].size_generation.fetch_or(1); }

void VolumePageOwner::AbandonSizeOperation(uint32_t slot) {
  std::atomic<uint64_t>& generation = page_->slots[slot].size_generation;
  generation.fetch_and(~uint64_t{1});
  WakeAll(generation);
}

void VolumePageOwner::EndSizeOperation(uint32_t slot, uint64_t generation, uint64_t size) {
  page_->slots[slot].size.store(size);
  page_->slots[slot].size_generation.store(generation);
  WakeAll(page_->slots[slot].size_generation);
}

}  // namespace pmirror::fs
