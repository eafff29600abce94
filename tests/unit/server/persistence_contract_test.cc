// SPDX-License-Identifier: BSD-3-Clause
// The contract of persistence domains (persistence.h), the same for all of them, and what each does besides.
#include "server/persistence.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <atomic>
#include <random>
#include <thread>

#include "server/data_applier.h"
#include "tests/unit/server/temp_directory.h"
#include "tests/unit/server/tree.h"

namespace pmirror::server {
namespace {

struct Place {
  Domain domain;
  const char* parent;  // of the backing directory
  bool force_pmem;
};

class PersistenceContract : public testing::TestWithParam<Place> {
 protected:
  void SetUp() override {
    ::setenv("PMEM_IS_PMEM_FORCE", GetParam().force_pmem ? "1" : "0", 1);
    directory_ = std::make_unique<TempDirectory>(GetParam().parent);
    root_.Reset(::open(directory_->path().c_str(), O_RDONLY | O_DIRECTORY));
    domain_ = PersistenceDomain::Create(GetParam().domain, root_.get());
    ASSERT_EQ(domain_->kind(), GetParam().domain);
  }
  std::shared_ptr<BackingFile> Open(const std::string& name) {
    auto file = std::make_shared<BackingFile>(FileId{7});
    file->fd = std::make_shared<const UniqueFd>(::open((*directory_ / name).c_str(), O_RDWR | O_CREAT, 0600));
    EXPECT_TRUE(file->fd->valid());
    return file;
  }
  int Write(BackingFile& file, uint64_t offset, const std::string& bytes) {
    const std::lock_guard lock(file.mutex);
    EXPECT_EQ(::fallocate(file.fd->get(), FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                          static_cast<off_t>(bytes.size())),
              0);
    const ApplyPiece piece{offset, bytes.size(), 0};
    return domain_->Write(file, {&piece, 1}, std::as_bytes(std::span(bytes)));
  }

  std::unique_ptr<TempDirectory> directory_;
  UniqueFd root_;
  std::unique_ptr<PersistenceDomain> domain_;
};

TEST_P(PersistenceContract, BytesAndSizeAreSeenWhenWriteReturns) {
  const auto file = Open("f");
  std::mt19937 random(1);
  std::string expected;
  for (int i = 0; i < 300; ++i) {
    const uint64_t offset = random() % 9000;
    std::string bytes(1 + random() % 300, '\0');
    for (char& c : bytes) {
      c = static_cast<char>(random());
    }
    expected.resize(std::max<size_t>(expected.size(), offset + bytes.size()), '\0');
    expected.replace(offset, bytes.size(), bytes);
    ASSERT_EQ(Write(*file, offset, bytes), 0);
    ASSERT_EQ(file->size, expected.size());
  }
  EXPECT_EQ(ReadFile(*directory_ / "f"), expected);
}

TEST_P(PersistenceContract, EveryPieceIsWrittenFromItsPlaceInThePayload) {
  const auto file = Open("f");
  ASSERT_EQ(::ftruncate(file->fd->get(), 100), 0);
  file->size = 100;
  const std::string payload = "....abc..de";
  const std::vector<ApplyPiece> pieces = {{10, 3, 4}, {50, 2, 9}};
  const std::lock_guard lock(file->mutex);
  ASSERT_EQ(::fallocate(file->fd->get(), 0, 0, 100), 0);
  ASSERT_EQ(domain_->Write(*file, pieces, std::as_bytes(std::span(payload))), 0);
  std::string expected(100, '\0');
  expected.replace(10, 3, "abc").replace(50, 2, "de");
  EXPECT_EQ(ReadFile(*directory_ / "f"), expected);
}

TEST_P(PersistenceContract, BarriersSucceedWithNothingWithFilesAndWithTheTree) {
  EXPECT_EQ(domain_->Persist({}, false), 0);
  EXPECT_EQ(domain_->Persist({}, true), 0);
  const auto file = Open("f");
  ASSERT_EQ(Write(*file, 0, "abc"), 0);
  domain_->TreeChanged();
  EXPECT_EQ(domain_->Persist({&file, 1}, false), 0);
  EXPECT_EQ(domain_->Persist({&file, 1}, true), 0);
  EXPECT_EQ(domain_->PersistEverything(), 0);
  EXPECT_FALSE(file->sync.pending());
}

TEST_P(PersistenceContract, AFileThatWasRemovedOrIsClosedNeedsNoBarrier) {
  const auto file = Open("f");
  ASSERT_EQ(Write(*file, 0, "abc"), 0);
  file->removed = true;
  file->mapping.Unmap();
  file->fd.reset();
  EXPECT_EQ(domain_->Persist({&file, 1}, false), 0);
}

TEST_P(PersistenceContract, AFileGoesOnAfterItsSizeWasChanged) {
  const auto file = Open("f");
  ASSERT_EQ(Write(*file, 0, std::string(20000, 'x')), 0);
  {
    const std::lock_guard lock(file->mutex);
    ASSERT_EQ(::ftruncate(file->fd->get(), 0), 0);
    file->size = 0;
    domain_->SizeChanged(*file);
  }
  ASSERT_EQ(Write(*file, 10000, "y"), 0);
  EXPECT_EQ(ReadFile(*directory_ / "f"), std::string(10000, '\0') + "y");
}

INSTANTIATE_TEST_SUITE_P(
    Domains, PersistenceContract,
    testing::Values(Place{Domain::kVolatile, "/dev/shm", false}, Place{Domain::kFile, "/dev/shm", false},
                    Place{Domain::kFile, "/var/tmp", false}, Place{Domain::kPmem, "/dev/shm", true},
                    Place{Domain::kPmem, "/var/tmp", false}),  // no pmem there: falls back to fdatasync
    [](const auto& instance) {
      return std::string(instance.param.domain == Domain::kVolatile ? "Volatile"
                         : instance.param.domain == Domain::kFile   ? "File"
                                                                    : "Pmem") +
             (std::string(instance.param.parent) == "/dev/shm" ? "OnTmpfs" : "OnDisk");
    });

// P2: an observer of the file, as a power cut is one of persistent memory, sees each aligned word of a frame
// old or new.
class PmemPersistence : public PersistenceContract {};

TEST_P(PmemPersistence, P2AlignedWordsAreNeverTornForAReaderOfTheFile) {
  const auto file = Open("f");
  constexpr size_t kBytes = 4096;
  ASSERT_EQ(Write(*file, 0, std::string(kBytes, '\0')), 0);
  const void* mapped = ::mmap(nullptr, kBytes, PROT_READ, MAP_SHARED, file->fd->get(), 0);
  ASSERT_NE(mapped, MAP_FAILED);
  const auto* words = static_cast<const volatile uint64_t*>(mapped);
  std::atomic<bool> stop = false;
  std::atomic<uint64_t> torn = 0;
  std::thread reader([&] {
    while (!stop) {
      for (size_t i = 1; i + 2 < kBytes / 8; ++i) {
        const uint64_t word = words[i];
        torn += word != (word & 0xff) * 0x0101010101010101;
      }
    }
  });
  std::mt19937 random(5);
  // As in life the payload's pages are present: a fault in the middle of a copy may tear the word that it
  // meets.
  std::vector<std::byte> payload(2 * kBytes);
  for (int i = 0; i < 3000; ++i) {
    std::fill(payload.begin(), payload.end(), static_cast<std::byte>(1 + i % 200));
    // Odd beginnings and ends, in the first word and in the last but one: only those between count.
    const uint64_t from = random() % 8;
    const std::vector<ApplyPiece> pieces = {{from, kBytes - 8 - random() % 8 - from, random() % 64},
                                            {kBytes - 16, 16, 0}};
    const std::lock_guard lock(file->mutex);
    ASSERT_EQ(domain_->Write(*file, pieces, payload), 0);
  }
  stop = true;
  reader.join();
  ::munmap(const_cast<void*>(mapped), kBytes);
  EXPECT_EQ(torn, 0u);
}

INSTANTIATE_TEST_SUITE_P(OnTmpfs, PmemPersistence, testing::Values(Place{Domain::kPmem, "/dev/shm", true}));

// --- group commit ---

TEST(GroupSync, OneCallServesAllThatAskedBeforeItBegan) {
  GroupSync sync;
  std::atomic<int> calls = 0;
  std::atomic<int> asked = 0;
  constexpr int kThreads = 8;
  const auto make_durable = [&] {
    if (calls.fetch_add(1) == 0) {
      while (asked < kThreads) {  // the first call lasts until all have asked
        std::this_thread::yield();
      }
    }
    return 0;
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      sync.Changed();
      ++asked;
      EXPECT_EQ(sync.Sync(make_durable), 0);
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_LE(calls, 3);  // the first, one for those who changed after it began, and a late one
  EXPECT_FALSE(sync.pending());
}

TEST(GroupSync, NothingIsDoneWhenNothingChanged) {
  GroupSync sync;
  int calls = 0;
  const auto make_durable = [&] {
    ++calls;
    return 0;
  };
  EXPECT_EQ(sync.Sync(make_durable), 0);
  sync.Changed();
  EXPECT_EQ(sync.Sync(make_durable), 0);
  EXPECT_EQ(sync.Sync(make_durable), 0);
  EXPECT_EQ(calls, 1);
}

TEST(GroupSync, AFailureIsForEverBecauseTheKernelTellsItOnce) {
  GroupSync sync;
  sync.Changed();
  EXPECT_EQ(sync.Sync([] { return EIO; }), EIO);
  EXPECT_EQ(sync.Sync([] { return 0; }), EIO);
  sync.Changed();
  EXPECT_EQ(sync.Sync([] { return 0; }), EIO);
}

TEST(AllocatedRanges, JoinsWhatTouchesAndForgetsWhenItIsFull) {
  AllocatedRanges ranges;
  EXPECT_FALSE(ranges.Contains(0, 1));
  ranges.Add(0, 10);
  ranges.Add(20, 30);
  EXPECT_TRUE(ranges.Contains(0, 10));
  EXPECT_FALSE(ranges.Contains(5, 25));
  ranges.Add(10, 20);
  EXPECT_TRUE(ranges.Contains(0, 30));
  for (uint64_t i = 0; i <= AllocatedRanges::kMaxRanges; ++i) {
    ranges.Add(100 + 2 * i, 101 + 2 * i);
  }
  EXPECT_FALSE(ranges.Contains(0, 30));
  const uint64_t last = 100 + 2 * AllocatedRanges::kMaxRanges;
  EXPECT_TRUE(ranges.Contains(last, last + 1));
}

}  // namespace
}  // namespace pmirror::server
