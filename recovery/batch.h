// SPDX-License-Identifier: BSD-3-Clause
// What a replica that trails is sent: the operations on the tree and the bytes between two cuts, as one thing that is applied as a whole
// (docs/internals/rpo.md). Of what was captured several times only the newest bytes are in it.
//
// The builder is fed in the order of the captures' and operations' numbers. Values; not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "replication/frame.h"
#include "replication/namespace_op.h"
#include "replication/types.h"

namespace pmirror::recovery {

class BatchBuilder {
 public:
  using Operation = std::shared_ptr<const std::vector<std::byte>>;  // encoded

  // A capture: the bytes of the ranges, one after the other.
  void Lay(FileId file, std::span<const WireRange> ranges,
           std::shared_ptr<const std::vector<std::byte>> payload);
  // The next operation, which the volume's log has as `number`. What it erases of the captures before it goes.
  void Append(uint64_t number, Operation encoded, const NamespaceOp& op);
  // In place of its operations. Requires: they come before all captures.
  void Restart(uint64_t first, std::vector<Operation> operations);
  // What a later builder holds, on top.
  void Lay(const BatchBuilder& later);

  bool empty() const { return operations_.empty() && files_.empty(); }
  uint64_t bytes() const { return bytes_; }  // of payload

  struct Identity {
    uint64_t number = 0;  // of the batch, from 1 in each mount
    uint64_t mount_number = 0;
    uint64_t cut_at = 0;  // CLOCK_REALTIME nanoseconds
  };
  std::vector<std::byte> Encode(const Identity& identity) const;

 private:
  struct Piece {
    uint64_t end = 0;
    std::shared_ptr<const std::vector<std::byte>> bytes;
    size_t at = 0;  // in `bytes`
  };
  using Pieces = std::map<uint64_t, Piece>;  // by offset; they do not overlap
  struct File {
    Pieces pieces;
    uint64_t reach = 0;  // how long the captures have made it: a hole may have been punched at its end since
  };

  void Erase(Pieces& pieces, Extent extent);
  void Put(Pieces& pieces, Extent extent, const Piece& piece);
  void EraseWhatItDoes(const NamespaceOp& op);
  void NoteWhoMayBeGone(const NamespaceOp& op);

  std::map<FileId, File> files_;
  std::set<FileId> perhaps_gone_;  // lost a name in this batch
  std::vector<Operation> operations_;
  uint64_t first_operation_ = 0;
  uint64_t bytes_ = 0;
};

// An encoded batch, checked; refers to its bytes.
class BatchView {
 public:
  // kDataLoss: not a whole batch, or damaged.
  static absl::StatusOr<BatchView> Parse(std::span<const std::byte> bytes);

  const BatchBuilder::Identity& identity() const { return identity_; }
  uint64_t first_operation() const { return first_operation_; }
  const std::vector<std::span<const std::byte>>& operations() const { return operations_; }

  struct Data {
    FileId file{};
    bool perhaps_gone = false;  // an operation of the batch may have removed it
    uint64_t offset = 0;
    std::span<const std::byte> bytes;  // none: the file is at least `offset` bytes long
  };
  const std::vector<Data>& data() const { return data_; }  // by file and offset

 private:
  BatchBuilder::Identity identity_;
  uint64_t first_operation_ = 0;
  std::vector<std::span<const std::byte>> operations_;
  std::vector<Data> data_;
};

}  // namespace pmirror::recovery
