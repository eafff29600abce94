// SPDX-License-Identifier: BSD-3-Clause
// The rules for each event that repeats, and what is known of each condition.
#include "server/event_conditions.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <string_view>

namespace pmirror::server {
namespace {

struct RepeatedRule {
  std::string_view name;
  std::array<std::string_view, 3> key;  // names of the fields that tell one condition from another
};

constexpr RepeatedRule kRepeated[] = {
    {"accept_failed", {"errno"}},
    {"check_failed", {"volume", "node", "reason"}},
    {"connection_refused", {}},
    {"dirty_bytes_refused", {"volume", "reason"}},
    {"file_not_attached", {"volume"}},
    {"frame_damaged", {"volume", "node"}},
    {"hello_refused", {"reason"}},
    {"mark_failed", {"volume"}},
    {"marks_not_cleared", {"volume"}},
    {"object_without_id", {"volume"}},
    {"operation_malformed", {"volume"}},
    {"operation_refused", {"volume", "operation"}},
    {"program_connection_closed", {"pid"}},
    {"program_not_accepted", {"errno"}},
    {"program_not_served", {"volume", "process", "file"}},
    {"record_not_stored", {"volume"}},
    {"session_cut", {"volume", "process"}},
    {"session_not_opened", {"volume", "node"}},
    {"session_refused", {"volume", "node"}},
    {"storage_failed", {"volume", "errno"}},
    {"sync_failed", {"volume", "reason"}},
    {"undo_log_not_removed", {"volume"}},
};

struct PairRule {
  std::string_view begin;
  std::string_view end;
  std::array<std::string_view, 3> key;
};

constexpr PairRule kPairs[] = {
    {"copies_differ", "copies_equal", {"volume", "node"}},
    {"peer_unreachable", "peer_reachable", {"node"}},
    {"primary_lost", "primary_back", {"volume", "node"}},
    {"replica_lagging", "replica_lag_over", {"volume", "node"}},
};

std::string FieldOf(const MetEvent& event, std::string_view name) {
  for (const auto& [key, value] : event.fields) {
    if (key == name) {
      return value;
    }
  }
  return "";
}

Event::Fields KeyFields(const MetEvent& event, const std::array<std::string_view, 3>& names) {
  Event::Fields fields;
  for (const std::string_view name : names) {
    if (!name.empty()) {
      fields.emplace_back(name, FieldOf(event, name));
    }
  }
  return fields;
}

std::vector<std::string> KeyOf(std::string_view name, const Event::Fields& fields) {
  std::vector<std::string> key{std::string(name)};
  for (const auto& [unused, value] : fields) {
    key.push_back(value);
  }
  return key;
}

std::string Milliseconds(std::chrono::steady_clock::duration duration) {
  return std::to_string(std::chrono::duration_cast<std::chrono::milliseconds>(duration).count());
}

}  // namespace

bool EventConditions::HasRoom() const {
  return repeated_.size() + begun_.size() + outages_.size() + waiting_.size() < kMaxConditions;
}

bool EventConditions::HasLostReplica(const std::string& volume) const {
  const auto first = outages_.lower_bound({volume, ""});
  return first != outages_.end() && first->first.first == volume;
}

template <typename Over>
void EventConditions::EndRepeated(Over over, std::vector<MetEvent>& told) {
  for (auto at = repeated_.begin(); at != repeated_.end();) {
    const auto& [key, condition] = *at;
    if (!over(condition)) {
      ++at;
      continue;
    }
    if (condition.count > 1) {
      MetEvent end{LogLevel::kInfo, "condition_over", {{"condition", key.front()}}};
      end.fields.insert(end.fields.end(), condition.fields.begin(), condition.fields.end());
      end.fields.emplace_back("count", std::to_string(condition.count));
      end.fields.emplace_back("lasted_ms", Milliseconds(condition.last - condition.first));
      told.push_back(std::move(end));
    }
    at = repeated_.erase(at);
  }
}

std::vector<MetEvent> EventConditions::TakeReplicaState(Time now, MetEvent event) {
  const std::string volume = FieldOf(event, "volume");
  const std::pair key(volume, FieldOf(event, "node"));
  const auto found = outages_.find(key);
  if (FieldOf(event, "state") != "in-sync") {
    if (found == outages_.end() && !HasRoom()) {
      return {std::move(event)};
    }
    Outage& outage =
        found == outages_.end() ? outages_.emplace(key, Outage{.first = now}).first->second : found->second;
    const std::string what = FieldOf(event, "state") + '\0' + FieldOf(event, "reason");
    if (outage.told.contains(what)) {
      ++outage.untold;
      return {};
    }
    if (outage.told.size() < kMaxConditions) {
      outage.told.insert(what);
    }
    return {std::move(event)};
  }
  std::vector<MetEvent> told;
  if (found != outages_.end()) {
    event.fields.emplace_back("lasted_ms", Milliseconds(now - found->second.first));
    if (found->second.untold > 0) {
      event.fields.emplace_back("untold_changes", std::to_string(found->second.untold));
    }
    outages_.erase(found);
  }
  told.push_back(std::move(event));
  if (!HasLostReplica(volume)) {
    EndRepeated([&](const Repeated& condition) { return condition.volume == volume; }, told);
  }
  return told;
}

std::vector<MetEvent> EventConditions::Take(Time now, MetEvent event) {
  if (event.name == "replica_state") {
    return TakeReplicaState(now, std::move(event));
  }
  if (event.name == "sync_suspended" || event.name == "sync_resumed") {
    const std::string volume = FieldOf(event, "volume");
    const auto found = waiting_.find(volume);
    const bool begins = event.name == "sync_suspended";
    if (found == waiting_.end()) {
      if (begins && HasRoom()) {
        waiting_.emplace(volume, Waiting{.now = 1, .total = 1, .first = now, .last = now});
      }
      return {std::move(event)};
    }
    Waiting& waiting = found->second;
    waiting.now += begins ? 1 : 0;
    waiting.total += begins ? 1 : 0;
    waiting.now -= !begins && waiting.now > 0 ? 1 : 0;
    waiting.last = now;
    return {};
  }
  for (const PairRule& rule : kPairs) {
    if (event.name != rule.begin && event.name != rule.end) {
      continue;
    }
    const Key key = KeyOf(rule.begin, KeyFields(event, rule.key));
    const auto found = begun_.find(key);
    if (event.name == rule.end && found != begun_.end()) {
      event.fields.emplace_back("lasted_ms", Milliseconds(now - found->second));
      begun_.erase(found);
    } else if (event.name == rule.begin && found != begun_.end()) {
      return {};
    } else if (event.name == rule.begin && HasRoom()) {
      begun_.emplace(key, now);
    }
    return {std::move(event)};
  }
  const auto* const rule = std::find_if(std::begin(kRepeated), std::end(kRepeated),
                                        [&](const RepeatedRule& each) { return each.name == event.name; });
  if (rule == std::end(kRepeated)) {
    return {std::move(event)};
  }
  Event::Fields fields = KeyFields(event, rule->key);
  const Key key = KeyOf(event.name, fields);
  if (const auto found = repeated_.find(key); found != repeated_.end()) {
    ++found->second.count;
    found->second.last = now;
    return {};
  }
  if (HasRoom()) {
    repeated_.emplace(key, Repeated{.fields = std::move(fields),
                                    .volume = FieldOf(event, "volume"),
                                    .first = now,
                                    .last = now,
                                    .count = 1});
  }
  return {std::move(event)};
}

std::vector<MetEvent> EventConditions::Settle(Time now) {
  std::vector<MetEvent> told;
  EndRepeated(
      [&](const Repeated& condition) {
        return now - condition.last >= kQuiet &&
               (condition.volume.empty() || !HasLostReplica(condition.volume));
      },
      told);
  for (auto at = waiting_.begin(); at != waiting_.end();) {
    const auto& [volume, waiting] = *at;
    if (waiting.now > 0 || now - waiting.last < kSettled || HasLostReplica(volume)) {
      ++at;
      continue;
    }
    told.push_back({LogLevel::kInfo,
                    "sync_resumed",
                    {{"volume", volume},
                     {"syncs", std::to_string(waiting.total)},
                     {"lasted_ms", Milliseconds(waiting.last - waiting.first)}}});
    at = waiting_.erase(at);
  }
  return told;
}

}  // namespace pmirror::server
