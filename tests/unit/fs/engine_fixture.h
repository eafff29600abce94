// SPDX-License-Identifier: BSD-3-Clause
// For tests of the engine of a primary: an engine against replicas that do what a script says, and short ways to use it.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "fs/volume_replicator.h"
#include "tests/unit/replication/fake_replica.h"

namespace pmirror::fs {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;
using std::chrono::seconds;

inline constexpr FileId kFile{(uint64_t{1} << 40) + 5};

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
    engine_->BeginWrite(file_.get());
    EXPECT_EQ(::pwrite(backing_.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset)),
              static_cast<ssize_t>(bytes.size()));
    const int error = engine_->Written(*file_, {offset, bytes.size()});
    engine_->EndWrite(file_.get());
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

}  // namespace pmirror::fs
