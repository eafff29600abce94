// SPDX-License-Identifier: BSD-3-Clause
// The order and the pace in which a background check goes once through the files of a volume (docs/internals/verify.md): pure, the caller
// reads, and has the clock. Not thread-safe.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "recovery/tree_item.h"
#include "replication/types.h"

namespace pmirror::recovery {

constexpr uint64_t kCheckStep = 1 << 20;  // bytes looked at between two rests
constexpr int kCheckRestShare = 9;  // a step that took so long is followed by a rest of so many times that

class CheckRound {
 public:
  struct Step {
    FileId file = FileId::kNone;
    std::string path;
    Extent extent;
  };

  // The regular files of `inventory` that carry an id and hold bytes, each once. `start`: any number; it says with which file the round
  // begins, so that a volume whose daemon never lives for a whole period is seen as a whole in the end.
  CheckRound(const Inventory& inventory, uint64_t start);

  // What is to be looked at next; nothing at the end of the round.
  std::optional<Step> Next();

  uint64_t bytes() const { return bytes_; }  // of the round

  // How long to rest after a step of so many bytes that took `worked`, so that the round takes `period`, and no more than a tenth of the time
  // is work whatever the period.
  std::chrono::nanoseconds RestAfter(uint64_t step_bytes, std::chrono::nanoseconds worked,
                                     std::chrono::nanoseconds period) const;

 private:
  struct File {
    FileId id = FileId::kNone;
    std::string path;
    uint64_t size = 0;
  };
  std::vector<File> files_;
  size_t at_ = 0;        // in files_
  size_t left_ = 0;      // files of the round, that at `at_` included
  uint64_t offset_ = 0;  // in it
  uint64_t bytes_ = 0;
};

}  // namespace pmirror::recovery
