// SPDX-License-Identifier: BSD-3-Clause
// The events of several nodes in the order of their times, and what they look like. Pure.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <tuple>
#include <vector>

#include "proto/control.pb.h"

namespace pmirror::cli {

// {"seq","time","severity","event","node","fields":{...}}
nlohmann::ordered_json EventJson(const control::Event& event);

// "TIME NODE SEVERITY EVENT key=value key=value"; values with spaces or control characters are quoted.
std::string EventLine(const control::Event& event);

// Puts events that come from several nodes in order, for as long as each waits here: an event that comes later than that is told
// when it comes.
class EventOrder {
 public:
  using Time = std::chrono::steady_clock::time_point;

  void Add(Time now, control::Event event);
  // Takes out the events that came before `until`, and those that are older than one of them, in order.
  std::vector<control::Event> TakeUntil(Time until);
  std::vector<control::Event> TakeAll() { return TakeUntil(Time::max()); }

 private:
  struct Waiting {
    Time since{};
    control::Event event;
  };
  std::map<std::tuple<int64_t, std::string, uint64_t>, Waiting> waiting_;  // time, node, number
};

}  // namespace pmirror::cli
