// SPDX-License-Identifier: BSD-3-Clause
// Programs that map and sync, under the preload library: what reaches the replica, and that calls answer as
// on a plain file.
#include <algorithm>

#include "tests/unit/interpose/preload_fixture.h"

namespace pmirror::interpose {
namespace {

using local::RequestKind;

class PreloadMaps : public PreloadTest {};

TEST_F(PreloadMaps, MsyncSendsTheDirtyPageAlone) {
  std::atomic<uint64_t> payload{0};
  daemon_->replica().SetScript([&](const FakeReplica::Frame& frame) {
    payload += frame.payload.size();
    return FakeReplica::Answer{};
  });
  Run("store_and_msync");
  EXPECT_EQ(ReplicatedAt(3 * kPage + 100, 5), "hello");
  ExpectEqualCopies();
  EXPECT_EQ(DataFrames(), 1u);
  EXPECT_EQ(payload, kPage);
  ASSERT_EQ(daemon_->Count(RequestKind::kMapped), 1u);
}

TEST_F(PreloadMaps, MappingIsTrackedAndWritable) {
  bool tracked = false;
  daemon_->OnRequest(RequestKind::kMapped, [&](pid_t, const local::Request& request) {
    tracked = request.writable == 1 && request.tracked == static_cast<uint32_t>(Tracking::kWritten) &&
              request.length == 8 * kPage && request.offset == 0;
  });
  Run("store_and_msync");
  EXPECT_TRUE(tracked);
}

TEST_F(PreloadMaps, WithoutTrackingTheWholeRangeIsSent) {
  Start({.tracking = Tracking::kNone});
  Run("through_another_mapping");
  ExpectEqualCopies();
}

TEST_F(PreloadMaps, PresentTrackingSendsWhatWasStored) {
  Start({.tracking = Tracking::kWrittenPresent});
  Run("store_and_msync");
  EXPECT_EQ(ReplicatedAt(3 * kPage + 100, 5), "hello");
}

TEST_F(PreloadMaps, FsyncCoversMappings) {
  Run("store_and_fsync");
  EXPECT_EQ(ReplicatedAt(kPage, 5), "fsync");
  EXPECT_EQ(ReplicatedAt(2 * kPage, 9), "fdatasync");
  EXPECT_EQ(ReplicatedAt(3 * kPage, 15), "sync_file_range");
}

TEST_F(PreloadMaps, SyncfsAndSyncCoverMappingsAndAskForTheRest) {
  Run("store_and_syncfs");
  EXPECT_EQ(ReplicatedAt(0, 6), "syncfs");
  EXPECT_EQ(ReplicatedAt(kPage, 4), "sync");
  EXPECT_EQ(daemon_->Count(RequestKind::kSyncVolume), 2u);
}

TEST_F(PreloadMaps, MsyncCoversStoresThroughAnotherMapping) {
  Run("through_another_mapping");
  ExpectEqualCopies();
}

TEST_F(PreloadMaps, MmapErrorsAreThoseOfTheManualPage) { Run("mmap_errors"); }

TEST_F(PreloadMaps, MsyncErrorsAreThoseOfTheManualPage) {
  auto guest = Launch("msync_errors");
  guest->Expect("nothing yet");
  EXPECT_EQ(DataFrames(), 0u);
  guest->Continue();
  ExpectSuccess(*guest);
  EXPECT_EQ(ReplicatedAt(2 * kPage, 1), "c");
}

TEST_F(PreloadMaps, FixedAddressesAndHintsAreHonoured) {
  Run("fixed_and_hints");
  EXPECT_EQ(ReplicatedAt(3 * kPage, 21), "at offset three pages");
  EXPECT_EQ(ReplicatedAt(0, 14), "at offset zero");
}

TEST_F(PreloadMaps, PopulatedMappingIsTracked) {
  Run("populate");
  ExpectEqualCopies();
}

TEST_F(PreloadMaps, MapSyncAnswersAsTheBackingFileSystem) { Run("map_sync"); }

TEST_F(PreloadMaps, GigabyteOfHolesSendsOnePage) {
  Start({}, (size_t{1} << 30) / kPage);
  daemon_->replica().KeepImages(false);
  std::atomic<uint64_t> payload{0};
  daemon_->replica().SetScript([&](const FakeReplica::Frame& frame) {
    payload += frame.payload.size();
    return FakeReplica::Answer{};
  });
  Run("sparse_gigabyte");
  EXPECT_EQ(payload, kPage);
}

TEST_F(PreloadMaps, AddressSpaceBeyondTheFileCostsNothing) {
  Run("terabyte_of_address_space");
  ExpectEqualCopies();
}

TEST_F(PreloadMaps, PagesBeyondTheFormerEndAreSynced) {
  Run("grow_then_store");
  EXPECT_EQ(ReplicatedAt(50 * kPage, 1), "g");
}

TEST_F(PreloadMaps, StoresMadeByTheKernelAreSynced) {
  Run("read_into_mapping");
  ExpectEqualCopies();
  EXPECT_NE(ReplicatedAt(2 * kPage, 5), std::string(5, '\0'));
}

TEST_F(PreloadMaps, MoreDirtyRangesThanTheListHoldsAreAllSent) {
  Start({}, 17000);
  daemon_->replica().SetWindow(256 << 10);  // credit
  Run("many_dirty_pages");
  ExpectEqualCopies();
}

TEST_F(PreloadMaps, Trap3FailedMsyncLeavesItsPagesDirty) {
  daemon_->replica().SetScript([](const FakeReplica::Frame&) {
    return FakeReplica::Answer{FakeReplica::Reaction::kRefuse, RefusalCode::kNoSpace};
  });
  auto guest = Launch("failing_msync");
  guest->Expect("failed");
  EXPECT_EQ(ReplicatedAt(kPage, 4), std::string(4, '\0'));
  daemon_->replica().SetScript(nullptr);
  guest->Continue();
  ExpectSuccess(*guest);
  EXPECT_EQ(ReplicatedAt(kPage, 10), "kept dirty");
}

TEST_F(PreloadMaps, Trap4SharedFileAsksTheDaemonForOthersStores) {
  auto guest = Launch("tell_after_mmap");
  guest->Expect("mapped");
  daemon_->SetFileFlags("file", kFileShared);
  Extent asked;
  daemon_->OnRequest(RequestKind::kSyncOthers, [&](pid_t, const local::Request& request) {
    asked = {request.offset, request.length};
  });
  guest->Continue();
  ExpectSuccess(*guest);
  EXPECT_EQ(asked, (Extent{0, 8 * kPage}));
}

TEST_F(PreloadMaps, Trap4FailureOfTheDaemonFailsTheSync) {
  auto guest = Launch("tell_after_mmap");
  guest->Expect("mapped");
  daemon_->SetFileFlags("file", kFileDaemonDirty);
  daemon_->Refuse(RequestKind::kSyncOthers, EIO);
  guest->Continue();
  EXPECT_NE(guest->Wait(), 0);
}

TEST_F(PreloadMaps, Trap8HolesAndAdviceReachTheReplica) {
  Run("holes_and_advice");
  EXPECT_EQ(ReplicatedAt(kPage, 3), std::string(3, '\0'));
  EXPECT_EQ(ReplicatedAt(3 * kPage, 2), "df");
  ExpectEqualCopies();
}

TEST_F(PreloadMaps, LostConnectionIsAbsorbed) {
  std::atomic<int> frames{0};
  daemon_->replica().SetScript([&](const FakeReplica::Frame&) {
    return FakeReplica::Answer{frames++ == 0 ? FakeReplica::Reaction::kCut : FakeReplica::Reaction::kApply};
  });
  Run("store_and_msync");
  EXPECT_EQ(ReplicatedAt(3 * kPage + 100, 5), "hello");
  EXPECT_EQ(daemon_->replica().connects(), 2u);
}

TEST_F(PreloadMaps, RefusedBackingFileRefusesMmap) {
  daemon_->Refuse(RequestKind::kOpenBacking, EBUSY);
  auto guest = Launch("store_and_msync");
  EXPECT_NE(guest->Wait(), 0);
  EXPECT_NE(guest->complaints().find("errno 16"), std::string::npos) << guest->complaints();
}

TEST_F(PreloadMaps, PartialMunmapHandsOverAndKeepsTheRest) {
  auto guest = Launch("partial_munmap");
  guest->Expect("unmapped");
  EXPECT_EQ(daemon_->HandedOver(), (std::vector<Extent>{{3 * kPage, kPage}}));
  ASSERT_EQ(daemon_->Mappings().size(), 2u);
  guest->Continue();
  guest->Expect("all");
  EXPECT_TRUE(daemon_->Mappings().empty());
  EXPECT_EQ(daemon_->Count(RequestKind::kCloseBacking), 1u);
  EXPECT_EQ(ReplicatedAt(5 * kPage, 12), "still mapped");
  guest->Continue();
  ExpectSuccess(*guest);
}

TEST_F(PreloadMaps, ShrinkingHandsOverTheTail) {
  auto guest = Launch("shrink");
  guest->Expect("shrunk");
  EXPECT_EQ(daemon_->HandedOver(), (std::vector<Extent>{{6 * kPage, kPage}}));
  guest->Continue();
  ExpectSuccess(*guest);
  EXPECT_EQ(ReplicatedAt(kPage, 5), "after");
}

TEST_F(PreloadMaps, GrowingInPlaceKeepsWhatWasDirty) {
  Run("grow_in_place");
  EXPECT_EQ(ReplicatedAt(kPage, 6), "before");
  EXPECT_EQ(ReplicatedAt(7 * kPage, 15), "in the new part");
}

TEST_F(PreloadMaps, Trap6MovedMappingIsTrackedAgain) {
  Run("move_by_mremap");
  const std::vector<Extent> handed = daemon_->HandedOver();
  EXPECT_NE(std::find(handed.begin(), handed.end(), Extent{kPage, kPage}), handed.end());
  EXPECT_EQ(ReplicatedAt(4 * kPage, 14), "after the move");
  EXPECT_EQ(ReplicatedAt(3 * kPage, 13), "at the target");
  EXPECT_EQ(ReplicatedAt(kPage + 100, 16), "through the copy");
}

TEST_F(PreloadMaps, Trap6MapFixedOverHandsOver) {
  auto guest = Launch("map_fixed_over");
  guest->Expect("over");
  EXPECT_EQ(daemon_->HandedOver(), (std::vector<Extent>{{2 * kPage, kPage}}));
  guest->Continue();
  ExpectSuccess(*guest);
  EXPECT_EQ(ReplicatedAt(3 * kPage, 11), "in the file");
  EXPECT_EQ(daemon_->Replicated("file").find("not in the file"), std::string::npos);
}

TEST_F(PreloadMaps, Trap8StoresAfterMprotectAreSynced) {
  Run("protect_to_writable");
  EXPECT_EQ(ReplicatedAt(kPage, 14), "after mprotect");
}

TEST_F(PreloadMaps, SyncAllocatesNothing) {
  auto guest = Launch("no_allocation", {"PMEM_IS_PMEM_FORCE=1"});
  ExpectSuccess(*guest);
  ExpectEqualCopies();
}

TEST_F(PreloadMaps, FootprintIsSmall) { Run("small_footprint"); }

TEST_F(PreloadMaps, NoThreadIsMade) { Run("no_thread"); }

TEST_F(PreloadMaps, WithoutDaemonEverythingIsPlain) {
  GuestProcess guest("store_and_msync", file_, {"PMIRROR_SOCKET=/nonexistent"});
  ExpectSuccess(guest);
  EXPECT_EQ(At(daemon_->Content("file"), 3 * kPage + 100, 5), "hello");
}

TEST_F(PreloadMaps, FilesElsewhereAreLeftAlone) {
  Run("nothing_mapped");
  EXPECT_EQ(daemon_->Count(RequestKind::kOpenBacking), 0u);
}

}  // namespace
}  // namespace pmirror::interpose
