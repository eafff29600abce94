// SPDX-License-Identifier: BSD-3-Clause
#include "fs/in_sync_set.h"

namespace pmirror::fs {

InSyncSet::InSyncSet(VolumePageOwner& page) : page_(page) {
  page_.SetMembers(static_cast<uint8_t>(page.page().required), 0);
}

void InSyncSet::Move(SetWord old, size_t replica, Place to) {
  const auto rest = [&](uint8_t bits, Place place) {
    return static_cast<uint8_t>((bits & ~Bit(replica)) | (to == place ? Bit(replica) : 0));
  };
  page_.SetMembers(rest(old.members(), Place::kMember), rest(old.joiners(), Place::kJoiner),
                   rest(old.trailing(), Place::kTrailing));
}

bool InSyncSet::Leave(size_t replica) {
  const std::lock_guard lock(mutex_);
  const SetWord old = set();
  if (((old.sent_to() | old.trailing()) & Bit(replica)) == 0) {
    return false;
  }
  Move(old, replica, Place::kOut);
  return ((old.members() | old.trailing()) & Bit(replica)) != 0;
}

void InSyncSet::Join(size_t replica) {
  const std::lock_guard lock(mutex_);
  Move(set(), replica, Place::kJoiner);
}

bool InSyncSet::Admit(size_t replica) {
  const std::lock_guard lock(mutex_);
  const SetWord old = set();
  if ((old.joiners() & Bit(replica)) == 0) {
    return false;
  }
  Move(old, replica, Place::kMember);
  return true;
}

bool InSyncSet::Trail(size_t replica) {
  const std::lock_guard lock(mutex_);
  const SetWord old = set();
  if ((old.members() & Bit(replica)) == 0) {
    return false;
  }
  Move(old, replica, Place::kTrailing);
  return true;
}

}  // namespace pmirror::fs
