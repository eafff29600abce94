// SPDX-License-Identifier: BSD-3-Clause
// Verification against fakes: two copies in memory, and a program that stores, syncs and renames at chosen
// moments.
#include "recovery/verifier.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <functional>
#include <map>
#include <set>
#include <span>
#include <string>

namespace pmirror::recovery {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr FileId kFile{2};

// A volume in memory: the primary's bytes, the replica's, and which pages are stored and not yet
// acknowledged.
struct Volume {
  std::map<FileId, std::string> original, copy;
  std::set<std::pair<FileId, uint64_t>> dirty;
  bool frozen = false;
  bool reachable = true;
  int freezes = 0;
  int flushes = 0;
  // What programs do, called after each question to a side or to the freezer.
  std::function<void()> program = [] {};

  void Store(FileId file, uint64_t offset, char byte) {
    original[file].at(offset) = byte;
    dirty.emplace(file, offset / kVerifyPage);
  }
  // What a sync of everything does.
  void Sync(FileId file, Extent extent) {
    for (uint64_t page = extent.offset / kVerifyPage; page * kVerifyPage < extent.end(); ++page) {
      if (dirty.erase({file, page}) > 0) {
        const uint64_t at = page * kVerifyPage;
        const size_t length = std::min<size_t>(kVerifyPage, original[file].size() - at);
        copy[file].replace(at, length, original[file].substr(at, length));
      }
    }
  }
};

class FakeSide : public VerifySide {
 public:
  FakeSide(Volume& volume, std::map<FileId, std::string>& files) : volume_(volume), files_(files) {}

  absl::StatusOr<recovery::Inventory> Inventory() override {
    EXPECT_TRUE(volume_.frozen) << "names are compared at a frozen point";
    recovery::Inventory inventory;
    for (const auto& [id, bytes] : files_) {
      TreeItem item;
      item.path = "f" + std::to_string(Raw(id));
      item.id = id;
      item.mode = S_IFREG;
      item.size = bytes.size();
      inventory.push_back(item);
    }
    return inventory;
  }

  absl::StatusOr<BlockChecksums> Checksums(FileId file, Extent extent, uint32_t block) override {
    if (!volume_.reachable) {
      return absl::UnavailableError("cut");
    }
    const auto found = files_.find(file);
    if (found == files_.end()) {
      return absl::NotFoundError("gone");
    }
    BlockChecksums sums;
    sums.size = found->second.size();
    const std::span<const std::byte> bytes = std::as_bytes(std::span(found->second));
    const uint64_t end = std::min<uint64_t>(extent.end(), bytes.size());
    for (uint64_t at = extent.offset; at < end; at += block) {
      sums.sums.push_back(SumOf(bytes.subspan(at, std::min<uint64_t>(block, end - at))));
    }
    volume_.program();
    return sums;
  }

 private:
  Volume& volume_;
  std::map<FileId, std::string>& files_;
};

class FakeFreezer : public Freezer {
 public:
  explicit FakeFreezer(Volume& volume) : volume_(volume) {}
  absl::Status Freeze() override {
    EXPECT_FALSE(volume_.frozen);
    volume_.frozen = true;
    ++volume_.freezes;
    return absl::OkStatus();
  }
  void Thaw() override { volume_.frozen = false; }
  absl::Status Flush(FileId file, Extent extent) override {
    EXPECT_TRUE(volume_.frozen);
    ++volume_.flushes;
    if (volume_.original.count(file) == 0) {
      return absl::NotFoundError("gone");
    }
    volume_.Sync(file, extent);
    volume_.program();
    return absl::OkStatus();
  }
  absl::StatusOr<std::vector<bool>> Dirty(FileId file, std::span<const Extent> ranges) override {
    std::vector<bool> dirty;
    for (const Extent& range : ranges) {
      dirty.push_back(volume_.dirty.count({file, range.offset / kVerifyPage}) > 0);
    }
    volume_.program();
    return dirty;
  }

 private:
  Volume& volume_;
};

class VerifierTest : public ::testing::Test {
 protected:
  VerifierTest() { volume_.original[kFile] = volume_.copy[kFile] = std::string(3 * kVerifyBlock + 100, 'a'); }

  absl::StatusOr<VerifyResult> Run() {
    FakeSide original(volume_, volume_.original);
    FakeSide copy(volume_, volume_.copy);
    FakeFreezer freezer(volume_);
    absl::StatusOr<VerifyResult> result = Verify(original, copy, freezer, progress_);
    EXPECT_FALSE(volume_.frozen) << "left frozen";
    return result;
  }
  VerifyResult Result() {
    absl::StatusOr<VerifyResult> result = Run();
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *std::move(result) : VerifyResult{};
  }

  Volume volume_;
  VerifyProgress progress_;
};

TEST_F(VerifierTest, EqualCopiesAreEqualAndFrozenOnlyForTheNames) {
  const VerifyResult result = Result();
  EXPECT_THAT(result.differences, IsEmpty());
  EXPECT_THAT(result.busy, IsEmpty());
  EXPECT_EQ(result.files, 1u);
  EXPECT_EQ(result.bytes, 3 * kVerifyBlock + 100);
  EXPECT_EQ(volume_.freezes, 1);
}

TEST_F(VerifierTest, P5_AByteThatRottedOnTheCopyIsReportedByItsPage) {
  volume_.copy[kFile][kVerifyBlock + 5000] = 'x';
  EXPECT_THAT(Result().differences,
              ElementsAre(Difference{"f2", What::kData, {kVerifyBlock + kVerifyPage, kVerifyPage}}));
}

TEST_F(VerifierTest, P5_AByteThatRottedOnTheOriginalIsReportedToo) {
  volume_.original[kFile][0] = 'x';  // not through a store: nobody called it dirty
  EXPECT_THAT(Result().differences, ElementsAre(Difference{"f2", What::kData, {0, kVerifyPage}}));
}

TEST_F(VerifierTest, NeighbouringPagesAreOneRangeAndTheLastIsCutAtTheEnd) {
  std::string& bytes = volume_.copy[kFile];
  std::fill(bytes.begin() + 3 * kVerifyBlock - 2 * kVerifyPage, bytes.end(), 'x');
  EXPECT_THAT(Result().differences,
              ElementsAre(Difference{
                  "f2", What::kData, {3 * kVerifyBlock - 2 * kVerifyPage, 2 * kVerifyPage + 100}}));
}

TEST_F(VerifierTest, StoresThatNoSyncHasNamedAreSentAndNoDifference) {
  volume_.Store(kFile, 10, 'x');
  volume_.Store(kFile, 2 * kVerifyBlock, 'y');
  EXPECT_THAT(Result().differences, IsEmpty());
  EXPECT_GT(volume_.flushes, 0);
}

TEST_F(VerifierTest, AProgramThatStoresAllTheTimeIsNeverADifference) {
  char next = 'b';
  volume_.program = [&] { volume_.Store(kFile, 10, next = next == 'z' ? 'b' : static_cast<char>(next + 1)); };
  volume_.program();
  const VerifyResult result = Result();
  EXPECT_THAT(result.differences, IsEmpty());
  EXPECT_THAT(result.busy, ElementsAre(Difference{"f2", What::kData, {0, kVerifyPage}}));
}

TEST_F(VerifierTest, AProgramThatStoresAndSyncsAllTheTimeIsNeverADifference) {
  char next = 'b';
  int step = 0;
  volume_.program = [&] {
    if (++step % 2 == 0) {
      volume_.Sync(kFile, {0, kVerifyPage});
    } else {
      volume_.Store(kFile, 10, next = next == 'z' ? 'b' : static_cast<char>(next + 1));
    }
  };
  EXPECT_THAT(Result().differences, IsEmpty());
}

TEST_F(VerifierTest, AStoreThatIsSyncedBetweenTwoReadingsIsNoProof) {
  // The original is read new, then the copy old, then the sync makes both equal: every attempt looks
  // different and clean at its ends.
  int question = 0;
  volume_.program = [&] {
    if (volume_.frozen) {
      volume_.Sync(kFile, {0, kVerifyPage});
      if (++question < 40) {
        volume_.Store(kFile, 10, static_cast<char>('b' + question % 20));
      }
    } else {
      volume_.Store(kFile, 10, 'x');
    }
  };
  EXPECT_THAT(Result().differences, IsEmpty());
}

TEST_F(VerifierTest, ADifferenceBesideABusyPageIsStillFound) {
  volume_.program = [this] { volume_.Store(kFile, 10, volume_.original[kFile][10] == 'p' ? 'q' : 'p'); };
  volume_.copy[kFile][kVerifyPage + 1] = 'x';
  EXPECT_THAT(Result().differences, ElementsAre(Difference{"f2", What::kData, {kVerifyPage, kVerifyPage}}));
}

TEST_F(VerifierTest, AFileRemovedFromBothAfterTheFrozenPointIsNoDifference) {
  progress_ = [this](const char* phase, uint64_t, uint64_t) {
    if (std::string(phase) == "data") {
      volume_.original.erase(kFile);
      volume_.copy.erase(kFile);
    }
    return true;
  };
  EXPECT_THAT(Result().differences, IsEmpty());
}

TEST_F(VerifierTest, P5_AFileThatVanishedFromTheCopyAloneIsMissing) {
  progress_ = [this](const char* phase, uint64_t, uint64_t) {
    if (std::string(phase) == "data") {
      volume_.copy.erase(kFile);
    }
    return true;
  };
  EXPECT_THAT(Result().differences, ElementsAre(Difference{"f2", What::kMissing, {}}));
}

TEST_F(VerifierTest, NamesAndSizesAreDifferencesAndTheCommonPartIsCompared) {
  volume_.original[FileId{3}] = "new";
  volume_.copy[FileId{4}] = "old";
  volume_.copy[kFile].resize(100);
  volume_.copy[kFile][7] = 'x';
  EXPECT_THAT(Result().differences,
              ElementsAre(Difference{"f2", What::kSize, {}}, Difference{"f2", What::kData, {0, 100}},
                          Difference{"f3", What::kMissing, {}}, Difference{"f4", What::kExtra, {}}));
}

TEST_F(VerifierTest, ASideThatCannotBeReadIsAnErrorAndNoVerdict) {
  volume_.reachable = false;
  EXPECT_EQ(Run().status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(VerifierTest, GivingUpEndsItThawed) {
  progress_ = [](const char*, uint64_t done, uint64_t) { return done == 0; };
  volume_.original[FileId{3}] = volume_.copy[FileId{3}] = "x";
  EXPECT_EQ(Run().status().code(), absl::StatusCode::kCancelled);
}

}  // namespace
}  // namespace pmirror::recovery
