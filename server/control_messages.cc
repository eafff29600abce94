// SPDX-License-Identifier: BSD-3-Clause
// See control_messages.h.
#include "server/control_messages.h"

#include <chrono>

namespace pmirror::server {
namespace {

void ToMessage(const OpTime& time, control::Time& message) {
  message.set_seconds(time.seconds);
  message.set_nanoseconds(time.nanoseconds);
}

}  // namespace

control::InventoryItem ToMessage(const recovery::TreeItem& item, recovery::InventoryDetail detail) {
  control::InventoryItem message;
  message.set_file(Raw(item.id));
  message.set_path(item.path);
  message.set_mode(item.mode);
  message.set_uid(item.uid);
  message.set_gid(item.gid);
  message.set_size(item.size);
  message.set_rdev(item.rdev);
  message.set_target(item.target);
  message.set_xattr_crc(item.xattr_crc);
  message.set_links(item.links);
  if (detail == recovery::InventoryDetail::kFull) {
    message.set_orphan(item.orphan);
    for (const auto& [name, value] : item.xattrs) {
      control::Xattr& xattr = *message.add_xattrs();
      xattr.set_name(name);
      xattr.set_value(value);
    }
    ToMessage(item.atime, *message.mutable_atime());
    ToMessage(item.mtime, *message.mutable_mtime());
  }
  return message;
}

control::Event ToMessage(const Event& event) {
  control::Event message;
  message.set_seq(event.seq);
  message.set_time_us(
      std::chrono::duration_cast<std::chrono::microseconds>(event.time.time_since_epoch()).count());
  message.set_severity(SeverityName(event.severity));
  message.set_event(event.name);
  message.set_node(event.node);
  for (const auto& [key, value] : event.fields) {
    control::EventField& field = *message.add_fields();
    field.set_key(key);
    field.set_value(value);
  }
  return message;
}

control::Members MembersOf(const VolumeConfig& volume) {
  control::Members members;
  members.mutable_nodes()->Assign(volume.nodes.begin(), volume.nodes.end());
  members.mutable_spares()->Assign(volume.spares.begin(), volume.spares.end());
  members.mutable_filling()->Assign(volume.filling.begin(), volume.filling.end());
  for (const auto& [old, fresh] : volume.replacing) {
    (*members.mutable_replacing())[old] = fresh;
  }
  return members;
}

void SetMembers(const control::Members& members, VolumeConfig& volume) {
  volume.nodes.assign(members.nodes().begin(), members.nodes().end());
  volume.spares.assign(members.spares().begin(), members.spares().end());
  volume.filling.assign(members.filling().begin(), members.filling().end());
  volume.replacing = {members.replacing().begin(), members.replacing().end()};
}

}  // namespace pmirror::server
