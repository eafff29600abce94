// SPDX-License-Identifier: BSD-3-Clause
// The two passes of Verify: a fast one beside traffic, and a careful one over what it found.
#include "recovery/verifier.h"

#include <algorithm>
#include <optional>
#include <utility>

namespace pmirror::recovery {
namespace {

// A block that differed at first sight.
struct Suspect {
  FileId file{};
  const std::string* path = nullptr;
  Extent extent;
};

class Frozen {
 public:
  explicit Frozen(Freezer& freezer) : freezer_(freezer), status_(freezer.Freeze()) {}
  ~Frozen() {
    if (status_.ok()) {
      freezer_.Thaw();
    }
  }
  Frozen(const Frozen&) = delete;
  Frozen& operator=(const Frozen&) = delete;
  const absl::Status& status() const { return status_; }

 private:
  Freezer& freezer_;
  absl::Status status_;
};

// What one attempt at a page saw. Checksums are absent beyond the end of the file.
using Sum = std::optional<BlockSum>;
enum class Sight { kEqual, kProvenDifferent, kUnclear };

// The table of the argument in verifier.h.
Sight Judge(Sum first, bool dirty, Sum copy, Sum second) {
  if (copy == first || copy == second) {
    return Sight::kEqual;
  }
  return !dirty && first == second ? Sight::kProvenDifferent : Sight::kUnclear;
}

class Verification {
 public:
  Verification(VerifySide& original, VerifySide& copy, Freezer& freezer, const VerifyProgress& progress)
      : original_(original), copy_(copy), freezer_(freezer), progress_(progress) {}

  absl::StatusOr<VerifyResult> Run() {
    if (absl::Status status = CompareNames(); !status.ok()) {
      return status;
    }
    for (const ComparableFile& file : files_) {
      if (absl::Status status = LookAt(file); !status.ok()) {
        return status;
      }
    }
    if (absl::Status status = Settle(); !status.ok()) {
      return status;
    }
    std::stable_sort(result_.differences.begin(), result_.differences.end(),
                     [](const Difference& a, const Difference& b) { return a.path < b.path; });
    return std::move(result_);
  }

 private:
  absl::Status Report(const char* phase, uint64_t done, uint64_t total) {
    return !progress_ || progress_(phase, done, total) ? absl::OkStatus()
                                                       : absl::CancelledError("verify was given up");
  }

  absl::Status CompareNames() {
    if (absl::Status status = Report("names", 0, 1); !status.ok()) {
      return status;
    }
    const Frozen frozen(freezer_);
    if (!frozen.status().ok()) {
      return frozen.status();
    }
    const absl::StatusOr<Inventory> original = original_.Inventory();
    if (!original.ok()) {
      return original.status();
    }
    const absl::StatusOr<Inventory> copy = copy_.Inventory();
    if (!copy.ok()) {
      return copy.status();
    }
    result_.differences = CompareTrees(*original, *copy);
    files_ = ComparableFiles(*original, *copy);
    for (const ComparableFile& file : files_) {
      total_ += file.size;
    }
    return absl::OkStatus();
  }

  // Compares a file without stopping anybody; what differs becomes a suspect.
  absl::Status LookAt(const ComparableFile& file) {
    ++result_.files;
    for (uint64_t offset = 0; offset < file.size; offset += kVerifyChunk) {
      const Extent chunk{offset, std::min(kVerifyChunk, file.size - offset)};
      if (absl::Status status = Report("data", result_.bytes, total_); !status.ok()) {
        return status;
      }
      const absl::StatusOr<BlockChecksums> left = original_.Checksums(file.id, chunk, kVerifyBlock);
      const absl::StatusOr<BlockChecksums> right = copy_.Checksums(file.id, chunk, kVerifyBlock);
      result_.bytes += chunk.length;
      if (absl::IsNotFound(left.status()) || absl::IsNotFound(right.status())) {
        // Removed since the frozen point, or lost: the second pass tells.
        suspects_.push_back(
            {file.id, &file.path, {chunk.offset, std::min<uint64_t>(kVerifyPage, chunk.length)}});
        continue;
      }
      if (!left.ok() || !right.ok()) {
        return left.ok() ? right.status() : left.status();
      }
      for (size_t i = 0; i < std::max(left->sums.size(), right->sums.size()); ++i) {
        if (At(*left, i) != At(*right, i)) {
          const uint64_t at = offset + i * kVerifyBlock;
          suspects_.push_back({file.id, &file.path, {at, std::min<uint64_t>(kVerifyBlock, file.size - at)}});
        }
      }
    }
    return absl::OkStatus();
  }

  absl::Status Settle() {
    for (size_t begin = 0; begin < suspects_.size(); begin += kVerifyBlocksPerFreeze) {
      if (absl::Status status = Report("settle", begin, suspects_.size()); !status.ok()) {
        return status;
      }
      const Frozen frozen(freezer_);
      if (!frozen.status().ok()) {
        return frozen.status();
      }
      const size_t end = std::min(suspects_.size(), begin + kVerifyBlocksPerFreeze);
      for (size_t i = begin; i < end; ++i) {
        if (absl::Status status = SettleBlock(suspects_[i]); !status.ok()) {
          return status;
        }
      }
    }
    return Report("done", 1, 1);
  }

  // Frozen from here on: a file that exists on one side only is a difference.
  absl::Status SettleBlock(const Suspect& suspect) {
    if (absl::Status status = freezer_.Flush(suspect.file, suspect.extent);
        !status.ok() && !absl::IsNotFound(status)) {
      return status;
    }
    const absl::StatusOr<BlockChecksums> left =
        original_.Checksums(suspect.file, suspect.extent, kVerifyPage);
    if (absl::IsNotFound(left.status())) {
      return absl::OkStatus();  // removed since
    }
    const absl::StatusOr<BlockChecksums> right = copy_.Checksums(suspect.file, suspect.extent, kVerifyPage);
    if (absl::IsNotFound(right.status())) {
      result_.differences.push_back({*suspect.path, What::kMissing, {}});
      return absl::OkStatus();
    }
    if (!left.ok() || !right.ok()) {
      return left.ok() ? right.status() : left.status();
    }
    for (size_t i = 0; i < std::max(left->sums.size(), right->sums.size()); ++i) {
      if (At(*left, i) == At(*right, i)) {
        continue;
      }
      const uint64_t at = suspect.extent.offset + i * kVerifyPage;
      const Extent page{at, std::min<uint64_t>(kVerifyPage, suspect.extent.end() - at)};
      if (absl::Status status = SettlePage(suspect, page); !status.ok()) {
        return status;
      }
    }
    return absl::OkStatus();
  }

  absl::Status SettlePage(const Suspect& suspect, Extent page) {
    int proofs = 0;
    for (int attempt = 0; attempt < kVerifyAttempts; ++attempt) {
      if (absl::Status status = freezer_.Flush(suspect.file, page); !status.ok()) {
        return status;
      }
      const absl::StatusOr<Sight> sight = Attempt(suspect.file, page);
      if (!sight.ok()) {
        return sight.status();
      }
      if (*sight == Sight::kEqual) {
        return absl::OkStatus();
      }
      proofs = *sight == Sight::kProvenDifferent ? proofs + 1 : 0;
      if (proofs == kVerifyProofs) {
        Append(result_.differences, *suspect.path, page);
        return absl::OkStatus();
      }
    }
    Append(result_.busy, *suspect.path, page);
    return absl::OkStatus();
  }

  absl::StatusOr<Sight> Attempt(FileId file, Extent page) {
    const absl::StatusOr<BlockChecksums> first = original_.Checksums(file, page, kVerifyPage);
    if (!first.ok()) {
      return first.status();
    }
    const absl::StatusOr<bool> dirty = freezer_.Dirty(file, page);
    if (!dirty.ok()) {
      return dirty.status();
    }
    const absl::StatusOr<BlockChecksums> copy = copy_.Checksums(file, page, kVerifyPage);
    if (!copy.ok()) {
      return copy.status();
    }
    const absl::StatusOr<BlockChecksums> second = original_.Checksums(file, page, kVerifyPage);
    if (!second.ok()) {
      return second.status();
    }
    return Judge(At(*first, 0), *dirty, At(*copy, 0), At(*second, 0));
  }

  static Sum At(const BlockChecksums& checksums, size_t index) {
    return index < checksums.sums.size() ? Sum(checksums.sums[index]) : std::nullopt;
  }

  // Neighbouring pages become one range.
  static void Append(std::vector<Difference>& list, const std::string& path, Extent page) {
    if (!list.empty() && list.back().what == What::kData && list.back().path == path &&
        list.back().extent.end() == page.offset) {
      list.back().extent.length += page.length;
    } else {
      list.push_back({path, What::kData, page});
    }
  }

  VerifySide& original_;
  VerifySide& copy_;
  Freezer& freezer_;
  const VerifyProgress& progress_;
  std::vector<ComparableFile> files_;  // not changed after CompareNames: suspects point into it
  std::vector<Suspect> suspects_;
  uint64_t total_ = 0;
  VerifyResult result_;
};

}  // namespace

absl::StatusOr<VerifyResult> Verify(VerifySide& original, VerifySide& copy, Freezer& freezer,
                                    const VerifyProgress& progress) {
  return Verification(original, copy, freezer, progress).Run();
}

}  // namespace pmirror::recovery
