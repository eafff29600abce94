// SPDX-License-Identifier: BSD-3-Clause
// See describe_volume.h; what each number promises is in libpmirror(7).
#include "interpose/describe_volume.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "replication/persistence.h"
#include "replication/replica_mask.h"

namespace pmirror::interpose {
namespace {

constexpr uint32_t kWord = 8;
constexpr uint32_t kCacheLine = 64;

static_assert(PMIRROR_SUSPEND == static_cast<int>(OnLoss::kSuspend) &&
              PMIRROR_FAIL == static_cast<int>(OnLoss::kFail) &&
              PMIRROR_PROCEED == static_cast<int>(OnLoss::kProceed));
static_assert(PMIRROR_VOLATILE == static_cast<int>(Domain::kVolatile) &&
              PMIRROR_FILE == static_cast<int>(Domain::kFile) &&
              PMIRROR_PMEM == static_cast<int>(Domain::kPmem));
static_assert(sizeof(pmirror_attributes::nodes) / PMIRROR_NAME_BYTES == kMaxReplicas &&
              kReplicaNameBytes == PMIRROR_NAME_BYTES);

}  // namespace

pmirror_state StateOf(uint32_t state, const ReplicaMasks& masks, uint32_t required) {
  const uint32_t all = required;
  switch (static_cast<VolumeState>(state)) {
    case VolumeState::kFenced:
      return PMIRROR_FENCED;
    case VolumeState::kClosing:
      return PMIRROR_CLOSING;
    case VolumeState::kServing:
      break;
  }
  const uint32_t covered = (masks.members | masks.trailing) & all;
  if (covered != all) {
    return covered == 0 ? PMIRROR_ALONE : PMIRROR_DEGRADED;
  }
  if ((masks.members & all) != all) {
    return PMIRROR_TRAILING;
  }
  return (masks.unproven & all) != 0 ? PMIRROR_UNPROVEN : PMIRROR_IN_SYNC;
}

void DescribeVolume(const VolumePage& page, Carrier carrier, pmirror_attributes& out) {
  const bool preloaded = carrier == Carrier::kPreload;
  const bool pmem = page.domain == static_cast<uint32_t>(Domain::kPmem);
  const SetWord set = LoadSet(page);
  out.capabilities = PMIRROR_CAN_FLUSH_ASYNC | PMIRROR_CAN_SUBSCRIBE | PMIRROR_CAN_COPY_ON_WRITE |
                     (preloaded ? PMIRROR_CAN_FLUSH | PMIRROR_CAN_VERIFY | PMIRROR_CAN_FLUSH_ATOMIC : 0);
  out.preloaded = preloaded ? 1 : 0;
  out.store_atomicity_local = pmem && preloaded ? kWord : 0;  // the mount's bytes are copied by the kernel
  out.store_atomicity_remote = preloaded ? kWord : 0;
  out.store_atomicity_remote_power = 0;  // the replica's domain is not known here
  out.group_atomicity = preloaded ? kGroupBytes : 0;
  out.flush_granularity = pmem && preloaded ? kCacheLine : kPageSize;
  out.remote_granularity = preloaded ? kWord : kPageSize;
  out.fundamental_error_range = kPageSize;
  out.fundamental_error_range_offset = 0;
  out.domain = page.domain;
  out.state = StateOf(page.state.load(std::memory_order_acquire),
                      {.members = set.members(),
                       .trailing = set.trailing(),
                       .unproven = page.unproven.load(std::memory_order_acquire)},
                      page.required.load(std::memory_order_acquire));
  out.policy = page.on_loss;
  const uint32_t configured = page.configured.load(std::memory_order_acquire);
  out.replicas = static_cast<uint32_t>(std::popcount(configured));
  out.members = set.members();
  out.joiners = set.joiners();
  out.trailing = set.trailing();
  out.set_version = Raw(set.version());
  out.epoch = page.epoch.load(std::memory_order_acquire);
  out.deadline_ns = page.deadline_ns;
  out.suspend_ns = page.suspend_ns;
  ForEach(static_cast<ReplicaMask>(configured),
          [&](size_t i) { CopyText(out.nodes[i], sizeof(out.nodes[i]), page.replica_names[i]); });
}

bool CopyOut(const void* from, size_t from_size, size_t least, void* to) {
  size_t room = 0;
  std::memcpy(&room, to, sizeof(room));
  if (room < least) {
    return false;
  }
  const size_t filled = std::min(room, from_size);
  std::memcpy(to, from, filled);
  std::memcpy(to, &filled, sizeof(filled));
  return true;
}

void CopyText(char* to, size_t room, const char* from) {
  const size_t length = ::strnlen(from, room - 1);
  std::memcpy(to, from, length);
  to[length] = '\0';
}

}  // namespace pmirror::interpose
