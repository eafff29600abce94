// SPDX-License-Identifier: BSD-3-Clause
// The engine of a primary against replicas that do what a script says: order, policies, what failures leave behind.
#include "fs/volume_replicator.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <latch>
#include <string>
#include <thread>
#include <vector>

#include "recovery/mark_map.h"
#include "tests/unit/replication/fake_replica.h"

namespace pmirror::fs {
namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;
using std::chrono::seconds;

constexpr FileId kFile{(uint64_t{1} << 40) + 5};

class SilentEvents : public EventSink {
 public:
  void Report(Severity, std::string_view, const Fields&) override {}
};

// Programs that have stored to one range.
class OneStore : public ForeignStores {
 public:
  void Take(FileId, Extent range, ProcessSerial except, ExtentSet& dirty) override {
    ++takes;
    if (except != owner && stored.Overlaps(range)) {
      dirty.Add(std::exchange(stored, {}));
    }
  }
  bool Any(FileId, Extent range) override { return stored.Overlaps(range); }
  uint64_t Syncs() const override { return 0; }

  ProcessSerial owner{7};
  Extent stored;
  int takes = 0;
};

// One replica with the way to it.
struct ReplicaUnderTest {
  explicit ReplicaUnderTest(const OperationLog& log)
      : session(std::move(DataSession::Create(replica)).value()), courier(log, *session, Epoch{1}) {}
  FakeReplica replica;
  std::unique_ptr<DataSession> session;
  OperationCourier courier;
};

class VolumeReplicatorTest : public testing::Test {
 protected:
  void Start(OnLoss on_loss, nanoseconds deadline, nanoseconds suspend = {}, size_t replicas = 1) {
    page_ = *VolumePageOwner::Create({.epoch = Epoch{1},
                                      .on_loss = on_loss,
                                      .replica_count = static_cast<uint32_t>(replicas),
                                      .deadline_ns = static_cast<uint64_t>(deadline.count()),
                                      .suspend_ns = static_cast<uint64_t>(suspend.count())});
    page_->SetMembers(static_cast<uint8_t>((1U << replicas) - 1), 0);
    staging_ = std::move(StagingPool::Create(2 << 20)).value();
    std::vector<ReplicaPath> paths;
    for (size_t i = 0; i < replicas; ++i) {
      replicas_.push_back(std::make_unique<ReplicaUnderTest>(log_));
      paths.push_back({replicas_.back()->session.get(), &replicas_.back()->courier});
    }
    options_.volume_name = "v0";
    options_.mount_number = 1;
    engine_ = std::make_unique<VolumeReplicator>(options_, *page_, log_, paths, *staging_, events_);
    engine_->UseForeignStores(&stores_);
    backing_.Reset(::memfd_create("backing", MFD_CLOEXEC));
    ASSERT_EQ(::ftruncate(backing_.get(), 8192), 0);
    file_ = std::static_pointer_cast<FileState>(engine_->Attach(kFile, backing_.get()));
  }
  FakeReplica& replica(size_t i = 0) { return replicas_[i]->replica; }

  int Write(uint64_t offset, const std::string& bytes) {
    engine_->BeginWrite();
    EXPECT_EQ(::pwrite(backing_.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset)),
              static_cast<ssize_t>(bytes.size()));
    const int error = engine_->Written(*file_, {offset, bytes.size()});
    engine_->EndWrite();
    return error;
  }
  int Sync() {
    return engine_->Sync(*file_, /*data_only=*/true, [] { return 0; });
  }
  int Unlink() {
    return engine_->Change([](NamespaceOp& op) {
      op.kind = OpKind::kUnlink;
      op.target = FileId{9};
      op.parent = FileId::kRoot;
      op.name = "name";
      return 0;
    });
  }
  int Truncate(uint64_t size) {
    return engine_->ChangeSize(*file_, [&](NamespaceOp& op) {
      EXPECT_EQ(file_->slot().size_generation.load() % 2, 1U) << "odd before the local change (R5)";
      EXPECT_EQ(::ftruncate(backing_.get(), static_cast<off_t>(size)), 0);
      op.kind = OpKind::kTruncate;
      op.target = kFile;
      op.extent = {size, 0};
      return 0;
    });
  }
  std::string Replicated(uint64_t offset, size_t length, size_t i = 0) {
    const std::vector<std::byte> image = replica(i).Image(kFile);
    std::string bytes;
    for (uint64_t at = offset; at < offset + length && at < image.size(); ++at) {
      bytes += static_cast<char>(image[at]);
    }
    return bytes;
  }
  static bool Eventually(const std::function<bool()>& condition) {
    const Deadline deadline = Deadline::After(seconds(20));
    while (!condition() && !deadline.Expired()) {
      std::this_thread::yield();
    }
    return condition();
  }
  bool flag() { return (file_->slot().flags.load() & kFileDaemonDirty) != 0; }

  VolumeReplicator::Options options_;
  SilentEvents events_;
  OneStore stores_;
  OperationLog log_;
  std::unique_ptr<VolumePageOwner> page_;
  std::unique_ptr<StagingPool> staging_;
  std::vector<std::unique_ptr<ReplicaUnderTest>> replicas_;
  std::unique_ptr<VolumeReplicator> engine_;
  UniqueFd backing_;
  std::shared_ptr<FileState> file_;
};

TEST_F(VolumeReplicatorTest, P1_AWriteAndAnOperationAreOnEveryReplicaWhenTheyReturn) {
  Start(OnLoss::kFail, seconds(20), {}, 2);
  ASSERT_EQ(Write(100, "bytes"), 0);
  ASSERT_EQ(Unlink(), 0);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(Replicated(100, 5, i), "bytes");
    EXPECT_EQ(replica(i).frames(FrameKind::kNamespaceOp), 1U);
    EXPECT_EQ(replica(i).faults(), 0U);
  }
}

TEST_F(VolumeReplicatorTest, ALocalChangeThatFailedSendsNothing) {
  Start(OnLoss::kFail, seconds(20));
  EXPECT_EQ(engine_->Change([](NamespaceOp&) { return ENOTEMPTY; }), ENOTEMPTY);
  EXPECT_EQ(log_.last(), 0U);
  EXPECT_EQ(engine_->ChangeSize(*file_, [](NamespaceOp&) { return EFBIG; }), EFBIG);
  EXPECT_EQ(file_->slot().size_generation.load() % 2, 0U);
  EXPECT_FALSE(flag());
}

TEST_F(VolumeReplicatorTest, AWrittenFileKeepsItsFlagUpUntilASyncHasMadeItDurable) {
  Start(OnLoss::kFail, seconds(20));
  ASSERT_EQ(Write(0, "x"), 0);
  EXPECT_TRUE(flag()) << "a program's msync has to ask the daemon for a barrier";
  ASSERT_EQ(Sync(), 0);
  EXPECT_FALSE(flag());
  EXPECT_EQ(engine_->counters().syncs, 1U);
}

TEST_F(VolumeReplicatorTest, Trap3_WhatAFailureLeftDirtyGoesWithTheNextSync) {
  Start(OnLoss::kFail, milliseconds(100));
  replica().SetConnectError(ECONNREFUSED);
  EXPECT_EQ(Write(0, "lost"), EIO);
  EXPECT_EQ(Unlink(), EIO);
  EXPECT_TRUE(file_->dirty());
  EXPECT_TRUE(flag());
  EXPECT_EQ(engine_->dirty_bytes(), 4U);
  EXPECT_EQ(Sync(), EIO) << "no success for free";
  replica().SetConnectError(0);
  ASSERT_EQ(Sync(), 0);
  EXPECT_EQ(Replicated(0, 4), "lost");
  EXPECT_EQ(replica().frames(FrameKind::kNamespaceOp), 1U) << "the operation went before it";
  EXPECT_FALSE(file_->dirty());
}

TEST_F(VolumeReplicatorTest, P3_WhatAFailureLeftDirtyComesOverByItselfWhenTheReplicaIsBack) {
  Start(OnLoss::kFail, milliseconds(100));
  engine_->Start();
  replica().SetConnectError(ECONNREFUSED);
  EXPECT_EQ(Write(0, "later"), EIO);
  replica().SetConnectError(0);
  ASSERT_TRUE(replicas_[0]->session->EnsureConnected(Deadline::After(seconds(20))).ok());
  engine_->Wake();
  EXPECT_TRUE(Eventually([&] { return engine_->dirty_bytes() == 0; }));
  EXPECT_EQ(Replicated(0, 5), "later");
}

TEST_F(VolumeReplicatorTest, P6_SuspendWaitsVisiblyAndGoesOn) {
  Start(OnLoss::kSuspend, milliseconds(20), seconds(60));
  replica().SetConnectError(ECONNREFUSED);
  std::thread writer([&] { EXPECT_EQ(Write(0, "patient"), 0); });
  EXPECT_TRUE(Eventually([&] { return engine_->counters().suspended != 0; }));
  replica().SetConnectError(0);
  writer.join();
  EXPECT_EQ(engine_->counters().suspended, 0U);
  EXPECT_EQ(Replicated(0, 7), "patient");
}

TEST_F(VolumeReplicatorTest, Trap8_ATruncateRaisesTheGenerationAndCapturesTheTailThatGrewIntoTheFile) {
  Start(OnLoss::kFail, seconds(20));
  ASSERT_EQ(Truncate(5000), 0);
  EXPECT_EQ(file_->slot().size_generation.load(), 2U);
  EXPECT_EQ(file_->size(), 5000U);
  // As a mapping can store behind the end: on tmpfs that becomes contents when the file grows.
  char* map =
      static_cast<char*>(::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, backing_.get(), 0));
  ASSERT_NE(map, MAP_FAILED);
  map[5001] = 'T';
  ASSERT_EQ(Truncate(8192), 0);
  EXPECT_EQ(Replicated(5001, 1), "T");
  ::munmap(map, 8192);
}

// R5: a sync with nothing to send is a barrier, and a barrier carries the truncate, too.
TEST_F(VolumeReplicatorTest, P1_ASyncThatBeginsBesideATruncateReturnsBehindIt) {
  Start(OnLoss::kFail, seconds(20));
  std::atomic<uint64_t> truncates_at_barrier{0};
  replica().SetScript([&](const FakeReplica::Frame& frame) {
    if (frame.kind() == FrameKind::kBarrier) {
      truncates_at_barrier = replica().frames(FrameKind::kNamespaceOp);
    }
    return FakeReplica::Answer{};
  });
  std::atomic<bool> returned{false};
  std::thread syncer;
  ASSERT_EQ(engine_->ChangeSize(*file_,
                                [&](NamespaceOp& op) {
                                  EXPECT_EQ(::ftruncate(backing_.get(), 4096), 0);
                                  syncer = std::thread([&] {
                                    EXPECT_EQ(engine_->SyncOthers(*file_, {0, 4096}, stores_.owner), 0);
                                    returned = true;
                                  });
                                  const Deadline deadline = Deadline::After(milliseconds(200));
                                  while (!returned && !deadline.Expired()) {
                                    std::this_thread::yield();
                                  }
                                  EXPECT_FALSE(returned) << "what it has to cover is not in the log yet";
                                  op.kind = OpKind::kTruncate;
                                  op.target = kFile;
                                  op.extent = {4096, 0};
                                  return 0;
                                }),
            0);
  syncer.join();
  EXPECT_EQ(truncates_at_barrier, 1U);
}

TEST_F(VolumeReplicatorTest, Trap5_ASyncTakesOverWhatProgramsStored) {
  Start(OnLoss::kFail, seconds(20));
  ASSERT_EQ(::pwrite(backing_.get(), "mapped", 6, 4096), 6);
  stores_.stored = {4096, 6};
  ASSERT_EQ(Sync(), 0);
  EXPECT_EQ(Replicated(4096, 6), "mapped");
}

TEST_F(VolumeReplicatorTest, Trap4_WhoAsksForOthersStoresSendsItsOwnItself) {
  Start(OnLoss::kFail, seconds(20));
  stores_.stored = {0, 8};
  ASSERT_EQ(engine_->SyncOthers(*file_, {0, 4096}, stores_.owner), 0);
  EXPECT_FALSE(stores_.stored.empty());
  ASSERT_EQ(engine_->SyncOthers(*file_, {0, 4096}, ProcessSerial{8}), 0);
  EXPECT_TRUE(stores_.stored.empty());
}

TEST_F(VolumeReplicatorTest, Trap4_StoresTakenOverByASyncThatFailsStayDirtyHere) {
  Start(OnLoss::kFail, milliseconds(50));
  replica().SetConnectError(ECONNREFUSED);
  stores_.stored = {0, 8};
  EXPECT_EQ(engine_->SyncOthers(*file_, {0, 4096}, ProcessSerial::kNone), EIO);
  EXPECT_TRUE(engine_->Dirty(*file_, {0, 8}));
  EXPECT_TRUE(flag());
}

TEST_F(VolumeReplicatorTest, AFrozenVolumeTakesNoWriteAndNoChange) {
  Start(OnLoss::kFail, seconds(20));
  ASSERT_TRUE(engine_->gate().Freeze(seconds(20)));
  std::atomic<int> passed = 0;
  std::latch begun(2);
  std::thread writer([&] {
    begun.count_down();
    EXPECT_EQ(Write(0, "w"), 0);
    ++passed;
  });
  std::thread changer([&] {
    begun.count_down();
    EXPECT_EQ(Unlink(), 0);
    ++passed;
  });
  begun.wait();
  EXPECT_EQ(Sync(), 0) << "syncs go on";
  EXPECT_EQ(passed, 0);
  EXPECT_EQ(log_.last(), 0U);
  engine_->gate().Thaw();
  writer.join();
  changer.join();
  EXPECT_EQ(passed, 2);
}

TEST_F(VolumeReplicatorTest, AFileThatLeftTheVolumeLeavesNothingDirtyBehind) {
  Start(OnLoss::kFail, milliseconds(50));
  replica().SetConnectError(ECONNREFUSED);
  EXPECT_EQ(Write(0, "x"), EIO);
  EXPECT_NE(engine_->dirty_bytes(), 0U);
  EXPECT_EQ(engine_->Change([](NamespaceOp& op) {  // a memfd has no name: as after the last unlink
    op.kind = OpKind::kForgetOrphan;
    op.target = kFile;
    return 0;
  }),
            EIO);
  EXPECT_EQ(engine_->dirty_bytes(), 0U);
}

TEST_F(VolumeReplicatorTest, ACaptureThatFailsAfterItsFileLeftTheVolumeBringsNothingBack) {
  Start(OnLoss::kFail, milliseconds(400));
  replica().SetConnectError(ECONNREFUSED);
  std::thread writer([&] { EXPECT_EQ(Write(0, "x"), 0) << "nothing of it is missing anywhere"; });
  EXPECT_TRUE(Eventually([&] { return file_->DirtyIn({0, 1}); }));
  EXPECT_EQ(engine_->Change([](NamespaceOp& op) {
    op.kind = OpKind::kForgetOrphan;
    op.target = kFile;
    return 0;
  }),
            EIO);
  writer.join();
  EXPECT_FALSE(file_->DirtyIn({0, 1}));
  EXPECT_EQ(engine_->dirty_bytes(), 0U);
}

TEST_F(VolumeReplicatorTest, Trap8_TheTailOfAGrowthThatFailedIsKeptBeyondTheLastHandle) {
  Start(OnLoss::kFail, milliseconds(100));
  engine_->Start();
  ASSERT_EQ(Truncate(5000), 0);
  char* map =
      static_cast<char*>(::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, backing_.get(), 0));
  ASSERT_NE(map, MAP_FAILED);
  map[5001] = 'T';
  replica().SetConnectError(ECONNREFUSED);
  replica().CutNow();
  EXPECT_TRUE(Eventually([&] { return Truncate(8192) == EIO; }));  // once the cut is noticed
  file_.reset();
  EXPECT_NE(engine_->dirty_bytes(), 0U);
  replica().SetConnectError(0);
  ASSERT_TRUE(replicas_[0]->session->EnsureConnected(Deadline::After(seconds(20))).ok());
  EXPECT_TRUE(Eventually([&] { return engine_->dirty_bytes() == 0; }));
  EXPECT_EQ(Replicated(5001, 1), "T");
  ::munmap(map, 8192);
}

TEST_F(VolumeReplicatorTest, Trap4_ASyncOfTheVolumeAsksProgramsAlsoForFilesThatNoneHasMapped) {
  Start(OnLoss::kFail, seconds(20));
  stores_.stored = {0, 8};  // a capture under way in a program that has unmapped the file
  ASSERT_EQ(engine_->SyncAll(ProcessSerial::kNone), 0);
  EXPECT_TRUE(stores_.stored.empty());
}

TEST_F(VolumeReplicatorTest, AWriteIsCountedAsNotDurableOnlyWhenItHasArrived) {
  Start(OnLoss::kFail, seconds(20));
  std::atomic<bool> seen{false};
  replica().SetScript([&](const FakeReplica::Frame& frame) {
    if (frame.kind() == FrameKind::kDataImage) {
      seen = file_->durability_mark() == 0 &&
             flag();  // a barrier that begins now must not settle it, and programs ask meanwhile
    }
    return FakeReplica::Answer{};
  });
  ASSERT_EQ(Write(0, "x"), 0);
  EXPECT_TRUE(seen);
  EXPECT_EQ(file_->durability_mark(), 1U);
}

TEST_F(VolumeReplicatorTest, AFullLogIsMadeDurableAndGoesOn) {
  Start(OnLoss::kFail, seconds(20));
  for (size_t i = 0; i < OperationLog::kMaxOperations + 10; ++i) {
    ASSERT_EQ(Unlink(), 0) << i;
  }
  EXPECT_LE(log_.last() - log_.first() + 1, OperationLog::kMaxOperations);
  EXPECT_EQ(replica().frames(FrameKind::kNamespaceOp), OperationLog::kMaxOperations + 10);
}

// --- without redundancy ---

TEST_F(VolumeReplicatorTest, P6_UnderProceedEverythingSucceedsWithoutMembers) {
  Start(OnLoss::kProceed, seconds(20));
  page_->SetMembers(0, 0);
  EXPECT_EQ(Write(0, "alone"), 0);
  EXPECT_EQ(Unlink(), 0);
  EXPECT_EQ(Truncate(4096), 0);
  EXPECT_EQ(Sync(), 0);
  EXPECT_FALSE(file_->dirty());
  EXPECT_EQ(replica().connects(), 0U);
}

TEST_F(VolumeReplicatorTest, P4_AFencedVolumeSucceedsInNothingAlsoUnderProceedWithoutMembers) {
  Start(OnLoss::kProceed, seconds(20));
  page_->SetMembers(0, 0);
  ASSERT_TRUE(page_->SetState(VolumeState::kFenced));
  EXPECT_EQ(Write(0, "alone"), ESTALE);
  EXPECT_EQ(Unlink(), ESTALE);
  EXPECT_EQ(Sync(), ESTALE);
  EXPECT_FALSE(page_->SetState(VolumeState::kClosing)) << "no way back";
  EXPECT_EQ(Sync(), ESTALE);
}

TEST_F(VolumeReplicatorTest, P6_UnderProceedTheLogOfOperationsDoesNotFillUpWithoutMembers) {
  Start(OnLoss::kProceed, seconds(20));
  page_->SetMembers(0, 0);
  for (size_t i = 0; i < OperationLog::kMaxOperations + 10; ++i) {
    ASSERT_EQ(Unlink(), 0) << i;
  }
  EXPECT_GT(log_.first(), 1U) << "what was dropped, a comparison of the trees brings back";
}

TEST_F(VolumeReplicatorTest, P1_UnderSuspendNothingSucceedsWithoutMembers) {
  Start(OnLoss::kSuspend, milliseconds(50), milliseconds(50));
  page_->SetMembers(0, 0);
  EXPECT_EQ(Write(0, "alone"), EIO);
  EXPECT_EQ(Unlink(), EIO);
}

TEST_F(VolumeReplicatorTest, Trap16_AnOperationThatWaitsIsSentToWhoJoinsMeanwhile) {
  Start(OnLoss::kSuspend, seconds(20), seconds(20));
  page_->SetMembers(0, 0);
  std::thread caller([&] { EXPECT_EQ(Unlink(), 0); });
  page_->SetMembers(0, 1);
  EXPECT_TRUE(Eventually([&] { return replica().frames(FrameKind::kNamespaceOp) == 1; }));
  page_->SetMembers(1, 0);
  caller.join();
}

// --- marks ---

class MarkedVolumeTest : public VolumeReplicatorTest {
 protected:
  void SetUp() override {
    char name[] = "/tmp/pmirror-marks-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    directory_ = name;
    Open(1);
  }
  void TearDown() override {
    file_.reset();
    engine_.reset();
    marks_.reset();
    ::unlink((directory_ + "/marks").c_str());
    ::rmdir(directory_.c_str());
  }
  void Open(uint64_t mount_number) {
    marks_.reset();
    marks_ =
        std::move(recovery::MarkMap::Open(directory_ + "/marks",
                                          {.volume = {}, .generation = 5, .replicas = {"n2"}}, mount_number)
                      ->map);
    options_.marks = marks_.get();
    ASSERT_TRUE(marks_->Resynced(0, marks_->BeginSettle([](FileId) { return false; })).ok());
  }

  std::string directory_;
  std::unique_ptr<recovery::MarkMap> marks_;
};

TEST_F(MarkedVolumeTest, P3_AFileIsMarkedBeforeItsFirstStoreAndStaysSoWhileItIsOpen) {
  Start(OnLoss::kFail, seconds(20));
  EXPECT_TRUE(marks_->Marked(0).empty()) << "it is open for reading only";
  ASSERT_EQ(engine_->BeforeWriting(*file_), 0);
  EXPECT_EQ(marks_->Marked(0), std::vector<FileId>{kFile});
  ASSERT_TRUE(engine_->Resynced(0, engine_->BeginSettle()).ok());
  EXPECT_EQ(marks_->Marked(0), std::vector<FileId>{kFile}) << "stores may come at any time";
  file_.reset();
  ASSERT_TRUE(engine_->Resynced(0, engine_->BeginSettle()).ok());
  EXPECT_TRUE(marks_->Marked(0).empty());
}

TEST_F(MarkedVolumeTest, P3_AMarkIsDurableWhenTheFileIsOlderThanTheMount) {
  Start(OnLoss::kFail, seconds(20));
  const FileId older{(uint64_t{1} << 40) - 1};  // of mount 0
  const auto file = engine_->Attach(older, backing_.get());
  ASSERT_EQ(engine_->BeforeWriting(*file), 0);
  ASSERT_EQ(engine_->BeforeWriting(*file_), 0);  // of this mount: noted
  engine_->MarkedBytes(0);
  options_.marks = nullptr;
  engine_.reset();
  recovery::MarkMap* const abandoned = marks_.release();  // as a crash leaves it: not flushed
  const auto opened =
      recovery::MarkMap::Open(directory_ + "/marks", {.volume = {}, .generation = 5, .replicas = {"n2"}}, 2);
  EXPECT_EQ(opened->map->Marked(0), std::vector<FileId>{older});
  EXPECT_EQ(opened->map->base_mount(0), 1U) << "files made since mount 1 are in doubt by their ids";
  delete abandoned;
}

TEST_F(MarkedVolumeTest, BytesInDoubtAreThoseOfMarkedFilesOpenOrClosed) {
  Start(OnLoss::kProceed, seconds(20));
  page_->SetMembers(0, 0);
  EXPECT_EQ(engine_->MarkedBytes(0), 0U);
  ASSERT_EQ(engine_->BeforeWriting(*file_), 0);
  ASSERT_EQ(Write(8192, std::string(100, 'x')), 0);
  EXPECT_EQ(engine_->MarkedBytes(0), 8292U);
  file_.reset();
  EXPECT_EQ(engine_->MarkedBytes(0), 8292U);
}

TEST_F(MarkedVolumeTest, AReplicaOfWhichEverythingIsInDoubtDoesNotLookClean) {
  Start(OnLoss::kProceed, seconds(20));
  page_->SetMembers(0, 0);
  ASSERT_TRUE(marks_->MarkAll(0).ok());
  EXPECT_GT(engine_->MarkedBytes(0), 0U);
}

}  // namespace
}  // namespace pmirror::fs
