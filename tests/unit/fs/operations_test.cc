// SPDX-License-Identifier: BSD-3-Clause
// What the Replicator is told: each change of the tree gives exactly the operation that says what happened,
// and nothing else does.
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <thread>

#include "tests/unit/fs/mounted_volume.h"

// Expected operations name the fields that they use; the others have their defaults.
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

namespace pmirror::fs {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class OperationsTest : public MountedVolume {
 protected:
  FileId IdOf(const std::string& name) {
    struct stat info {};
    EXPECT_EQ(::lstat(At(name).c_str(), &info), 0) << name;
    return FileId{info.st_ino};
  }
  UniqueFd Create(const std::string& name, int flags = 0) {
    UniqueFd fd(::open(At(name).c_str(), O_RDWR | O_CREAT | O_CLOEXEC | flags, 0644));
    EXPECT_TRUE(fd.valid()) << std::strerror(errno);
    return fd;
  }
  // The one operation since the last call.
  NamespaceOp OnlyOp() {
    std::vector<NamespaceOp> ops = replicator_.TakeOps();
    EXPECT_EQ(ops.size(), 1U);
    return ops.empty() ? NamespaceOp{} : ops.front();
  }
  // RELEASE reaches the file system after close() has returned: waits for the operation that it leads to.
  NamespaceOp OpAfterClose() {
    for (const Deadline deadline = Deadline::After(std::chrono::seconds(20)); !deadline.Expired();) {
      if (std::vector<NamespaceOp> ops = replicator_.TakeOps(); !ops.empty()) {
        EXPECT_EQ(ops.size(), 1U);
        return ops.front();
      }
      std::this_thread::yield();
    }
    ADD_FAILURE() << "no operation";
    return {};
  }
};

TEST_F(OperationsTest, CreateCarriesTheFinalModeAndOwner) {
  ::umask(027);
  UniqueFd fd = Create("f");
  ::umask(022);
  EXPECT_EQ(OnlyOp(), (NamespaceOp{.kind = OpKind::kCreate,
                                   .target = IdOf("f"),
                                   .parent = FileId::kRoot,
                                   .mode = S_IFREG | 0640,
                                   .name = "f"}));
  EXPECT_EQ(Create("f").get() < 0, false);
  EXPECT_THAT(replicator_.TakeOps(), IsEmpty()) << "opened, not created";
}

TEST_F(OperationsTest, EveryKindOfObjectIsOneCreate) {
  ASSERT_EQ(::mkdir(At("d").c_str(), 0755), 0);
  EXPECT_EQ(OnlyOp(),
            (NamespaceOp{.target = IdOf("d"), .parent = FileId::kRoot, .mode = S_IFDIR | 0755, .name = "d"}));
  ASSERT_EQ(::symlink("to/where", At("d/l").c_str()), 0);
  EXPECT_EQ(OnlyOp(), (NamespaceOp{.target = IdOf("d/l"),
                                   .parent = IdOf("d"),
                                   .mode = S_IFLNK | 0777,
                                   .name = "l",
                                   .value = "to/where"}));
  ASSERT_EQ(::mknod(At("c").c_str(), S_IFCHR | 0600, makedev(5, 300)), 0);
  EXPECT_EQ(OnlyOp(), (NamespaceOp{.target = IdOf("c"),
                                   .parent = FileId::kRoot,
                                   .mode = S_IFCHR | 0600,
                                   .rdev = makedev(5, 300),
                                   .name = "c"}));
  ASSERT_EQ(::mkfifo(At("p").c_str(), 0622), 0);
  EXPECT_EQ(OnlyOp().mode, S_IFIFO | 0600U);
}

TEST_F(OperationsTest, FailedCallsSendNothing) {
  ASSERT_EQ(::mkdir(At("d").c_str(), 0755), 0);
  Create("d/f");
  replicator_.TakeOps();
  EXPECT_NE(::mkdir(At("d").c_str(), 0755), 0);
  EXPECT_NE(::rmdir(At("d").c_str()), 0);
  EXPECT_NE(::unlink(At("none").c_str()), 0);
  EXPECT_NE(::rename(At("d").c_str(), At("d/f").c_str()), 0);
  EXPECT_NE(::removexattr(At("d").c_str(), "user.none"), 0);
  EXPECT_NE(::setxattr(At("d").c_str(), "user.none", "x", 1, XATTR_REPLACE), 0);
  EXPECT_THAT(replicator_.TakeOps(), IsEmpty());
}

TEST_F(OperationsTest, LinkAndUnlinkNameTheEntryAndOnlyTheLastOpenNameIsOrphaned) {
  UniqueFd fd = Create("a");
  const FileId id = IdOf("a");
  replicator_.TakeOps();
  ASSERT_EQ(::link(At("a").c_str(), At("b").c_str()), 0);
  EXPECT_EQ(OnlyOp(),
            (NamespaceOp{.kind = OpKind::kLink, .target = id, .parent = FileId::kRoot, .name = "b"}));
  ASSERT_EQ(::unlink(At("a").c_str()), 0);
  EXPECT_EQ(OnlyOp(),
            (NamespaceOp{.kind = OpKind::kUnlink, .target = id, .parent = FileId::kRoot, .name = "a"}));
  ASSERT_EQ(::unlink(At("b").c_str()), 0);
  EXPECT_EQ(OnlyOp(), (NamespaceOp{.kind = OpKind::kUnlink,
                                   .flags = kOpOrphaned,
                                   .target = id,
                                   .parent = FileId::kRoot,
                                   .name = "b"}));
  ASSERT_EQ(::fchmod(fd.get(), 0600), 0);
  EXPECT_EQ(OnlyOp(), (NamespaceOp{.kind = OpKind::kSetMode, .target = id, .mode = 0600}));
  fd.Reset();
  EXPECT_EQ(OpAfterClose(), (NamespaceOp{.kind = OpKind::kForgetOrphan, .target = id}));
}

TEST_F(OperationsTest, UnlinkOfAClosedFileIsNoOrphanAndWhatIsDoneToItAfterwardsStaysHere) {
  Create("a");
  UniqueFd object(::open(At("a").c_str(), O_PATH | O_CLOEXEC));
  // The kernel tells of a close a little later; who asks for the backing file waits for it.
  ASSERT_EQ(fs_->AcquireDirect(IdOf("a"), false, Deadline::After(std::chrono::seconds(20))).error, 0);
  replicator_.TakeOps();
  ASSERT_EQ(::unlink(At("a").c_str()), 0);
  EXPECT_EQ(OnlyOp().flags, 0U);
  const std::string path = "/proc/self/fd/" + std::to_string(object.get());
  ASSERT_EQ(::chmod(path.c_str(), 0600), 0);
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  ASSERT_TRUE(fd.valid());
  ASSERT_EQ(::write(fd.get(), "x", 1), 1);
  ASSERT_EQ(::ftruncate(fd.get(), 0), 0);
  ASSERT_EQ(::fsync(fd.get()), 0);
  EXPECT_THAT(replicator_.TakeOps(), IsEmpty());
  EXPECT_THAT(replicator_.TakeWrites(), IsEmpty());
}

TEST_F(OperationsTest, RenameSaysWhatItReplacedAndWhetherThatIsStillOpen) {
  ASSERT_EQ(::mkdir(At("d").c_str(), 0755), 0);
  Create("a");
  UniqueFd open = Create("d/b");
  const FileId a = IdOf("a");
  const FileId b = IdOf("d/b");
  const FileId d = IdOf("d");
  replicator_.TakeOps();
  ASSERT_EQ(::rename(At("a").c_str(), At("d/b").c_str()), 0);
  EXPECT_EQ(OnlyOp(), (NamespaceOp{.kind = OpKind::kRename,
                                   .flags = kOpOrphaned,
                                   .target = a,
                                   .parent = FileId::kRoot,
                                   .new_parent = d,
                                   .replaced = b,
                                   .name = "a",
                                   .new_name = "b"}));
  open.Reset();
  EXPECT_EQ(OpAfterClose(), (NamespaceOp{.kind = OpKind::kForgetOrphan, .target = b}));
  Create("c");
  const FileId c = IdOf("c");
  replicator_.TakeOps();
  ASSERT_EQ(::renameat2(AT_FDCWD, At("c").c_str(), AT_FDCWD, At("d/b").c_str(), RENAME_EXCHANGE), 0);
  EXPECT_EQ(OnlyOp(), (NamespaceOp{.kind = OpKind::kRename,
                                   .flags = kOpExchange,
                                   .target = c,
                                   .parent = FileId::kRoot,
                                   .new_parent = d,
                                   .replaced = a,
                                   .name = "c",
                                   .new_name = "b"}));
  ASSERT_EQ(::link(At("c").c_str(), At("c2").c_str()), 0);
  replicator_.TakeOps();
  ASSERT_EQ(::rename(At("c").c_str(), At("c2").c_str()), 0);
  EXPECT_EQ(fs_->Rename(FileId::kRoot, "c", FileId::kRoot, "c2", 0), 0) << "the kernel did not even ask";
  EXPECT_THAT(replicator_.TakeOps(), IsEmpty()) << "two names of one file";
}

TEST_F(OperationsTest, UnnamedFileIsAnOrphanUntilItIsLinked) {
  UniqueFd fd(::open(mount().c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  ASSERT_TRUE(fd.valid()) << std::strerror(errno);
  struct stat info {};
  ASSERT_EQ(::fstat(fd.get(), &info), 0);
  const FileId id{info.st_ino};
  EXPECT_EQ(OnlyOp(), (NamespaceOp{.kind = OpKind::kCreateOrphan, .target = id, .mode = S_IFREG | 0600}));
  ASSERT_EQ(::linkat(fd.get(), "", AT_FDCWD, At("named").c_str(), AT_EMPTY_PATH), 0) << std::strerror(errno);
  EXPECT_EQ(OnlyOp(),
            (NamespaceOp{.kind = OpKind::kLink, .target = id, .parent = FileId::kRoot, .name = "named"}));
  fd.Reset();
  UniqueFd second(::open(mount().c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  EXPECT_EQ(OnlyOp().kind, OpKind::kCreateOrphan) << "and nothing for the one that was linked";
  second.Reset();
  EXPECT_EQ(OpAfterClose().kind, OpKind::kForgetOrphan);
}

TEST_F(OperationsTest, AttributeChangesCarryWhatIsThereAfterwards) {
  Create("f");
  const FileId id = IdOf("f");
  replicator_.TakeOps();
  ASSERT_EQ(::chmod(At("f").c_str(), 04755), 0);
  EXPECT_EQ(OnlyOp(), (NamespaceOp{.kind = OpKind::kSetMode, .target = id, .mode = 04755}));
  ASSERT_EQ(::chown(At("f").c_str(), 12, static_cast<gid_t>(-1)), 0);
  EXPECT_EQ(
      OnlyOp(),
      (NamespaceOp{.kind = OpKind::kSetOwner, .target = id, .mode = 0755, .uid = 12, .gid = UINT32_MAX}));
  const timespec times[2] = {{.tv_sec = 0, .tv_nsec = UTIME_OMIT}, {.tv_sec = 77, .tv_nsec = 123456789}};
  ASSERT_EQ(::utimensat(AT_FDCWD, At("f").c_str(), times, 0), 0);
  EXPECT_EQ(OnlyOp(), (NamespaceOp{.kind = OpKind::kSetTimes,
                                   .target = id,
                                   .atime = {.seconds = 0, .nanoseconds = UTIME_OMIT},
                                   .mtime = {.seconds = 77, .nanoseconds = 123456789}}));
  ASSERT_EQ(::utimensat(AT_FDCWD, At("f").c_str(), nullptr, 0), 0);
  struct stat info {};
  ASSERT_EQ(::stat(Behind("f").c_str(), &info), 0);
  EXPECT_EQ(OnlyOp().mtime, (OpTime{.seconds = info.st_mtim.tv_sec, .nanoseconds = info.st_mtim.tv_nsec}));
  ASSERT_EQ(::setxattr(At("f").c_str(), "user.key", "value", 5, 0), 0);
  EXPECT_EQ(OnlyOp(),
            (NamespaceOp{.kind = OpKind::kSetXattr, .target = id, .name = "user.key", .value = "value"}));
  ASSERT_EQ(::removexattr(At("f").c_str(), "user.key"), 0);
  EXPECT_EQ(OnlyOp(), (NamespaceOp{.kind = OpKind::kRemoveXattr, .target = id, .name = "user.key"}));
}

TEST_F(OperationsTest, SizeChangesCarryTheirGeneration) {
  UniqueFd fd = Create("f");
  const FileId id = IdOf("f");
  replicator_.TakeOps();
  ASSERT_EQ(::ftruncate(fd.get(), 5000), 0);
  EXPECT_EQ(OnlyOp(),
            (NamespaceOp{.kind = OpKind::kTruncate, .target = id, .extent = {5000, 0}, .generation = 2}));
  ASSERT_EQ(::truncate(At("f").c_str(), 100), 0);
  EXPECT_EQ(OnlyOp(),
            (NamespaceOp{.kind = OpKind::kTruncate, .target = id, .extent = {100, 0}, .generation = 4}));
  UniqueFd truncating = Create("f", O_TRUNC);
  EXPECT_EQ(OnlyOp(),
            (NamespaceOp{.kind = OpKind::kTruncate, .target = id, .extent = {0, 0}, .generation = 6}));
  ASSERT_EQ(::fallocate(fd.get(), FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 10, 20), 0);
  EXPECT_EQ(OnlyOp(), (NamespaceOp{.kind = OpKind::kAllocate,
                                   .flags = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
                                   .target = id,
                                   .extent = {10, 20},
                                   .generation = 8}));
}

TEST_F(OperationsTest, WritesNameTheExtentThatTheyLandedIn) {
  UniqueFd fd = Create("f");
  const FileId id = IdOf("f");
  ASSERT_EQ(::pwrite(fd.get(), "abc", 3, 10), 3);
  EXPECT_THAT(replicator_.TakeWrites(), ElementsAre(RecordedWrite{id, {10, 3}}));
  UniqueFd appender = Create("f", O_APPEND);
  ASSERT_EQ(::pwrite(appender.get(), "de", 2, 0), 2);
  EXPECT_THAT(replicator_.TakeWrites(), ElementsAre(RecordedWrite{id, {13, 2}}));
  UniqueFd copy = Create("copy");
  loff_t in = 10;
  loff_t out = 4;
  ASSERT_EQ(::copy_file_range(fd.get(), &in, copy.get(), &out, 5, 0), 5);
  EXPECT_THAT(replicator_.TakeWrites(), ElementsAre(RecordedWrite{IdOf("copy"), {4, 5}}));
}

TEST_F(OperationsTest, SyncsReachTheReplicator) {
  UniqueFd fd = Create("f");
  const FileId id = IdOf("f");
  ASSERT_EQ(::fsync(fd.get()), 0);
  ASSERT_EQ(::fdatasync(fd.get()), 0);
  EXPECT_THAT(replicator_.TakeSyncs(), ElementsAre(id, id));
  UniqueFd directory(::open(mount().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  ASSERT_EQ(::fsync(directory.get()), 0);
  EXPECT_EQ(replicator_.tree_syncs(), 1);
}

TEST_F(OperationsTest, WriteOnASynchronousHandleIsASyncToo) {
  for (const int flags : {O_SYNC, O_DSYNC}) {
    UniqueFd fd = Create("f", flags);
    ASSERT_EQ(::write(fd.get(), "abc", 3), 3);
    EXPECT_THAT(replicator_.TakeWrites(), ElementsAre(RecordedWrite{IdOf("f"), {0, 3}}));
    EXPECT_GE(replicator_.TakeSyncs().size(), 1U);
  }
}

TEST_F(OperationsTest, SetuidBitTakenAwayByAWriteIsSent) {
  UniqueFd fd = Create("f");
  ASSERT_EQ(::fchmod(fd.get(), 04755), 0);
  ASSERT_EQ(::fchown(fd.get(), 1000, 1000), 0);
  ASSERT_EQ(::fchmod(fd.get(), 04755), 0);
  replicator_.TakeOps();
  // seteuid(3) would change the threads that serve the mount too.
  ASSERT_EQ(::syscall(SYS_setresuid, -1, 1000, -1), 0);
  const ssize_t n = ::write(fd.get(), "x", 1);
  ASSERT_EQ(::syscall(SYS_setresuid, -1, 0, -1), 0);
  ASSERT_EQ(n, 1);
  EXPECT_EQ(OnlyOp(), (NamespaceOp{.kind = OpKind::kSetMode, .target = IdOf("f"), .mode = 0755}));
}

TEST_F(OperationsTest, ErrorOfTheReplicatorReachesTheProgramAndWhatHappenedShows) {
  UniqueFd fd = Create("f");
  replicator_.FailAfterChange(EIO);
  EXPECT_EQ(::mkdir(At("d").c_str(), 0755), -1);
  EXPECT_EQ(errno, EIO);
  EXPECT_EQ(::write(fd.get(), "x", 1), -1);
  EXPECT_EQ(errno, EIO);
  EXPECT_EQ(::unlink(At("f").c_str()), -1);
  EXPECT_EQ(errno, EIO);
  replicator_.FailAfterChange(0);
  struct stat info {};
  EXPECT_EQ(::stat(At("d").c_str(), &info), 0);
  // The kernel believes that the name is there until it is told; it is told from another thread.
  const Deadline deadline = Deadline::After(std::chrono::seconds(20));
  while (::stat(At("f").c_str(), &info) == 0 && !deadline.Expired()) {
    std::this_thread::yield();
  }
  EXPECT_EQ(::stat(At("f").c_str(), &info), -1);
}

}  // namespace
}  // namespace pmirror::fs
