// SPDX-License-Identifier: BSD-3-Clause
// Who of the configured replicas is a member of the in-sync set or joins it: the one owner of the volume page's set word
// (docs/internals/resync.md). Thread-safe; every call moves the word in one step, or not at all when nothing changes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>

#include "fs/volume_page_owner.h"
#include "replication/replica_mask.h"

namespace pmirror::fs {

class InSyncSet {
 public:
  // At first every replica that the page requires is a member: as long as it is not known whether its copy is good, no sync succeeds without it.
  // `page` must outlive the set.
  explicit InSyncSet(VolumePageOwner& page);

  // Syncs neither send to it, nor wait for it, nor capture for it. True when it was a member or trailed: a joiner that goes is no redundancy
  // lost.
  bool Leave(size_t replica);
  // Syncs send to it and wait for it; it does not count yet.
  void Join(size_t replica);
  // It counts. False when it has left meanwhile: then it does not.
  bool Admit(size_t replica);

  // Syncs capture for it, and do not send to it. False when it is no member.
  bool Trail(size_t replica);

  bool trailing(size_t replica) const { return (set().trailing() & Bit(replica)) != 0; }
  bool member(size_t replica) const { return (set().members() & Bit(replica)) != 0; }
  bool joiner(size_t replica) const { return (set().joiners() & Bit(replica)) != 0; }
  SetWord set() const { return LoadSet(page_.page()); }
  // Syncs send to it, and wait for it.
  bool Wanted(size_t replica) const { return (set().sent_to() & Bit(replica)) != 0; }

 private:
  enum class Place { kOut, kJoiner, kMember, kTrailing };
  void Move(SetWord old, size_t replica, Place to);

  VolumePageOwner& page_;
  std::mutex mutex_;  // of whoever moves the word
};

}  // namespace pmirror::fs
