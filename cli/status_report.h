// SPDX-License-Identifier: BSD-3-Clause
// What `pmirror status` says, made from the answers of the daemons that could be asked. Pure.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "proto/control.pb.h"

namespace pmirror::cli {

struct Unreachable {
  std::string node;
  std::string reason;
};

// One entry a volume: the primary's word where it answered, what the replicas know otherwise; in the order of
// names.
std::vector<control::VolumeStatus> Merge(const std::vector<control::StatusReply>& replies);

// {"volumes":[{"name","epoch","primary","rpo","replicas":[{"node","state","dirty_bytes","durable_seq","placement",...}],...}],
//  "warnings":[...],"unreachable":[{"node","reason"}]}
nlohmann::ordered_json StatusJson(const std::vector<control::StatusReply>& replies,
                                  const std::vector<Unreachable>& unreachable);

// The table for people.
std::string StatusTable(const std::vector<control::StatusReply>& replies);

}  // namespace pmirror::cli
