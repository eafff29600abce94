// SPDX-License-Identifier: BSD-3-Clause
// Values as messages of the control protocol (proto/control.proto). Pure.
#pragma once

#include "proto/control.pb.h"
#include "recovery/tree_item.h"
#include "server/config.h"
#include "server/event_journal.h"

namespace pmirror::server {

control::InventoryItem ToMessage(const recovery::TreeItem& item, recovery::InventoryDetail detail);
control::Event ToMessage(const Event& event);

control::Members MembersOf(const VolumeConfig& volume);
void SetMembers(const control::Members& members, VolumeConfig& volume);

}  // namespace pmirror::server
