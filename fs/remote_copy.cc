// SPDX-License-Identifier: BSD-3-Clause
// Calls to messages.
#include "fs/remote_copy.h"

#include <chrono>
#include <vector>

#include "fs/uuid_bytes.h"

namespace pmirror::fs {
namespace {

// Each may have to write a whole volume's dirty pages back, or to walk its tree; a peer that is gone is found out by the channel much sooner.
constexpr std::chrono::minutes kCallTimeout{10};
constexpr std::chrono::seconds kChecksumsTimeout{60};  // of one chunk
constexpr size_t kMaxBatchBytes = 1 << 20;             // of operations in one message
constexpr size_t kMaxBatch = 1024;

}  // namespace

RemoteCopy::RemoteCopy(proto::ControlClient& client, const Terms& terms)
    : client_(client),
      terms_(terms),
      tree_(client, terms.volume, kCallTimeout, recovery::InventoryDetail::kFull),
      checksums_(client, terms.volume, kChecksumsTimeout) {}

absl::Status RemoteCopy::Begin() {
  control::BeginResyncRequest request;
  request.set_volume(UuidBytes(terms_.volume));
  request.set_node(terms_.primary_node);
  request.set_epoch(Raw(terms_.epoch));
  request.set_mount_number(terms_.mount_number);
  request.set_generation(terms_.generation);
  const absl::StatusOr<control::BeginResyncReply> reply = client_.BeginResync(request, kCallTimeout);
  token_ = reply.ok() ? reply->token() : 0;
  return reply.status();
}

absl::StatusOr<recovery::Inventory> RemoteCopy::Inventory() { return tree_.Inventory(); }

absl::Status RemoteCopy::ChangeTree(std::span<const NamespaceOp> operations) {
  control::ChangeTreeRequest request;
  request.set_volume(UuidBytes(terms_.volume));
  request.set_token(token_);
  size_t bytes = 0;
  const auto flush = [&]() -> absl::Status {
    const absl::Status status = client_.ChangeTree(request, kCallTimeout).status();
    request.clear_operations();
    bytes = 0;
    return status;
  };
  std::vector<std::byte> encoded;
  for (const NamespaceOp& op : operations) {
    encoded.clear();
    Encode(op, encoded);
    request.add_operations(encoded.data(), encoded.size());
    bytes += encoded.size();
    if (bytes >= kMaxBatchBytes || static_cast<size_t>(request.operations_size()) >= kMaxBatch) {
      if (absl::Status status = flush(); !status.ok()) {
        return status;
      }
    }
  }
  return request.operations_size() == 0 ? absl::OkStatus() : flush();
}

absl::Status RemoteCopy::AdoptMount(uint64_t operation) {
  control::AdoptMountRequest request;
  request.set_volume(UuidBytes(terms_.volume));
  request.set_token(token_);
  request.set_operation(operation);
  return client_.AdoptMount(request, kCallTimeout).status();
}

absl::StatusOr<recovery::BlockChecksums> RemoteCopy::Checksums(FileId file, Extent extent, uint32_t block) {
  return checksums_.Checksums(file, extent, block);
}

absl::Status RemoteCopy::End() {
  control::EndResyncRequest request;
  request.set_volume(UuidBytes(terms_.volume));
  request.set_token(token_);
  return client_.EndResync(request, kCallTimeout).status();
}

}  // namespace pmirror::fs
