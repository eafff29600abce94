// SPDX-License-Identifier: BSD-3-Clause
// What the daemon finds in the page table and the tickets of a program. The program's part is played by this process: its own page map, and a ticket table
// that the test fills. Programs that are stopped or dead: client_program_test.cc.
#include "fs/foreign_capture.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <atomic>
#include <random>
#include <thread>

#include "fs/client_mappings.h"
#include "fs/ticket_reader.h"
#include "replication/write_tracker.h"
#include "tests/unit/fs/client_test_volume.h"
#include "tests/unit/fs/local_client.h"

namespace pmirror::fs {
namespace {

constexpr uint64_t kPage = kPageSize;
constexpr size_t kPages = 16;
constexpr Extent kWhole{0, kPages* kPage};

class ForeignCaptureTest : public ::testing::Test {
 protected:
  void SetUp() override {
    file_ = volume_.MakeFile("f", kPages);
    absl::StatusOr<SharedMemory> table =
        SharedMemory::Receive(UniqueFd(::dup(tickets_.fd())), sizeof(TicketTable));
    ASSERT_TRUE(table.ok());
    process_ = std::make_shared<ClientProcess>(
        ClientProcess::Identity{.serial = kSerial, .pid = ::getpid(), .uid = 0, .command = "test"},
        UniqueFd(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC)), *std::move(table));
    FileSystem::DirectAnswer answer =
        volume_.file_system().AcquireDirect(file_, true, Deadline::After(std::chrono::seconds(20)));
    ASSERT_TRUE(answer.lease.has_value());
    lease_ = std::make_shared<LeasedFile>(*std::move(answer.lease), true);
    process_->Change()->leases[{0, file_}] = lease_;
    ASSERT_TRUE(processes_.Add(process_));
  }
  void TearDown() override {
    if (map_ != nullptr) {
      ::munmap(map_, kPages * kPage);
    }
    process_->Change()->mappings.RemoveAll();
    process_->Change()->leases.clear();
  }

  // Maps the file and tells so. False: this kernel does not track.
  bool Map(Tracking tracking, bool protect = true) {
    Result<WriteTracker> tracker = WriteTracker::Open();
    if (!tracker.ok()) {
      return false;
    }
    tracker_ = std::move(tracker).value();
    map_ = static_cast<char*>(
        ::mmap(nullptr, kPages * kPage, PROT_READ | PROT_WRITE, MAP_SHARED, lease_->descriptor.get(), 0));
    EXPECT_NE(map_, MAP_FAILED);
    const auto start = reinterpret_cast<uintptr_t>(map_);
    if (protect) {
      EXPECT_TRUE(tracker_.Register(start, kPages * kPage, Tracking::kWritten).ok());
      EXPECT_TRUE(ProtectAll(process_->pagemap(), Tracking::kWritten, start, start + kPages * kPage).ok());
    }
    Tell(tracking);
    return true;
  }
  void Tell(Tracking tracking) {
    process_->Change()->mappings.Add({.address = reinterpret_cast<uintptr_t>(map_),
                                      .length = kPages * kPage,
                                      .offset = 0,
                                      .writable = true,
                                      .tracking = tracking,
                                      .key = {0, file_},
                                      .file = lease_});
  }
  std::vector<Extent> Take(Extent range = kWhole, ProcessSerial except = ProcessSerial::kNone) {
    ExtentSet dirty;
    stores_.Take(file_, range, except, dirty);
    return dirty.extents();
  }

  static constexpr ProcessSerial kSerial{5};
  ClientTable processes_;
  TestVolume volume_{"v0", processes_};
  LocalTickets tickets_;
  ForeignCapture stores_{processes_, 0};
  FileId file_{};
  std::shared_ptr<ClientProcess> process_;
  std::shared_ptr<LeasedFile> lease_;
  WriteTracker tracker_;
  char* map_ = nullptr;
};

using Extents = std::vector<Extent>;

TEST_F(ForeignCaptureTest, Trap4StoredPagesAreTakenOnceAndProtectedAgain) {
  if (!Map(Tracking::kWritten)) {
    GTEST_SKIP() << "this kernel does not track";
  }
  EXPECT_FALSE(stores_.Any(file_, kWhole));
  map_[3 * kPage] = 'x';
  map_[4 * kPage] = 'x';
  EXPECT_TRUE(stores_.Any(file_, kWhole));
  EXPECT_TRUE(stores_.Any(file_, {4 * kPage + 50, 1}));
  EXPECT_FALSE(stores_.Any(file_, {5 * kPage, kPage}));
  EXPECT_EQ(Take(kWhole, kSerial), Extents{}) << "its own";
  EXPECT_EQ(Take({3 * kPage + 8, 100}), (Extents{{3 * kPage + 8, 100}})) << "clipped";
  map_[3 * kPage] = 'y';
  EXPECT_EQ(Take(), (Extents{{3 * kPage, 2 * kPage}}));
  EXPECT_EQ(Take(), Extents{});
  EXPECT_FALSE(stores_.Any(file_, kWhole));
}

TEST_F(ForeignCaptureTest, WhatCannotBeScannedIsAllDirty) {
  if (!Map(Tracking::kNone)) {
    GTEST_SKIP() << "this kernel does not track";
  }
  EXPECT_EQ(Take({kPage, 3 * kPage}), (Extents{{kPage, 3 * kPage}})) << "nothing is proven";
  process_->Change()->mappings.RemoveAll();
  ::munmap(map_, kPages * kPage);
  ASSERT_TRUE(Map(Tracking::kWritten, /*protect=*/false));
  EXPECT_EQ(Take(), Extents{kWhole}) << "told to be tracked, and is not";
  EXPECT_TRUE(stores_.Any(file_, kWhole));
}

TEST_F(ForeignCaptureTest, OnlyPagesThatTheFileHasAreLookedAt) {
  if (!Map(Tracking::kNone)) {
    GTEST_SKIP() << "this kernel does not track";
  }
  ASSERT_EQ(::ftruncate(lease_->descriptor.get(), 2 * kPage + 1), 0);
  EXPECT_EQ(Take(), (Extents{{0, 3 * kPage}}));
}

TEST_F(ForeignCaptureTest, HolesOfALongRangeAreNotTakenForStores) {
  if (!Map(Tracking::kNone)) {
    GTEST_SKIP() << "this kernel does not track";
  }
  constexpr uint64_t kHole = 8 * kPage;
  ASSERT_EQ(::ftruncate(lease_->descriptor.get(), 4 * kPage), 0);
  ASSERT_EQ(::ftruncate(lease_->descriptor.get(), kPages * kPage), 0);
  map_[kHole + 4 * kPage] = 'x';
  EXPECT_EQ(Take(), (Extents{{0, 4 * kPage}, {kHole + 4 * kPage, kPage}}));
}

TEST_F(ForeignCaptureTest, Trap4OpenAndRedoTicketsAreTaken) {
  tickets_.Put(0, TicketState::kOpen, 0, file_, {kPage, kPage});
  tickets_.Put(700, TicketState::kRedo, 0, file_, {5 * kPage, 10});
  tickets_.Put(1023, TicketState::kRedo, 0, file_, {15 * kPage, 4 * kPage});
  tickets_.Put(1, TicketState::kRedo, 1, file_, {8 * kPage, kPage});       // of another volume
  tickets_.Put(2, TicketState::kRedo, 0, FileId{77}, {9 * kPage, kPage});  // of another file
  tickets_.Put(3, TicketState::kOpen, 0, file_, {0, 0});                   // holds nothing
  EXPECT_EQ(Take(), (Extents{{kPage, kPage}, {5 * kPage, 10}, {15 * kPage, kPage}}));
  EXPECT_EQ(Take(), (Extents{{kPage, kPage}, {5 * kPage, 10}, {15 * kPage, kPage}}))
      << "they are the owner's to clear";
  EXPECT_TRUE(stores_.Any(file_, kWhole));
  EXPECT_FALSE(stores_.Any(file_, {8 * kPage, kPage}));
  EXPECT_EQ(Take(kWhole, kSerial), Extents{});
}

TEST_F(ForeignCaptureTest, TicketsOfAFileThatTheProcessMayNotWriteAreNobodys) {
  const FileId other = volume_.MakeFile("other", 1);
  tickets_.Put(0, TicketState::kRedo, 0, other, {0, kPage});
  ExtentSet dirty;
  stores_.Take(other, kWhole, ProcessSerial::kNone, dirty);
  EXPECT_TRUE(dirty.empty());
}

TEST_F(ForeignCaptureTest, AProcessThatHasGivenUpHasAllDirtyThatItMapped) {
  if (!Map(Tracking::kWritten)) {
    GTEST_SKIP() << "this kernel does not track";
  }
  EXPECT_EQ(Take(), Extents{});
  tickets_->abandoned = 1;
  EXPECT_EQ(Take(), Extents{kWhole});
  EXPECT_TRUE(stores_.Any(file_, kWhole));
}

TEST_F(ForeignCaptureTest, ATableFullOfGarbageDoesNoHarmAndClaimsOnlyWhatWasAskedFor) {
  std::mt19937_64 random(3);
  for (int round = 0; round < 20; ++round) {
    auto* words = reinterpret_cast<uint64_t*>(&*tickets_);
    for (size_t i = 0; i < sizeof(TicketTable) / sizeof(uint64_t); ++i) {
      words[i] = random();
    }
    for (size_t slot = 0; slot < kMaxTickets; slot += 7) {  // some of them about the file
      tickets_->tickets[slot].volume = 0;
      tickets_->tickets[slot].file = Raw(file_);
    }
    for (const Extent& extent : Take({kPage, 4 * kPage})) {
      EXPECT_GE(extent.offset, kPage);
      EXPECT_LE(extent.end(), 5 * kPage);
    }
    stores_.Any(file_, kWhole);
  }
  EXPECT_EQ(SaneExtent(UINT64_MAX, UINT64_MAX), Extent{});
  EXPECT_EQ(SaneExtent(10, UINT64_MAX).end(), kMaxFileBytes);
}

TEST_F(ForeignCaptureTest, ATableThatNeverHoldsStillCountsAsDirty) {
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    while (!stop) {
      tickets_->next_serial.fetch_add(1);
    }
  });
  const Deadline deadline = Deadline::After(std::chrono::seconds(20));
  bool whole = false;
  while (!whole && !deadline.Expired()) {
    whole = Take() == Extents{kWhole};
  }
  stop = true;
  writer.join();
  EXPECT_TRUE(whole);
  EXPECT_EQ(Take(), Extents{});
}

// A range that goes from ticket to ticket, as a capture that fails again and again does, is in each look at the table.
TEST_F(ForeignCaptureTest, Trap3ARangeThatMovesBetweenTicketsIsNeverMissed) {
  std::atomic<bool> stop{false};
  tickets_.Put(900, TicketState::kRedo, 0, file_, {kPage, kPage});
  std::thread owner([&] {
    size_t from = 900;
    for (size_t step = 0; !stop; ++step) {
      const size_t to = step % 2 == 0 ? 10 : 900;
      // As TicketLog does it: a new ticket, which becomes a redo range; then the old one goes, under a serial.
      tickets_.Put(to, TicketState::kOpen, 0, file_, {kPage, kPage});
      tickets_->tickets[to].state = static_cast<uint32_t>(TicketState::kRedo);
      tickets_->next_serial.fetch_add(1);
      tickets_->tickets[from].state = static_cast<uint32_t>(TicketState::kFree);
      from = to;
      if (step % 64 == 0) {
        std::this_thread::yield();
      }
    }
  });
  for (int i = 0; i < 3000; ++i) {
    ExtentSet dirty;
    stores_.Take(file_, kWhole, ProcessSerial::kNone, dirty);
    ASSERT_TRUE(dirty.Overlaps({kPage, kPage})) << "look " << i;
    ASSERT_TRUE(stores_.Any(file_, kWhole));
  }
  stop = true;
  owner.join();
}

TEST(ClientMappings, CuttingAMappingLeavesBothEndsAtTheirPlaceInTheFile) {
  ClientMappings mappings;
  const FileKey key{1, FileId{9}};
  mappings.Add({.address = 10 * kPage,
                .length = 10 * kPage,
                .offset = 100 * kPage,
                .writable = true,
                .key = key,
                .file = {}});
  mappings.Add({.address = 20 * kPage, .length = kPage, .offset = 0, .key = {0, FileId{9}}, .file = {}});
  const std::vector<ClientMapping> removed = mappings.Remove(13 * kPage, 15 * kPage);
  ASSERT_EQ(removed.size(), 1U);
  EXPECT_EQ(removed[0].extent(), (Extent{103 * kPage, 2 * kPage}));
  const std::vector<ClientMapping> left = mappings.Within(0, UINTPTR_MAX);
  ASSERT_EQ(left.size(), 3U);
  EXPECT_EQ(left[0].extent(), (Extent{100 * kPage, 3 * kPage}));
  EXPECT_EQ(left[1].extent(), (Extent{105 * kPage, 5 * kPage}));
  EXPECT_EQ(left[1].address, 15 * kPage);
  EXPECT_EQ(mappings.Of(key).size(), 2U);
  EXPECT_EQ(mappings.Remove(14 * kPage, 21 * kPage).size(), 2U);
  EXPECT_FALSE(mappings.MapsAnyOf(0));
  EXPECT_TRUE(mappings.MapsAnyOf(1));
  EXPECT_TRUE(mappings.MapsWritable(key));
  EXPECT_EQ(mappings.RemoveAll().size(), 1U);
  EXPECT_FALSE(mappings.MapsWritable(key));
  EXPECT_EQ(mappings.size(), 0U);
}

}  // namespace
}  // namespace pmirror::fs
