// SPDX-License-Identifier: BSD-3-Clause
#include "fs/in_sync_set.h"

namespace pmirror::fs {

InSyncSet::InSyncSet(VolumePageOwner& page, size_t replicas) : page_(page) {
  page_.SetMembers(static_cast<uint8_t>((1U << replicas) - 1), 0);
}

bool InSyncSet::Leave(size_t replica) {
  const std::lock_guard lock(mutex_);
  const SetWord old = set();
  if (((old.members() | old.joiners()) & Bit(replica)) == 0) {
    return false;
  }
  page_.SetMembers(static_cast<uint8_t>(old.members() & ~Bit(replica)),
                   static_cast<uint8_t>(old.joiners() & ~Bit(replica)));
  return (old.members() & Bit(replica)) != 0;
}

void InSyncSet::Join(size_t replica) {
  const std::lock_guard lock(mutex_);
  const SetWord old = set();
  page_.SetMembers(static_cast<uint8_t>(old.members() & ~Bit(replica)),
                   static_cast<uint8_t>(old.joiners() | Bit(replica)));
}

bool InSyncSet::Admit(size_t replica) {
  const std::lock_guard lock(mutex_);
  const SetWord old = set();
  if ((old.joiners() & Bit(replica)) == 0) {
    return false;
  }
  page_.SetMembers(static_cast<uint8_t>(old.members() | Bit(replica)),
                   static_cast<uint8_t>(old.joiners() & ~Bit(replica)));
  return true;
}

}  // namespace pmirror::fs
