// SPDX-License-Identifier: BSD-3-Clause
// Looking at pages until each of them is judged.
#include "recovery/page_proof.h"

#include <algorithm>
#include <optional>
#include <utility>

namespace pmirror::recovery {
namespace {

// What one attempt at a page saw. Checksums are absent beyond the end of the file.
using Sum = std::optional<BlockSum>;
enum class Sight { kEqual, kProvenDifferent, kUnclear };

// The table of docs/internals/verify.md.
Sight Judge(Sum first, bool dirty, Sum copy, Sum second) {
  if (copy == first || copy == second) {
    return Sight::kEqual;
  }
  return !dirty && first == second ? Sight::kProvenDifferent : Sight::kUnclear;
}

Sum At(const BlockChecksums& checksums, size_t index) {
  return index < checksums.sums.size() ? Sum(checksums.sums[index]) : std::nullopt;
}

class Settling {
 public:
  Settling(ChecksumSource& original, ChecksumSource& copy, PendingStores& pending, FileId file, Extent extent)
      : original_(original), copy_(copy), pending_(pending), file_(file), extent_(extent) {}

  absl::StatusOr<SettledRange> Run(int attempts) {
    absl::Status status = FindSuspects();
    for (int attempt = 0; status.ok() && !missing_there_ && !suspects_.empty() && attempt < attempts;
         ++attempt) {
      status = Attempt();
    }
    if (status.ok() && missing_there_) {
      return SettleMissing();
    }
    if (absl::IsNotFound(status)) {
      return SettledRange{};  // removed meanwhile
    }
    if (!status.ok()) {
      return status;
    }
    for (const Suspect& suspect : suspects_) {
      settled_.busy.push_back(suspect.page);
    }
    std::sort(settled_.different.begin(), settled_.different.end(),
              [](const Extent& a, const Extent& b) { return a.offset < b.offset; });
    return std::move(settled_);
  }

 private:
  struct Suspect {
    Extent page;
    int proofs = 0;
  };

  // kNotFound: the original is gone.
  absl::Status FindSuspects() {
    if (absl::Status status = pending_.Flush(file_, extent_); !status.ok()) {
      return status;
    }
    const absl::StatusOr<BlockChecksums> left = original_.Checksums(file_, extent_, kVerifyPage);
    if (!left.ok()) {
      return left.status();
    }
    const absl::StatusOr<BlockChecksums> right = AskCopy(extent_);
    if (right.ok()) {
      for (const Extent& page : BlocksThatDiffer(*left, *right, extent_, kVerifyPage)) {
        suspects_.push_back({page});
      }
    }
    return right.status();
  }

  // Where it has no such file, that is noted, and the answer is empty.
  absl::StatusOr<BlockChecksums> AskCopy(Extent extent) {
    absl::StatusOr<BlockChecksums> sums = copy_.Checksums(file_, extent, kVerifyPage);
    missing_there_ = absl::IsNotFound(sums.status());
    return missing_there_ ? BlockChecksums{} : std::move(sums);
  }

  // One look at all suspects, in the order of the argument.
  absl::Status Attempt() {
    const Extent hull{suspects_.front().page.offset,
                      suspects_.back().page.end() - suspects_.front().page.offset};
    std::vector<Extent> pages;
    for (const Suspect& suspect : suspects_) {
      pages.push_back(suspect.page);
    }
    if (absl::Status status = pending_.Flush(file_, hull); !status.ok()) {
      return status;
    }
    const absl::StatusOr<BlockChecksums> first = original_.Checksums(file_, hull, kVerifyPage);
    if (!first.ok()) {
      return first.status();
    }
    const absl::StatusOr<std::vector<bool>> dirty = pending_.Dirty(file_, pages);
    if (!dirty.ok()) {
      return dirty.status();
    }
    const absl::StatusOr<BlockChecksums> copy = AskCopy(hull);
    if (!copy.ok() || missing_there_) {
      return copy.status();
    }
    const absl::StatusOr<BlockChecksums> second = original_.Checksums(file_, hull, kVerifyPage);
    if (!second.ok()) {
      return second.status();
    }
    std::vector<Suspect> left;
    for (size_t i = 0; i < suspects_.size(); ++i) {
      const size_t at = (pages[i].offset - hull.offset) / kVerifyPage;
      const Sight sight = Judge(At(*first, at), (*dirty)[i], At(*copy, at), At(*second, at));
      const int proofs = sight == Sight::kProvenDifferent ? suspects_[i].proofs + 1 : 0;
      if (proofs == kVerifyProofs) {
        settled_.different.push_back(pages[i]);
      } else if (sight != Sight::kEqual) {
        left.push_back({pages[i], proofs});
      }
    }
    suspects_ = std::move(left);
    return absl::OkStatus();
  }

  // A file that is here after the copy had none, although no change of the tree was on its way before, is missing there. Stores to it do not matter.
  absl::StatusOr<SettledRange> SettleMissing() {
    const absl::StatusOr<std::vector<bool>> tree = pending_.Dirty(file_, {});
    if (!tree.ok()) {
      return tree.status();
    }
    const absl::StatusOr<BlockChecksums> right = AskCopy(extent_);
    const absl::StatusOr<BlockChecksums> left = original_.Checksums(file_, extent_, kVerifyPage);
    if (absl::IsNotFound(left.status()) || (right.ok() && !missing_there_)) {
      return SettledRange{};  // it has gone, or just come: then the next look compares what it holds
    }
    if (!right.ok() || !left.ok()) {
      return left.ok() ? right.status() : left.status();
    }
    return SettledRange{.different = {}, .busy = {}, .missing = true};
  }

  ChecksumSource& original_;
  ChecksumSource& copy_;
  PendingStores& pending_;
  const FileId file_;
  const Extent extent_;
  bool missing_there_ = false;     // the copy has no such file
  std::vector<Suspect> suspects_;  // in the order of their places
  SettledRange settled_;
};

}  // namespace

std::vector<Extent> BlocksThatDiffer(const BlockChecksums& left, const BlockChecksums& right, Extent extent,
                                     uint32_t block) {
  std::vector<Extent> differing;
  for (size_t i = 0; i < std::max(left.sums.size(), right.sums.size()); ++i) {
    if (At(left, i) != At(right, i)) {
      const uint64_t at = extent.offset + i * uint64_t{block};
      differing.push_back({at, std::min<uint64_t>(block, extent.end() - at)});
    }
  }
  return differing;
}

absl::StatusOr<SettledRange> SettleRange(ChecksumSource& original, ChecksumSource& copy,
                                         PendingStores& pending, FileId file, Extent extent, int attempts) {
  return Settling(original, copy, pending, file, extent).Run(attempts);
}

}  // namespace pmirror::recovery
