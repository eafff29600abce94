// SPDX-License-Identifier: BSD-3-Clause
// A mounted volume: that it works at all, how it is found and how it ends.
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <fstream>
#include <sstream>

#include "tests/unit/fs/mounted_volume.h"

namespace pmirror::fs {
namespace {

using MountTest = MountedVolume;

TEST_F(MountTest, ProgramsFindTheDaemonsSocketInMountinfo) {
  std::ifstream file("/proc/self/mountinfo");
  std::stringstream text;
  text << file.rdbuf();
  EXPECT_NE(text.str().find(mount() + " rw"), std::string::npos);
  EXPECT_NE(text.str().find("fuse.pmirror pmirror:/run/test/pmirror.sock"), std::string::npos);
}

TEST_F(MountTest, InodeNumberIsTheIdAndSurvivesRemountAndRename) {
  UniqueFd fd(::open(At("file").c_str(), O_RDWR | O_CREAT, 0644));
  ASSERT_TRUE(fd.valid()) << std::strerror(errno);
  struct stat before {};
  ASSERT_EQ(::fstat(fd.get(), &before), 0);
  fd.Reset();
  ASSERT_EQ(::rename(At("file").c_str(), At("other").c_str()), 0);
  ASSERT_TRUE(session_->Unmount(Deadline::After(std::chrono::seconds(10))));
  Remount();
  struct stat after {};
  ASSERT_EQ(::stat(At("other").c_str(), &after), 0);
  EXPECT_EQ(after.st_ino, before.st_ino);
  struct stat root {};
  ASSERT_EQ(::stat(mount().c_str(), &root), 0);
  EXPECT_EQ(root.st_ino, 1U);
}

TEST_F(MountTest, UnmountWhileAFileIsOpenCutsItsUserOffAfterTheDeadline) {
  UniqueFd fd(::open(At("file").c_str(), O_RDWR | O_CREAT, 0644));
  ASSERT_EQ(::write(fd.get(), "abc", 3), 3);
  EXPECT_FALSE(session_->Unmount(Deadline::After(std::chrono::milliseconds(100))));
  EXPECT_EQ(::write(fd.get(), "def", 3), -1);
  EXPECT_EQ(fs_->inodes().size(), 0U) << "everything was given up";
  session_.reset();
}

TEST_F(MountTest, ForeignUnmountIsNoticed) {
  ASSERT_EQ(::umount2(mount().c_str(), 0), 0) << std::strerror(errno);
  EXPECT_TRUE(session_->WaitEnded(Deadline::After(std::chrono::seconds(10))));
  EXPECT_TRUE(session_->Unmount(Deadline::After({})));
}

TEST_F(MountTest, PrivateDirectoryAndAttributesAreHidden) {
  ASSERT_EQ(::mkdir(Behind(".pmirror").c_str(), 0700), 0);
  struct stat info {};
  EXPECT_EQ(::stat(At(".pmirror").c_str(), &info), -1);
  EXPECT_EQ(errno, ENOENT);
  EXPECT_EQ(::mkdir(At(".pmirror").c_str(), 0700), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_TRUE(std::filesystem::is_empty(mount()));
  ASSERT_EQ(::mkdir(At("d").c_str(), 0700), 0);
  EXPECT_EQ(::mkdir(At("d/.pmirror").c_str(), 0700), 0) << "only the root's is pmirror's";
  char list[256];
  EXPECT_EQ(::listxattr(At("d").c_str(), list, sizeof(list)), 0);
  EXPECT_EQ(::getxattr(At("d").c_str(), kIdXattr, list, sizeof(list)), -1);
  EXPECT_EQ(errno, ENODATA);
  EXPECT_EQ(::setxattr(At("d").c_str(), kIdXattr, "x", 1, 0), -1);
  EXPECT_EQ(errno, EPERM);
}

TEST_F(MountTest, ObjectsPutBehindTheMountAreAdoptedOnceWithOneIdForAllTheirNames) {
  std::ofstream(Behind("a")) << "text";
  ASSERT_EQ(::mkdir(Behind("d").c_str(), 0755), 0);
  ASSERT_EQ(::link(Behind("a").c_str(), Behind("d/b").c_str()), 0);
  struct stat a {};
  struct stat b {};
  ASSERT_EQ(::stat(At("a").c_str(), &a), 0);
  ASSERT_EQ(::stat(At("d/b").c_str(), &b), 0);
  EXPECT_EQ(a.st_ino, b.st_ino);
  EXPECT_THAT(replicator_.TakeAdopted(), ::testing::UnorderedElementsAre("a", "d"));
}

}  // namespace
}  // namespace pmirror::fs
