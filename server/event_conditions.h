// SPDX-License-Identifier: BSD-3-Clause
// One fault is one event: decides what of the events that were met is told. A *condition* is a fault that is met again and again:
// at every retry, by every sync. It is told when it begins, with what its first event said, and once more when it is over, with how
// often it was met and how long it lasted. What has no rule here is told as it is. Pure: the caller has the clock. Not thread-safe.
// ---
// For maintainers: three kinds of rules.
//  - repeated (kRepeated in the .cc): over when it was not met for kQuiet, or when all replicas of its volume are back. Its end,
//    `condition_over`, is told only when there was something left untold.
//  - a pair of events, such as a replica's loss and its return: the second one is given how long it took. Of a replica's loss each
//    state is told once; it is over when the replica is in sync.
//  - syncs that wait for a replica: begins with the first, is over when none waits, the replicas are back, and kSettled has passed.
//    While a replica is lost, syncs that fail and are tried again do not begin it anew.
// All tables are bounded by kMaxConditions; what finds no room is told each time.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "server/journal_line.h"

namespace pmirror::server {

struct MetEvent {
  LogLevel severity = LogLevel::kInfo;
  std::string name;
  Event::Fields fields;
};

class EventConditions {
 public:
  using Time = std::chrono::steady_clock::time_point;
  static constexpr std::chrono::seconds kQuiet{10};
  static constexpr std::chrono::seconds kSettled{1};
  static constexpr size_t kMaxConditions = 1000;

  // What to tell in place of `event`, in order: it, perhaps with more fields, nothing, or it and what ended with it.
  std::vector<MetEvent> Take(Time now, MetEvent event);
  // What has ended by now. To be asked about once a second.
  std::vector<MetEvent> Settle(Time now);

 private:
  using Key =
      std::vector<std::string>;  // the event's name and the values that tell one condition from another
  struct Repeated {
    Event::Fields fields;  // of the key
    std::string volume;
    Time first{};
    Time last{};
    uint64_t count = 0;
  };
  struct Waiting {
    uint64_t now = 0;    // syncs that wait
    uint64_t total = 0;  // that have waited since it began
    Time first{};
    Time last{};  // that one went on
  };
  struct Outage {
    Time first{};
    std::set<std::string> told = {};  // states with their reasons
    uint64_t untold = 0;
  };

  std::vector<MetEvent> TakeReplicaState(Time now, MetEvent event);
  bool HasRoom() const;
  bool HasLostReplica(const std::string& volume) const;
  // Ends the repeated conditions that `over` chooses.
  template <typename Over>
  void EndRepeated(Over over, std::vector<MetEvent>& told);

  std::map<Key, Repeated> repeated_;
  std::map<Key, Time> begun_;                                      // pairs whose second event is to come
  std::map<std::pair<std::string, std::string>, Outage> outages_;  // volume, node
  std::map<std::string, Waiting> waiting_;                         // volume
};

}  // namespace pmirror::server
