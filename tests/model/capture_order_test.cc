// SPDX-License-Identifier: BSD-3-Clause
// Traps 1, 2 and 3: the real capture order in all interleavings, and each tempting other one with what it
// loses.
#include "tests/model/capture_order_model.h"

namespace pmirror::model::capture_order {
namespace {

void Holds(Rules rules, Setup setup) { ExpectHolds(CaptureOrder(rules, std::move(setup)).Build()); }
void Loses(Rules rules, Setup setup, const char* what) {
  ExpectLoses(CaptureOrder(rules, std::move(setup)).Build(), what);
}

constexpr char kLost[] = "its store is not on the replica";
constexpr char kUnknown[] = "nobody knows";
constexpr char kDeadlock[] = "waits for ever";

// Trap 1: the order of the three steps.
TEST(Trap1CaptureOrder, ScanNumberCopyKeepsEveryStore) {
  Holds({}, {});
  Holds({}, {.ranges = {0b11, 0b11}});
  Holds({}, {.ranges = {0b10, 0b10, 0b10}, .rounds = {1, 1, 1}, .stores = {1}});
}
TEST(Trap1CaptureOrder, ScanNumberCopyKeepsEveryStoreOfATornPage) {
  Holds({}, {.words_a_page = 2, .ranges = {0b1, 0b1}, .stores = {0, 1, 0}});
}
TEST(Trap1CaptureOrder, ScanNumberCopyKeepsEveryStoreBetweenProcesses) {
  Holds({}, {.ranges = {0b11, 0b11}, .rounds = {2, 1}, .processes = true});
}
TEST(Trap1CaptureOrder, FlushOfNamedWordsBesideASyncKeepsEveryStore) {
  Holds({}, {.ranges = {0b11, 0b10}, .rounds = {2, 1}, .stores = {1, 0, 1}, .flusher = true});
  Holds({}, {.words_a_page = 2, .ranges = {0b1, 0b1}, .stores = {1, 0, 1}, .flusher = true});
}
TEST(Trap1CaptureOrder, NumberScanCopyLosesAStore) { Loses({.order = Order::kNumberScanCopy}, {}, kUnknown); }
TEST(Trap1CaptureOrder, ScanCopyNumberLosesAStore) { Loses({.order = Order::kScanCopyNumber}, {}, kLost); }

// Trap 2: a thread finds its page clean because another has just scanned it.
TEST(Trap2CleanPage, WithoutWaitingForTheOtherTicketAStoreIsLost) {
  Loses({.wait_for_tickets = false}, {}, kLost);
}
TEST(Trap2CleanPage, TicketOpenedAfterTheScanLosesAStore) { Loses({.ticket_before_scan = false}, {}, kLost); }
TEST(Trap2CleanPage, LookingForTicketsBeforeTheScanLosesAStore) {
  Loses({.look_after_scan = false}, {}, kLost);
}
TEST(Trap2CleanPage, WaitingOnlyForTicketsOlderThanOnesOwnLosesAStore) {
  Loses({.wait_only_for_older = true}, {}, kLost);
}
TEST(Trap2CleanPage, TicketThatClosesOnlyAfterWaitingForOthersDeadlocks) {
  Loses({.close_before_wait = false}, {}, kDeadlock);
}

// Trap 3: a sync that failed leaves its range dirty for itself and for everybody who waited for it.
TEST(Trap3FailedSync, RedoRangeKeepsEveryStoreForEveryWaiter) {
  Holds({}, {.ranges = {0b10, 0b10}, .rounds = {2, 1}, .stores = {1, 1}, .failures = 2});
  Holds({}, {.ranges = {0b11, 0b10}, .rounds = {2, 1}, .stores = {1, 0}, .failures = 1});
}
TEST(Trap3FailedSync, WithoutRedoRangeTheRetrySucceedsForFree) {
  Loses({.redo_on_failure = false}, {.rounds = {2, 1}, .stores = {1}, .failures = 1}, kLost);
}
TEST(Trap3FailedSync, WaiterThatIgnoresTheFailureLosesAStore) {
  Loses({.waiter_takes_redo = false}, {.stores = {1}, .failures = 1}, kLost);
}
TEST(Trap3FailedSync, RedoRangeWrittenAfterTheTicketClosedLosesAStore) {
  Loses({.redo_in_one_step = false}, {.stores = {1}, .failures = 1}, kLost);
}
TEST(Trap3FailedSync, RedoRangeTakenOutBeforeItsNewFrameIsAcknowledgedLosesAStore) {
  Loses({.clear_redo_when_taken = true},
        {.ranges = {0b10, 0b10}, .rounds = {2, 1}, .stores = {1}, .failures = 1}, kLost);
}
TEST(Trap3FailedSync, RedoRangeClearedWithoutComparingItsIncarnationLosesAStore) {
  Loses({.compare_incarnation = false},
        {.ranges = {0b10, 0b10}, .rounds = {3, 1}, .stores = {1, 1}, .failures = 2}, "");
}

}  // namespace
}  // namespace pmirror::model::capture_order
