// SPDX-License-Identifier: BSD-3-Clause
// What a program meets when the replica is slow and when the disk is full.
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <thread>

#include "fs/interruption.h"
#include "tests/unit/fs/mounted_volume.h"

namespace pmirror::fs {
namespace {

class SlowReplicaTest : public MountedVolume {
 protected:
  void SetUp() override {
    MountedVolume::SetUp();
    replicator_.WaitInWritten([this] {
      ++waiting_;
      for (const Deadline deadline = Deadline::After(std::chrono::seconds(30));
           !deadline.Expired() && !go_on_;) {
        if (const Interruption seen = CurrentInterruption(); seen != Interruption::kNone) {
          seen_ = seen;
          if (seen == Interruption::kKill) {
            return EINTR;
          }
        }
        std::this_thread::yield();
      }
      return 0;
    });
  }
  void TearDown() override {
    go_on_ = true;
    MountedVolume::TearDown();
  }
  // A program whose write waits for the replica. It allocates nothing: it was forked beside the threads of
  // the session (served_volume.h).
  pid_t StartWriter(const std::string& name) {
    const std::string path = At(name);
    const pid_t child = ::fork();
    if (child == 0) {
      ::signal(SIGUSR1, [](int) {});
      const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
      ::_exit(::write(fd, "x", 1) == 1 ? 0 : 1);
    }
    return child;
  }
  template <typename Condition>
  static bool Eventually(Condition condition) {
    for (const Deadline deadline = Deadline::After(std::chrono::seconds(20)); !deadline.Expired();) {
      if (condition()) {
        return true;
      }
      std::this_thread::yield();
    }
    return false;
  }

  std::atomic<int> waiting_{0};
  std::atomic<bool> go_on_{false};
  std::atomic<Interruption> seen_{Interruption::kNone};
};

TEST_F(SlowReplicaTest, P6_KilledProgramEndsWithoutWaitingForTheReplica) {
  const pid_t child = StartWriter("f");
  ASSERT_TRUE(Eventually([&] { return waiting_ == 1; }));
  ASSERT_EQ(::kill(child, SIGKILL), 0);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(seen_, Interruption::kKill);
}

TEST_F(SlowReplicaTest, HarmlessSignalIsSeenAsOneAndDoesNotFailTheWrite) {
  const pid_t child = StartWriter("f");
  ASSERT_TRUE(Eventually([&] { return waiting_ == 1; }));
  ASSERT_EQ(::kill(child, SIGUSR1), 0);
  EXPECT_TRUE(Eventually([&] { return seen_ == Interruption::kSignal; }));
  go_on_ = true;
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

TEST_F(SlowReplicaTest, ManyWaitingWritersDoNotStandInTheWayOfOthers) {
  std::vector<pid_t> children;
  for (int i = 0; i < 30; ++i) {
    children.push_back(StartWriter("f" + std::to_string(i)));
  }
  ASSERT_TRUE(Eventually([&] { return waiting_ == 30; }));
  EXPECT_EQ(::mkdir(At("d").c_str(), 0755), 0);
  go_on_ = true;
  for (const pid_t child : children) {
    int status = -1;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
  }
}

class FullDiskTest : public MountedVolume {
 protected:
  void PrepareBacking() override {
    ASSERT_EQ(::mount("full", backing().c_str(), "tmpfs", 0, "size=256k,nr_inodes=40"), 0);
  }
  void TearDown() override {
    MountedVolume::TearDown();
    session_.reset();
    fs_.reset();
    root_.reset();
    EXPECT_EQ(::umount2(backing().c_str(), 0), 0);
  }
};

TEST_F(FullDiskTest, Trap9_WriteIsCutOrRefusedAndReplicationHearsOnlyOfWhatWasWritten) {
  UniqueFd fd(::open(At("f").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  const std::string text(100'000, 'x');
  uint64_t written = 0;
  ssize_t n = 0;
  while ((n = ::write(fd.get(), text.data(), text.size())) > 0) {
    written += static_cast<uint64_t>(n);
  }
  EXPECT_EQ(errno, ENOSPC);
  EXPECT_GT(written, 0U);
  struct stat info {};
  ASSERT_EQ(::stat(Behind("f").c_str(), &info), 0);
  EXPECT_EQ(static_cast<uint64_t>(info.st_size), written);
  uint64_t told = 0;
  for (const RecordedWrite& write : replicator_.TakeWrites()) {
    told = std::max(told, write.extent.end());
  }
  EXPECT_EQ(told, written);
  EXPECT_EQ(::fallocate(fd.get(), 0, 0, 1 << 20), -1);
  EXPECT_EQ(errno, ENOSPC);
  for (const NamespaceOp& op : replicator_.TakeOps()) {
    EXPECT_NE(op.kind, OpKind::kAllocate);
  }
}

TEST_F(FullDiskTest, ObjectThatCannotBeMadeWhollyIsNotMade) {
  size_t made = 0;
  while (::mkdir(At("d" + std::to_string(made)).c_str(), 0755) == 0) {
    ++made;
    ASSERT_LT(made, 1000U);
  }
  EXPECT_EQ(errno, ENOSPC);
  EXPECT_EQ(replicator_.TakeOps().size(), made);
  size_t there = 0;
  for (const auto& entry : std::filesystem::directory_iterator(backing())) {
    EXPECT_NE(root_->GetEntryId(root_->fd(), entry.path().filename().c_str()).value(), FileId::kNone);
    ++there;
  }
  EXPECT_EQ(there, made);
}

}  // namespace
}  // namespace pmirror::fs
