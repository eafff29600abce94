// SPDX-License-Identifier: BSD-3-Clause
// The tracker on the real kernel: scratch files on tmpfs and on the file system of the temporary directory.
#include "replication/write_tracker.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <vector>

#include "replication/types.h"

namespace pmirror {
namespace {

constexpr size_t kPages = 64;
using Pages = std::vector<size_t>;

UniqueFd Directory(const char* path) { return UniqueFd(::open(path, O_DIRECTORY | O_RDONLY | O_CLOEXEC)); }

class WriteTrackerTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    Result<WriteTracker> tracker = WriteTracker::Open();
    if (!tracker.ok()) {
      GTEST_SKIP() << "this kernel does not track: errno " << tracker.error().code;
    }
    tracker_ = std::move(tracker).value();
    file_.Reset(::open(GetParam(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
    ASSERT_TRUE(file_.valid());
    ASSERT_EQ(::ftruncate(file_.get(), kPages * kPageSize), 0);
    map_ = Map();
    pagemap_.Reset(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
    ASSERT_TRUE(tracker_.Register(Address(0), kPages * kPageSize, Tracking::kWritten).ok());
    ASSERT_TRUE(ProtectAll(pagemap_.get(), Tracking::kWritten, Address(0), Address(kPages)).ok());
  }
  void TearDown() override {
    if (map_ != nullptr) {
      ::munmap(map_, kPages * kPageSize);
    }
  }
  char* Map() {
    void* map = ::mmap(nullptr, kPages * kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, file_.get(), 0);
    return map == MAP_FAILED ? nullptr : static_cast<char*>(map);
  }
  uintptr_t Address(size_t page) const { return reinterpret_cast<uintptr_t>(map_) + page * kPageSize; }
  void Store(size_t page) {
    volatile char* at = map_ + page * kPageSize + 5;
    *at = static_cast<char>(*at + 1);
  }

  // Pages written since the last call.
  Pages Scan(int pagemap = -1) {
    Pages pages;
    const Error scanned = ScanAndProtect(pagemap >= 0 ? pagemap : pagemap_.get(), Tracking::kWritten,
                                         Address(0), Address(kPages), [&](uintptr_t from, uintptr_t to) {
                                           for (uintptr_t at = from; at < to; at += kPageSize) {
                                             pages.push_back((at - Address(0)) / kPageSize);
                                           }
                                         });
    EXPECT_TRUE(scanned.ok()) << scanned.code;
    return pages;
  }

  WriteTracker tracker_;
  UniqueFd file_;
  UniqueFd pagemap_;
  char* map_ = nullptr;
};

TEST_P(WriteTrackerTest, FreshMappingIsClean) { EXPECT_EQ(Scan(), Pages{}); }

TEST_P(WriteTrackerTest, StoredPagesAreReportedOnce) {
  Store(3);
  Store(4);
  Store(40);
  EXPECT_EQ(Scan(), (Pages{3, 4, 40}));
  EXPECT_EQ(Scan(), Pages{});
  Store(4);
  EXPECT_EQ(Scan(), Pages{4});
}

TEST_P(WriteTrackerTest, LoadsAreNotReported) {
  EXPECT_EQ(map_[7 * kPageSize], 0);
  EXPECT_EQ(Scan(), Pages{});
}

TEST_P(WriteTrackerTest, MoreRangesThanOneStepHoldsAreAllReported) {
  constexpr size_t kMany = 1000;
  ASSERT_EQ(::ftruncate(file_.get(), kMany * kPageSize), 0);
  ::munmap(map_, kPages * kPageSize);
  map_ = static_cast<char*>(
      ::mmap(nullptr, kMany * kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, file_.get(), 0));
  ASSERT_TRUE(tracker_.Register(Address(0), kMany * kPageSize, Tracking::kWritten).ok());
  ASSERT_TRUE(ProtectAll(pagemap_.get(), Tracking::kWritten, Address(0), Address(kMany)).ok());
  for (size_t page = 0; page < kMany; page += 2) {
    Store(page);
  }
  size_t ranges = 0;
  EXPECT_TRUE(ScanAndProtect(pagemap_.get(), Tracking::kWritten, Address(0), Address(kMany),
                             [&](uintptr_t from, uintptr_t to) {
                               EXPECT_EQ(to - from, kPageSize);
                               ++ranges;
                             })
                  .ok());
  EXPECT_EQ(ranges, kMany / 2);
  ::munmap(map_ + kPages * kPageSize, (kMany - kPages) * kPageSize);
}

TEST_P(WriteTrackerTest, LookingWhetherAnyPageWasWrittenLeavesThemWritten) {
  const auto any = [&](size_t first, size_t past) {
    const Result<bool> written =
        AnyWritten(pagemap_.get(), Tracking::kWritten, Address(first), Address(past));
    EXPECT_TRUE(written.ok()) << written.error().code;
    return written.ok() && written.value();
  };
  EXPECT_FALSE(any(0, kPages));
  Store(7);
  Store(30);
  EXPECT_TRUE(any(0, kPages));
  EXPECT_TRUE(any(30, 31));
  EXPECT_FALSE(any(8, 30));
  EXPECT_EQ(Scan(), (Pages{7, 30}));
  EXPECT_FALSE(any(0, kPages));
  char* untracked = Map();
  const auto at = reinterpret_cast<uintptr_t>(untracked);
  EXPECT_EQ(AnyWritten(pagemap_.get(), Tracking::kWritten, at, at + kPageSize).error().code, EPERM);
  ::munmap(untracked, kPages * kPageSize);
}

TEST_P(WriteTrackerTest, PagesDroppedFromThePageTableAreRemembered) {
  Store(9);
  ASSERT_EQ(::madvise(map_, kPages * kPageSize, MADV_DONTNEED), 0);
  EXPECT_EQ(Scan(), Pages{9});
  ASSERT_EQ(::madvise(map_, kPages * kPageSize, MADV_DONTNEED), 0);
  EXPECT_EQ(Scan(), Pages{});
}

TEST_P(WriteTrackerTest, WritesOfTheKernelIntoTheMappingAreReported) {
  ASSERT_EQ(::pread(file_.get(), map_ + 11 * kPageSize, 10, 20 * kPageSize), 10);
  EXPECT_EQ(Scan(), Pages{11});
}

TEST_P(WriteTrackerTest, Trap6UntrackedMappingIsAnErrorAndNotClean) {
  char* other = Map();
  const auto at = reinterpret_cast<uintptr_t>(other);
  const Error scanned = ScanAndProtect(pagemap_.get(), Tracking::kWritten, at, at + kPages * kPageSize,
                                       [](uintptr_t, uintptr_t) {});
  EXPECT_EQ(scanned.code, EPERM);
  ::munmap(other, kPages * kPageSize);
}

TEST_P(WriteTrackerTest, StoresOfAnotherMappingAreNotReportedHere) {
  char* other = Map();
  other[5 * kPageSize] = 'x';
  EXPECT_EQ(Scan(), Pages{});
  ::munmap(other, kPages * kPageSize);
}

TEST_P(WriteTrackerTest, Trap4StoppedProcessIsScannedThroughItsPagemap) {
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  if (child == 0) {  // tracks its own mapping, stores, stops
    Result<WriteTracker> own = WriteTracker::Open();
    const UniqueFd pagemap(::open("/proc/self/pagemap", O_RDONLY));
    const bool good = own.ok() &&
                      own.value().Register(Address(0), kPages * kPageSize, Tracking::kWritten).ok() &&
                      ProtectAll(pagemap.get(), Tracking::kWritten, Address(0), Address(kPages)).ok();
    Store(21);
    if (!good || ::write(ready[1], "x", 1) != 1) {
      ::_exit(1);
    }
    ::raise(SIGSTOP);
    Store(22);
    ::raise(SIGSTOP);
    ::_exit(0);
  }
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  const UniqueFd pagemap(::open(("/proc/" + std::to_string(child) + "/pagemap").c_str(), O_RDONLY));
  ASSERT_TRUE(pagemap.valid());
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, WUNTRACED), child);
  ASSERT_TRUE(WIFSTOPPED(status));
  EXPECT_EQ(Scan(pagemap.get()), Pages{21});
  ::kill(child, SIGCONT);
  ASSERT_EQ(::waitpid(child, &status, WUNTRACED), child);
  EXPECT_EQ(Scan(pagemap.get()), Pages{22});  // protected again by the foreign scan
  ::kill(child, SIGKILL);
  ::waitpid(child, &status, 0);
  ::close(ready[0]);
  ::close(ready[1]);
}

INSTANTIATE_TEST_SUITE_P(FileSystems, WriteTrackerTest, ::testing::Values("/dev/shm", "/tmp"));

TEST(ProveFileSystem, Trap13PageCacheIsProvenWithWrittenAlone) {
  if (!WriteTracker::Open().ok()) {
    GTEST_SKIP() << "this kernel does not track";
  }
  for (const char* path : {"/dev/shm", "/tmp"}) {
    EXPECT_EQ(ProveFileSystem(Directory(path).get(), Deadline::After(std::chrono::seconds(30))),
              Tracking::kWritten)
        << path;
  }
}

TEST(ProveFileSystem, Trap13NothingIsProvenWhereNoFileCanBeMade) {
  EXPECT_EQ(ProveFileSystem(Directory("/proc").get(), Deadline::After(std::chrono::seconds(30))),
            Tracking::kNone);
}

TEST(ProveFileSystem, Trap13NothingIsProvenAfterTheDeadline) {
  EXPECT_EQ(ProveFileSystem(Directory("/dev/shm").get(), Deadline::After(std::chrono::nanoseconds(0))),
            Tracking::kNone);
}

TEST(ProveFileSystem, NoScratchFileIsLeft) {
  char name[] = "/dev/shm/pmirror-proof-XXXXXX";
  ASSERT_NE(::mkdtemp(name), nullptr);
  static_cast<void>(ProveFileSystem(Directory(name).get(), Deadline::After(std::chrono::seconds(30))));
  EXPECT_TRUE(std::filesystem::is_empty(name));
  std::filesystem::remove(name);
}

}  // namespace
}  // namespace pmirror
