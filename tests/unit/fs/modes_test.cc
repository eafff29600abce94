// SPDX-License-Identifier: BSD-3-Clause
// The two modes of an inode through a real mount: who gets the backing file, and that nobody reads stale
// bytes.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "tests/unit/fs/mounted_volume.h"

namespace pmirror::fs {
namespace {

class ModesTest : public MountedVolume {
 protected:
  void SetUp() override {
    MountedVolume::SetUp();
    UniqueFd fd = Open(O_RDWR | O_CREAT);
    ASSERT_EQ(::write(fd.get(), "original", 8), 8);
    struct stat info {};
    ASSERT_EQ(::fstat(fd.get(), &info), 0);
    id_ = FileId{info.st_ino};
  }
  UniqueFd Open(int flags) {
    UniqueFd fd(::open(At("f").c_str(), flags | O_CLOEXEC, 0644));
    EXPECT_TRUE(fd.valid()) << std::strerror(errno);
    return fd;
  }
  // Waits for handles that were just closed; the kernel tells of a close a little later.
  FileSystem::DirectAnswer Acquire(bool writable = true) {
    return fs_->AcquireDirect(id_, writable, Deadline::After(std::chrono::seconds(20)));
  }
  static std::string Read(int fd) {
    char text[64];
    const ssize_t n = ::pread(fd, text, sizeof(text), 0);
    return n < 0 ? std::strerror(errno) : std::string(text, static_cast<size_t>(n));
  }

  FileId id_ = FileId::kNone;
};

TEST_F(ModesTest, BackingFileIsRefusedWithTheHolderWhileAPlainHandleIsOpen) {
  UniqueFd plain = Open(O_RDONLY);
  const FileSystem::DirectAnswer answer = fs_->AcquireDirect(id_, true, Deadline::After({}));
  EXPECT_FALSE(answer.lease.has_value());
  EXPECT_EQ(answer.error, EBUSY);
  EXPECT_EQ(answer.holder, ::getpid());
  plain.Reset();
  EXPECT_EQ(Acquire().error, 0);
}

TEST_F(ModesTest, LeaseGivesTheBackingFileItsSizeAndReplication) {
  FileSystem::DirectAnswer answer = Acquire();
  ASSERT_EQ(answer.error, 0);
  EXPECT_EQ(answer.lease->size(), 8U);
  EXPECT_EQ(answer.lease->file()->id(), id_);
  const UniqueFd fd = answer.lease->TakeDescriptor();
  EXPECT_EQ(Read(fd.get()), "original");
  EXPECT_EQ(::fcntl(fd.get(), F_GETFL) & O_ACCMODE, O_RDWR);
  EXPECT_EQ(::fcntl(Acquire(false).lease->TakeDescriptor().get(), F_GETFL) & O_ACCMODE, O_RDONLY);
}

TEST_F(ModesTest, UnknownIdsAndDirectoriesAreRefused) {
  EXPECT_EQ(fs_->AcquireDirect(FileId{12345}, true, Deadline::After({})).error, ESTALE);
  EXPECT_EQ(fs_->AcquireDirect(FileId::kRoot, true, Deadline::After({})).error, EINVAL);
}

TEST_F(ModesTest, PlainHandlesInDirectModeAreCoherentAndCannotMapShared) {
  FileSystem::DirectAnswer answer = Acquire();
  const UniqueFd backing = answer.lease->TakeDescriptor();
  UniqueFd plain = Open(O_RDWR);
  EXPECT_EQ(Read(plain.get()), "original");
  ASSERT_EQ(::pwrite(backing.get(), "STORED", 6, 0), 6);
  EXPECT_EQ(Read(plain.get()), "STOREDal");
  ASSERT_EQ(::pwrite(plain.get(), "w", 1, 7), 1);
  EXPECT_EQ(Read(backing.get()), "STOREDaw");
  EXPECT_EQ(::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, plain.get(), 0), MAP_FAILED);
  EXPECT_EQ(errno, ENODEV);
}

TEST_F(ModesTest, CacheOfCachedModeIsNotSeenAfterDirectMode) {
  EXPECT_EQ(Read(Open(O_RDONLY).get()), "original");
  {
    FileSystem::DirectAnswer answer = Acquire();
    ASSERT_EQ(::pwrite(answer.lease->TakeDescriptor().get(), "DIRECT", 6, 0), 6);
  }
  EXPECT_EQ(Read(Open(O_RDONLY).get()), "DIRECTal");
}

TEST_F(ModesTest, TimesOfADirectFileAreNotRemembered) {
  FileSystem::DirectAnswer answer = Acquire();
  struct stat before {};
  struct stat after {};
  ASSERT_EQ(::stat(At("f").c_str(), &before), 0);
  const timespec times[2] = {{.tv_sec = 5, .tv_nsec = 5}, {.tv_sec = 6, .tv_nsec = 6}};
  ASSERT_EQ(::futimens(answer.lease->TakeDescriptor().get(), times), 0);
  ASSERT_EQ(::stat(At("f").c_str(), &after), 0);
  EXPECT_EQ(after.st_mtim.tv_sec, 6);
}

TEST_F(ModesTest, AnnouncedProgramsOpensAreDirectAndDoNotStandInTheWay) {
  oracle_.Announce(::getpid());
  UniqueFd announced = Open(O_RDWR);
  EXPECT_EQ(::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, announced.get(), 0), MAP_FAILED);
  EXPECT_EQ(fs_->AcquireDirect(id_, true, Deadline::After(std::chrono::seconds(20))).error, 0);
  std::thread([&] {
    UniqueFd by_thread = Open(O_RDWR);
    EXPECT_EQ(::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, by_thread.get(), 0), MAP_FAILED)
        << "the kernel names the thread, the process was announced";
  }).join();
}

TEST_F(ModesTest, WriteOfAnAnnouncedProgramIsSeenByAPlainReaderWithCachedPages) {
  UniqueFd plain = Open(O_RDONLY);
  EXPECT_EQ(Read(plain.get()), "original");
  oracle_.Announce(::getpid());
  UniqueFd announced = Open(O_RDWR);
  ASSERT_EQ(::pwrite(announced.get(), "fresh", 5, 0), 5);
  EXPECT_EQ(Read(plain.get()), "freshnal");
}

// A read during the write caches the old bytes again. Current kernels drop pages after such a write too,
// older ones do not; FileSystem does in any case. The write takes a setuid bit away first, and the reader
// reads just then.
TEST_F(ModesTest, PageCachedAgainDuringAWriteBesideItIsDropped) {
  ASSERT_EQ(::chown(At("f").c_str(), 1000, 1000), 0);
  ASSERT_EQ(::chmod(At("f").c_str(), 04777), 0);
  UniqueFd plain = Open(O_RDONLY);
  oracle_.Announce(::getpid());
  UniqueFd announced = Open(O_RDWR);
  std::string meanwhile;
  replicator_.AfterChange([&] { meanwhile = Read(plain.get()); });
  // seteuid(3) would change the threads that serve the mount too.
  ASSERT_EQ(::syscall(SYS_setresuid, -1, 1000, -1), 0);
  const ssize_t n = ::pwrite(announced.get(), "fresh", 5, 0);
  ASSERT_EQ(::syscall(SYS_setresuid, -1, 0, -1), 0);
  replicator_.AfterChange(nullptr);
  ASSERT_EQ(n, 5);
  EXPECT_EQ(meanwhile, "original");
  EXPECT_EQ(Read(plain.get()), "freshnal");
}

TEST_F(ModesTest, ChangeByTheDaemonItselfIsSeenByAPlainReaderWithCachedPages) {
  UniqueFd plain = Open(O_RDONLY);
  EXPECT_EQ(Read(plain.get()), "original");
  UniqueFd backing(::open(Behind("f").c_str(), O_RDWR | O_CLOEXEC));
  ASSERT_EQ(::pwrite(backing.get(), "repair", 6, 0), 6);
  fs_->DataChanged(id_, {0, 6});
  EXPECT_EQ(Read(plain.get()), "repairal");
}

TEST_F(ModesTest, OrphanLivesAsLongAsItsLease) {
  FileSystem::DirectAnswer answer = Acquire();
  replicator_.TakeOps();
  ASSERT_EQ(::unlink(At("f").c_str()), 0);
  EXPECT_THAT(replicator_.TakeOps(),
              ::testing::ElementsAre(::testing::Field(&NamespaceOp::flags, kOpOrphaned)));
  answer.lease.reset();
  EXPECT_THAT(replicator_.TakeOps(),
              ::testing::ElementsAre(::testing::Field(&NamespaceOp::kind, OpKind::kForgetOrphan)));
}

// A program that is not preloaded maps, stores and syncs: in a child, because the kernel writes back with the
// mapper's memory locked. The child allocates nothing: it was forked beside the threads of the session
// (served_volume.h).
TEST_F(ModesTest, MappedStoreOfAPlainProgramIsWrittenAndSyncedByItsMsync) {
  replicator_.TakeWrites();
  replicator_.TakeSyncs();
  const std::string path = At("f");
  const pid_t child = ::fork();
  if (child == 0) {
    const int fd = ::open(path.c_str(), O_RDWR);
    auto* at = static_cast<char*>(::mmap(nullptr, 8, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    at[3] = 'X';
    ::_exit(::msync(at, 8, MS_SYNC) == 0 ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_THAT(replicator_.TakeWrites(), ::testing::ElementsAre(RecordedWrite{id_, {0, 8}}));
  EXPECT_THAT(replicator_.TakeSyncs(), ::testing::ElementsAre(id_));
  EXPECT_EQ(Read(Open(O_RDONLY).get()), "oriXinal");
}

}  // namespace
}  // namespace pmirror::fs
