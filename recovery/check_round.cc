// SPDX-License-Identifier: BSD-3-Clause
// See check_round.h.
#include "recovery/check_round.h"

#include <sys/stat.h>

#include <algorithm>
#include <set>

namespace pmirror::recovery {

CheckRound::CheckRound(const Inventory& inventory, uint64_t start) {
  std::set<FileId> seen;  // a file may have several names
  for (const TreeItem& item : inventory) {
    if (S_ISREG(item.mode) && item.id != FileId::kNone && item.size != 0 && seen.insert(item.id).second) {
      files_.push_back({item.id, item.path, item.size});
      bytes_ += item.size;
    }
  }
  left_ = files_.size();
  at_ = files_.empty() ? 0 : static_cast<size_t>(start % files_.size());
}

std::optional<CheckRound::Step> CheckRound::Next() {
  if (left_ == 0) {
    return std::nullopt;
  }
  const File& file = files_[at_];
  const Extent extent{offset_, std::min(kCheckStep, file.size - offset_)};
  offset_ += extent.length;
  Step step{file.id, file.path, extent};
  if (offset_ == file.size) {
    offset_ = 0;
    at_ = (at_ + 1) % files_.size();
    --left_;
  }
  return step;
}

std::chrono::nanoseconds CheckRound::RestAfter(uint64_t step_bytes, std::chrono::nanoseconds worked,
                                               std::chrono::nanoseconds period) const {
  const double share = bytes_ == 0 ? 1 : static_cast<double>(step_bytes) / static_cast<double>(bytes_);
  const std::chrono::nanoseconds due(static_cast<int64_t>(static_cast<double>(period.count()) * share));
  return std::max(due - worked, kCheckRestShare * worked);
}

}  // namespace pmirror::recovery
