// SPDX-License-Identifier: BSD-3-Clause
// The two passes of Verify: a fast one beside traffic, and a careful one over what it found.
#include "recovery/verifier.h"

#include <algorithm>
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
      for (const Extent& block : BlocksThatDiffer(*left, *right, chunk, kVerifyBlock)) {
        suspects_.push_back({file.id, &file.path, block});
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
    const absl::StatusOr<SettledRange> settled =
        SettleRange(original_, copy_, freezer_, suspect.file, suspect.extent, kVerifyAttempts);
    if (!settled.ok()) {
      return settled.status();
    }
    if (settled->missing) {
      result_.differences.push_back({*suspect.path, What::kMissing, {}});
    }
    for (const Extent& page : settled->different) {
      Append(result_.differences, *suspect.path, page);
    }
    for (const Extent& page : settled->busy) {
      Append(result_.busy, *suspect.path, page);
    }
    return absl::OkStatus();
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
