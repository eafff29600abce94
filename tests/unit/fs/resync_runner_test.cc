// SPDX-License-Identifier: BSD-3-Clause
// A resync against a replica in memory, with real files here: what is done in which order, and what a failure leaves.
#include "fs/resync_runner.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "recovery/inventory.h"
#include "tests/unit/replication/fake_replica.h"

namespace pmirror::fs {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::ElementsAre;

constexpr uint64_t kMount = 3;
constexpr FileId kOld{(uint64_t{1} << 40) + 5};      // made in an earlier mount
constexpr FileId kNew{(kMount << 40) + 6};           // made in this one
constexpr FileId kSettled{(uint64_t{1} << 40) + 7};  // never in doubt

class SilentEvents : public EventSink {
 public:
  void Report(Severity, std::string_view, const Fields&) override {}
};

// The replica's control side; its data are FakeReplica's.
class FakePeer : public ResyncPeer {
 public:
  FakePeer(FakeReplica& replica, DataSession& session) : replica_(replica), session_(session) {}

  std::optional<uint64_t> TreeAsOf() override { return tree_as_of; }
  std::optional<uint64_t> FollowedMount() override { return followed; }
  absl::Status Begin() override { return Step("begin"); }
  absl::StatusOr<recovery::Inventory> Inventory() override {
    calls.push_back("inventory");
    recovery::TreeItem root;
    root.id = FileId::kRoot;
    root.mode = S_IFDIR | 0755;
    recovery::Inventory inventory{root};
    inventory.insert(inventory.end(), objects.begin(), objects.end());
    return inventory;
  }
  absl::Status ChangeTree(std::span<const NamespaceOp> operations) override {
    if (on_tree) {
      on_tree();
    }
    changes += operations.size();
    return Step("tree");
  }
  absl::Status AdoptMount(uint64_t) override { return Step("adopt"); }
  absl::Status Connect() override {
    const Error error = session_.EnsureConnected(Deadline::After(seconds(10)));
    return error.ok() ? Step("connect") : absl::UnavailableError("no connection");
  }
  absl::Status DeliverAll() override { return Step("deliver"); }
  absl::StatusOr<recovery::BlockChecksums> Checksums(FileId file, Extent extent, uint32_t block) override {
    if (on_compare) {
      on_compare(file);
    }
    compared.insert(file);
    if (file == unreadable) {
      return absl::UnknownError("a stale handle");
    }
    if (absl::Status status = Step("compare"); !status.ok()) {
      return status;
    }
    const UniqueFd copy(::memfd_create("copy", MFD_CLOEXEC));
    const std::vector<std::byte> image = replica_.Image(file);
    EXPECT_EQ(::pwrite(copy.get(), image.data(), image.size(), 0), static_cast<ssize_t>(image.size()));
    return recovery::ChecksumBlocks(copy.get(), extent, block);
  }
  absl::Status End() override { return Step("end"); }
  bool Alive() override { return alive; }
  bool GivenUp() override { return false; }

  absl::Status Step(const char* name) {
    if (calls.empty() || calls.back() != name) {
      calls.emplace_back(name);
    }
    return fail_at == name ? absl::FailedPreconditionError("as the test wants") : absl::OkStatus();
  }

  std::optional<uint64_t> tree_as_of = 0;
  std::optional<uint64_t> followed = kMount;
  recovery::Inventory objects;  // of its tree, beside the root
  std::function<void()> on_tree;
  std::function<void(FileId)> on_compare;
  FileId unreadable = FileId::kNone;
  bool alive = true;
  std::string fail_at;
  std::vector<std::string> calls;
  std::set<FileId> compared;
  size_t changes = 0;

 private:
  FakeReplica& replica_;
  DataSession& session_;
};

class ResyncRunnerTest : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/pmirror-resync-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    directory_ = name;
    ASSERT_EQ(::mkdir(Path("backing").c_str(), 0755), 0);
    const FileId root = FileId::kRoot;
    ASSERT_EQ(::setxattr(Path("backing").c_str(), recovery::kIdXattr, &root, sizeof root, 0), 0);
    root_.Reset(::open(Path("backing").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    page_ = *VolumePageOwner::Create(
        {.epoch = Epoch{1}, .on_loss = OnLoss::kProceed, .replica_count = 1, .deadline_ns = 2'000'000'000});
    set_ = std::make_unique<InSyncSet>(*page_);
    set_->Leave(0);
    staging_ = std::move(StagingPool::Create(2 << 20)).value();
    session_ = std::move(DataSession::Create(replica_)).value();
    courier_ = std::make_unique<OperationCourier>(log_, *session_, Epoch{1});
    marks_ = std::move(
        recovery::MarkMap::Open(Path("marks"), {.volume = {}, .generation = 5, .replicas = {"n2"}}, 1)->map);
    ASSERT_TRUE(marks_->Resynced(0, marks_->BeginSettle([](FileId) { return false; })).ok());
    for (uint64_t mount = 2; mount <= kMount; ++mount) {  // in which the replica was away
      marks_.reset();
      marks_ = std::move(
          recovery::MarkMap::Open(Path("marks"), {.volume = {}, .generation = 5, .replicas = {"n2"}}, mount)
              ->map);
    }
    const ReplicaPath path{session_.get(), courier_.get()};
    VolumeReplicator::Options options;
    options.volume_name = "v0";
    options.mount_number = kMount;
    options.marks = marks_.get();
    engine_ =
        std::make_unique<VolumeReplicator>(options, *page_, log_, std::span(&path, 1), *staging_, events_);
    runner_ = std::make_unique<ResyncRunner>(ResyncRunner::Options{.replica = 0,
                                                                   .backing_root = root_.get(),
                                                                   .deadline = seconds(2),
                                                                   .activity = [] { return uint64_t{0}; }},
                                             *engine_, *set_);
    peer_ = std::make_unique<FakePeer>(replica_, *session_);
  }
  void TearDown() override {
    runner_.reset();
    engine_.reset();
    marks_.reset();
    courier_.reset();
    session_.reset();
    std::filesystem::remove_all(directory_);
  }
  std::string Path(const std::string& name) const { return directory_ + "/" + name; }

  UniqueFd Make(const std::string& name, FileId id, const std::string& bytes) {
    UniqueFd fd(::open(Path("backing/" + name).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
    EXPECT_EQ(::fsetxattr(fd.get(), recovery::kIdXattr, &id, sizeof id, 0), 0);
    EXPECT_EQ(::pwrite(fd.get(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
    return fd;
  }
  std::string Replicated(FileId file) const {
    std::string bytes;
    for (const std::byte byte : replica_.Image(file)) {
      bytes += static_cast<char>(byte);
    }
    return bytes;
  }

  SilentEvents events_;
  OperationLog log_;
  std::string directory_;
  UniqueFd root_;
  FakeReplica replica_;
  std::unique_ptr<VolumePageOwner> page_;
  std::unique_ptr<InSyncSet> set_;
  std::unique_ptr<StagingPool> staging_;
  std::unique_ptr<DataSession> session_;
  std::unique_ptr<OperationCourier> courier_;
  std::unique_ptr<recovery::MarkMap> marks_;
  std::unique_ptr<VolumeReplicator> engine_;
  std::unique_ptr<ResyncRunner> runner_;
  std::unique_ptr<FakePeer> peer_;
  recovery::ResyncCounts counts_;
};

TEST_F(ResyncRunnerTest, P5_ABlankReplicaGetsTheTreeThenJoinsThenGetsTheDataAndThenCounts) {
  Make("file", kOld, "contents");
  peer_->tree_as_of.reset();
  peer_->followed.reset();
  peer_->on_compare = [&](FileId) {
    EXPECT_TRUE(set_->joiner(0)) << "every sync has to reach it before the first byte is compared";
    EXPECT_FALSE(set_->member(0));
  };
  ASSERT_TRUE(runner_->Run(*peer_, counts_).ok());
  EXPECT_THAT(peer_->calls, ElementsAre("begin", "inventory", "tree", "adopt", "connect", "deliver",
                                        "compare", "deliver", "end"))
      << "what has cut a file before it was compared has to be there as well";
  EXPECT_GT(peer_->changes, 0U);
  EXPECT_EQ(Replicated(kOld), "contents");
  EXPECT_TRUE(set_->member(0));
  EXPECT_FALSE(marks_->AllMarked(0));
  EXPECT_EQ(counts_.bytes_sent, 8U);
}

TEST_F(ResyncRunnerTest, OnlyWhatIsInDoubtIsCompared) {
  Make("settled", kSettled, "the same");
  ASSERT_TRUE(
      marks_->Resynced(0, marks_->BeginSettle([](FileId) { return false; })).ok());  // base: this mount
  const UniqueFd old = Make("old", kOld, "stored to");
  const UniqueFd made = Make("new", kNew, "made");
  for (const auto& [id, fd] : {std::pair(kOld, old.get()), std::pair(kNew, made.get())}) {
    ASSERT_EQ(engine_->BeforeWriting(*engine_->Attach(id, fd)), 0);
  }
  ASSERT_TRUE(runner_->Run(*peer_, counts_).ok());
  EXPECT_THAT(peer_->compared, ElementsAre(kOld, kNew));
  EXPECT_EQ(Replicated(kOld), "stored to");
  EXPECT_EQ(Replicated(kNew), "made");
  EXPECT_TRUE(marks_->Marked(0).empty());
}

TEST_F(ResyncRunnerTest, P3_FilesMadeInAMountThatCrashedAreInDoubtByTheirIds) {
  Make("old", kSettled, "older than what the replica followed");
  const FileId made{(uint64_t{2} << 40) + 1};  // in mount 2, which nobody settled
  Make("made", made, "made");
  ASSERT_EQ(marks_->base_mount(0), 1U);
  peer_->followed = 2;
  ASSERT_TRUE(runner_->Run(*peer_, counts_).ok());
  EXPECT_EQ(Replicated(made), "made");
}

// A power cut has taken back an unlink, and a truncate, that the replica had applied: here the file is as it was, with no mark.
TEST_F(ResyncRunnerTest, P5_AFileThatThePlanMakesOrCutsOnTheReplicaIsComparedAlthoughNothingMarksIt) {
  Make("unlinked", kOld, "there again");
  Make("truncated", kSettled, "as long as it was");
  ASSERT_TRUE(marks_->Resynced(0, marks_->BeginSettle([](FileId) { return false; })).ok());
  recovery::TreeItem cut;
  cut.path = "truncated";
  cut.id = kSettled;
  cut.mode = S_IFREG | 0644;
  peer_->objects.push_back(cut);
  peer_->tree_as_of.reset();
  peer_->on_tree = [&] {
    EXPECT_THAT(marks_->Marked(0), testing::UnorderedElementsAre(kOld, kSettled))
        << "a cut from here on has to leave them marked";
  };
  ASSERT_TRUE(runner_->Run(*peer_, counts_).ok());
  EXPECT_EQ(Replicated(kOld), "there again");
  EXPECT_EQ(Replicated(kSettled), "as long as it was");
  EXPECT_TRUE(marks_->Marked(0).empty());
}

TEST_F(ResyncRunnerTest, P5_ACopyOfAnOlderMountThanTheMarksIsComparedAsAWhole) {
  Make("settled", kSettled, "not marked");
  peer_->followed = 0;
  ASSERT_TRUE(runner_->Run(*peer_, counts_).ok());
  EXPECT_THAT(peer_->compared, ElementsAre(kSettled));
}

TEST_F(ResyncRunnerTest, AStepThatFailsLeavesTheReplicaOutOfTheSetAndItsMarksInPlace) {
  const UniqueFd fd = Make("file", kOld, "contents");
  ASSERT_EQ(engine_->BeforeWriting(*engine_->Attach(kOld, fd.get())), 0);
  for (const char* step : {"begin", "adopt", "connect", "deliver", "compare", "end"}) {
    peer_->fail_at = step;
    EXPECT_FALSE(runner_->Run(*peer_, counts_).ok()) << step;
    EXPECT_FALSE(set_->Wanted(0)) << step;
    EXPECT_FALSE(marks_->Marked(0).empty()) << step;
    EXPECT_FALSE(runner_->progress().running) << step;
  }
}

TEST_F(ResyncRunnerTest, AReplicaThatLeavesTheSetMeanwhileIsNotAdmitted) {
  const UniqueFd fd = Make("file", kOld, "contents");
  ASSERT_EQ(engine_->BeforeWriting(*engine_->Attach(kOld, fd.get())), 0);
  peer_->on_compare = [&](FileId) { set_->Leave(0); };
  EXPECT_FALSE(runner_->Run(*peer_, counts_).ok());
  EXPECT_FALSE(set_->Wanted(0));
}

TEST_F(ResyncRunnerTest, P6_AJoinerThatIsSilentForTheDeadlineLeavesTheSet) {
  const UniqueFd fd = Make("file", kOld, "contents");
  ASSERT_EQ(engine_->BeforeWriting(*engine_->Attach(kOld, fd.get())), 0);
  peer_->on_compare = [&](FileId) { peer_->alive = false; };
  EXPECT_TRUE(absl::IsUnavailable(runner_->Run(*peer_, counts_))) << "another attempt may find it there";
  EXPECT_FALSE(set_->Wanted(0));
}

TEST_F(ResyncRunnerTest, P6_ASilenceShorterThanTheDeadlineDoesNotEndAResync) {
  const UniqueFd fd = Make("file", kOld, "contents");
  ASSERT_EQ(engine_->BeforeWriting(*engine_->Attach(kOld, fd.get())), 0);
  int cuts = 3;
  replica_.SetScript([&](const FakeReplica::Frame& frame) {
    const bool cut = frame.kind() == FrameKind::kDataImage && cuts-- > 0;
    return FakeReplica::Answer{.reaction = cut ? FakeReplica::Reaction::kCut : FakeReplica::Reaction::kApply};
  });
  ASSERT_TRUE(runner_->Run(*peer_, counts_).ok());
  EXPECT_EQ(Replicated(kOld), "contents");
}

TEST_F(ResyncRunnerTest, MoreOperationsThanTheLogHoldsOtherwiseDoNotEndAResync) {
  peer_->tree_as_of.reset();
  peer_->on_tree = [&] {
    for (size_t i = 0; i < OperationLog::kMaxOperations + 10; ++i) {
      ASSERT_EQ(engine_->Change([](NamespaceOp& op) {
        op.kind = OpKind::kUnlink;
        op.target = FileId{9};
        op.parent = FileId::kRoot;
        op.name = "name";
        return 0;
      }),
                0);
    }
    EXPECT_EQ(log_.first(), 1U)
        << "the tree is made as of before, and all that came since is still to be sent";
  };
  ASSERT_TRUE(runner_->Run(*peer_, counts_).ok());
  EXPECT_TRUE(log_.full()) << "nobody needs more of it than otherwise";
}

TEST_F(ResyncRunnerTest, AFileThatIsRemovedMeanwhileIsPassedOver) {
  Make("file", kOld, "contents");
  Make("other", kSettled, "stays");
  peer_->followed.reset();
  peer_->unreadable = kOld;  // it has removed it already
  peer_->on_compare = [&](FileId file) {
    if (file == kOld) {
      ASSERT_EQ(engine_->Change([&](NamespaceOp& op) {
        ::unlink(Path("backing/file").c_str());
        op.kind = OpKind::kUnlink;
        op.target = kOld;
        op.parent = FileId::kRoot;
        op.name = "file";
        return 0;
      }),
                0);
    }
  };
  ASSERT_TRUE(runner_->Run(*peer_, counts_).ok());
  EXPECT_EQ(Replicated(kSettled), "stays");
}

}  // namespace
}  // namespace pmirror::fs
