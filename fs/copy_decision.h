// SPDX-License-Identifier: BSD-3-Clause
// Whether a replica's copy may count as in sync when the primary connects to it: a pure table of what both sides know of their history.
// A doubt is never resolved by assuming that all is well (promise P5).
#pragma once

#include <cstdint>

namespace pmirror::fs {

// What a node knows of its copy.
struct CopyHistory {
  uint64_t generation = 0;    // identity of the data history; 0: never took part
  uint64_t mount_number = 0;  // of the mount whose operations it has
  uint64_t operation = 0;     // last one of that mount
  bool clean = false;         // that mount ended cleanly, everything durable
  bool empty = false;         // the tree holds no object
  bool mixed = false;         // a resync of it has not ended, or its machine went down during the mount
};

// What the primary's running mount still has.
struct RunningMount {
  uint64_t mount_number = 0;
  uint64_t first_held = 1;  // oldest operation that can be replayed
  uint64_t last = 0;        // newest operation
  bool replica_took_part =
      false;  // its copy was found good in this mount: it may have recorded the mount since
  bool replica_is_member = false;  // it has recorded this mount: it said yes to a session
};

enum class CopyDecision {
  kNew,           // both copies are empty: in sync from the start
  kContinue,      // both left the same mount cleanly at the same operation
  kReplay,        // it lost contact during this mount: send what it lacks
  kNeedsCompare,  // same history, but an unclean end: it may differ anywhere
  kNeedsCopy,     // it lacks what the primary has
  kForeign,       // another history: a person has to choose
};

// Once the replica has recorded this mount, only a copy that still says so may be replayed to: one that says less was emptied, or put back
// to an older state, while the mount went on.
constexpr CopyDecision DecideForMember(const CopyHistory& primary, const RunningMount& running,
                                       const CopyHistory& replica) {
  if (replica.generation == 0) {
    return replica.empty ? CopyDecision::kNeedsCopy : CopyDecision::kForeign;
  }
  if (replica.generation != primary.generation) {
    return CopyDecision::kForeign;
  }
  const bool replayable = !replica.mixed && replica.mount_number == running.mount_number &&
                          replica.operation + 1 >= running.first_held && replica.operation <= running.last;
  return replayable ? CopyDecision::kReplay : CopyDecision::kNeedsCompare;
}

// `primary` is what the primary's record said when it was mounted.
constexpr CopyDecision Decide(const CopyHistory& primary, const RunningMount& running,
                              const CopyHistory& replica) {
  if (running.replica_is_member || (running.replica_took_part && replica.generation == primary.generation &&
                                    replica.mount_number == running.mount_number)) {
    return DecideForMember(primary, running, replica);
  }
  if (replica.generation == 0) {
    if (!replica.empty) {
      return CopyDecision::kForeign;
    }
    return primary.empty ? CopyDecision::kNew : CopyDecision::kNeedsCopy;
  }
  if (replica.generation != primary.generation) {
    return CopyDecision::kForeign;
  }
  const bool same_end = !replica.mixed && primary.clean && replica.clean &&
                        primary.mount_number == replica.mount_number &&
                        primary.operation == replica.operation;
  return same_end ? CopyDecision::kContinue : CopyDecision::kNeedsCompare;
}

const char* Explain(CopyDecision decision);

}  // namespace pmirror::fs
