// SPDX-License-Identifier: BSD-3-Clause
// What a node can do, and which differences between two nodes would hurt after a failover (trap 12).
#pragma once

#include <string>
#include <vector>

#include "proto/control.pb.h"
#include "server/config.h"

namespace pmirror::server {

constexpr char kVersion[] = PMIRROR_VERSION;

// "volatile", "file", "pmem": the words of the configuration file.
const char* Name(Domain domain);
// "suspend", "fail", "proceed".
const char* Name(OnLoss on_loss);

control::Abilities OwnAbilities(const Config& config);

// One sentence for each difference that an operator should know before the roles are exchanged.
std::vector<std::string> CompareAbilities(const std::string& own_name, const control::Abilities& own,
                                          const std::string& peer_name, const control::Abilities& peer);

}  // namespace pmirror::server
