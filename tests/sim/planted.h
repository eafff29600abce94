// SPDX-License-Identifier: BSD-3-Clause
// Bugs that the shells of the simulation can be told to have, to show that the oracle finds them (docs/internals/simulation.md
// keeps the table). The production code has none of these switches.
#pragma once

#include <array>
#include <cstdint>
#include <ostream>

namespace pmirror::sim {

enum class Planted : uint8_t {
  kNone,
  kCopyBeforeNumber,
  kCopyBeforeScan,
  kNoWaitForTickets,
  kNoRedoAfterFailure,
  kFlagsNotRead,
  kGenerationNotCompared,
  kSetNotReadAgain,
  kJoinerNotWaitedFor,
  kJoinedAfterData,
  kJoinedBeforeTree,
  kSuccessWithoutMembers,
  kResentAfterReconnect,
  kOrdersKeptOverMount,
  kOrdersForgottenInMount,
  kOperationsReplayedTooLate,
  kOperationsReappliedFromStart,
  kEndWithoutPersist,
  kEndBeforeLastSend,
  kReplayAfterPowerCut,
  kResyncingNotRecorded,
  kBarrierSkipsOtherSessions,
  kAckBeforePersist,
  kMarkAfterStore,
  kMarkClearedBeforeBarrier,
  kMarksNotAsked,
  kDeadProcessForgotten,
  kLocalNotPersisted,
  kCleanPageOfLastMount,
  kSetNotComparedAfterCopy,
  kSyncBesideTruncate,
  kPlanNotMarked,
  kEndWithoutOperations,
  kCount,
};

struct PlantedText {
  Planted bug;
  const char* name;
  const char* what;
  // Where the test begins to look: a little before the first seed that finds it, for the rare ones. The soak begins at 1.
  uint64_t first = 1;
};

// For the names of test cases.
inline void PrintTo(const PlantedText& text, std::ostream* out) { *out << text.name; }

inline constexpr std::array kPlantedTexts = {
    PlantedText{Planted::kCopyBeforeNumber, "copy_before_number",
                "a sync copies before it takes its number (R1)"},
    PlantedText{Planted::kCopyBeforeScan, "copy_before_scan",
                "a sync copies before it scans and protects (R1)"},
    PlantedText{Planted::kNoWaitForTickets, "no_wait_for_tickets",
                "a sync does not wait for others' tickets (R2)"},
    PlantedText{Planted::kNoRedoAfterFailure, "no_redo_after_failure",
                "a failed sync leaves no redo range (R3)"},
    PlantedText{Planted::kFlagsNotRead, "flags_not_read",
                "a sync does not ask for other processes' stores (R4)"},
    PlantedText{Planted::kGenerationNotCompared, "generation_not_compared",
                "the size generation is not compared after the copy (R5)"},
    PlantedText{Planted::kSetNotReadAgain, "set_not_read_again", "the set word is read once (R8)"},
    PlantedText{Planted::kJoinerNotWaitedFor, "joiner_not_waited_for", "a sync sends to members only (R8)"},
    PlantedText{Planted::kJoinedAfterData, "joined_after_data",
                "the joiner is announced behind the data pass"},
    PlantedText{Planted::kJoinedBeforeTree, "joined_without_replay",
                "operations behind the tree walk are delivered neither at the join nor at the end"},
    PlantedText{Planted::kSuccessWithoutMembers, "success_without_members",
                "a sync succeeds although a member is missing under suspend"},
    PlantedText{Planted::kResentAfterReconnect, "resent_after_reconnect",
                "after a reconnect the old bytes are sent again (R7)"},
    PlantedText{Planted::kOrdersKeptOverMount, "orders_kept_over_mount",
                "a new mount does not empty the order maps"},
    PlantedText{Planted::kOrdersForgottenInMount, "orders_forgotten",
                "the replica forgets orders when a session ends"},
    PlantedText{Planted::kOperationsReplayedTooLate, "replay_too_late",
                "operations are replayed from one too late"},
    PlantedText{Planted::kOperationsReappliedFromStart, "operations_reapplied",
                "the replica applies operations it has already"},
    PlantedText{Planted::kEndWithoutPersist, "end_without_persist",
                "EndResync does not make the copy durable"},
    PlantedText{Planted::kEndBeforeLastSend, "end_before_last_send",
                "the data pass skips the last block that differs"},
    PlantedText{Planted::kReplayAfterPowerCut, "replay_after_power_cut",
                "a copy whose machine restarted is replayed to", 280},
    PlantedText{Planted::kResyncingNotRecorded, "resyncing_not_recorded", "BeginResync is not recorded"},
    PlantedText{Planted::kBarrierSkipsOtherSessions, "barrier_skips_others",
                "a barrier covers applied frames only, not skipped ones (R7)", 560},
    PlantedText{Planted::kAckBeforePersist, "ack_before_persist",
                "a barrier is acknowledged before it is served"},
    PlantedText{Planted::kMarkAfterStore, "mark_not_set", "files are not marked when they are opened"},
    PlantedText{Planted::kMarkClearedBeforeBarrier, "mark_cleared_early",
                "marks are settled without a barrier, also of files in use"},
    PlantedText{Planted::kMarksNotAsked, "marks_not_asked",
                "a resync compares new files only, not those that are marked"},
    PlantedText{Planted::kDeadProcessForgotten, "dead_process_forgotten",
                "what a killed process stored is not taken over"},
    PlantedText{Planted::kCleanPageOfLastMount, "clean_page_of_last_mount",
                "a sync of pages that are clean succeeds although the last mount left stores there"},
    PlantedText{Planted::kSetNotComparedAfterCopy, "set_not_compared_after_copy",
                "a capture goes to a replica that left the set before the copy", 6440},
    PlantedText{Planted::kSyncBesideTruncate, "sync_beside_truncate",
                "a sync with nothing to send does not wait for a truncate under way (R5)"},
    PlantedText{Planted::kPlanNotMarked, "plan_not_marked",
                "files that the plan of the tree makes or cuts on a copy are compared only if marked", 3480},
    PlantedText{Planted::kEndWithoutOperations, "end_without_operations",
                "a resync ends although operations that the comparison has seen are on their way", 100880},
    PlantedText{Planted::kLocalNotPersisted, "local_not_persisted",
                "a sync does not make the bytes durable here"},
};

}  // namespace pmirror::sim
