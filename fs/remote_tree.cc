// SPDX-License-Identifier: BSD-3-Clause
// Messages to values.
#include "fs/remote_tree.h"

#include <utility>

#include "fs/uuid_bytes.h"

namespace pmirror::fs {
namespace {

OpTime ToTime(const control::Time& message) {
  return {.seconds = message.seconds(), .nanoseconds = message.nanoseconds()};
}

recovery::TreeItem ToItem(const control::InventoryItem& message) {
  recovery::TreeItem item;
  item.path = message.path();
  item.id = FileId{message.file()};
  item.mode = message.mode();
  item.uid = message.uid();
  item.gid = message.gid();
  item.size = message.size();
  item.rdev = message.rdev();
  item.target = message.target();
  item.xattr_crc = message.xattr_crc();
  item.links = message.links();
  item.orphan = message.orphan();
  for (const control::Xattr& xattr : message.xattrs()) {
    item.xattrs.emplace_back(xattr.name(), xattr.value());
  }
  item.atime = ToTime(message.atime());
  item.mtime = ToTime(message.mtime());
  return item;
}

}  // namespace

RemoteTree::RemoteTree(proto::ControlClient& client, const Uuid& volume, std::chrono::milliseconds timeout,
                       recovery::InventoryDetail detail)
    : client_(client), volume_(UuidBytes(volume)), timeout_(timeout), detail_(detail) {}

absl::StatusOr<recovery::Inventory> RemoteTree::Inventory() {
  control::InventoryRequest request;
  request.set_volume(volume_);
  request.set_full(detail_ == recovery::InventoryDetail::kFull);
  recovery::Inventory inventory;
  const absl::Status status =
      client_.Inventory(request, timeout_, [&inventory](const control::InventoryItem& message) {
        inventory.push_back(ToItem(message));
        return true;
      });
  if (!status.ok()) {
    return status;
  }
  return inventory;
}

absl::StatusOr<recovery::BlockChecksums> RemoteTree::Checksums(FileId file, Extent extent, uint32_t block) {
  control::ChecksumsRequest request;
  request.set_volume(volume_);
  request.set_file(Raw(file));
  request.set_offset(extent.offset);
  request.set_length(extent.length);
  request.set_block(block);
  const absl::StatusOr<control::ChecksumsReply> reply = client_.Checksums(request, timeout_);
  if (!reply.ok()) {
    return reply.status();
  }
  if (reply->sums().empty() && extent.offset < reply->size() && extent.length != 0) {
    return absl::FailedPreconditionError(
        "the node sends no checksums that can be compared: run the same version on both");
  }
  recovery::BlockChecksums checksums;
  checksums.size = reply->size();
  for (int i = 0; i + 1 < reply->sums_size(); i += 2) {
    checksums.sums.push_back({.high = reply->sums(i), .low = reply->sums(i + 1)});
  }
  return checksums;
}

}  // namespace pmirror::fs
