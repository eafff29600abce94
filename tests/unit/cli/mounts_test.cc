// SPDX-License-Identifier: BSD-3-Clause
// Reading the kernel's mount table: what lies below a directory, in which order it can be unmounted.
#include "cli/mounts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace pmirror::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::Field;
using ::testing::IsEmpty;

constexpr char kTable[] =
    "1 0 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n"
    "20 1 0:30 / /s rw shared:5 - tmpfs tmpfs rw\n"
    "21 20 0:31 / /s/n1/v0/mnt rw,nosuid shared:7 master:2 - fuse.pmirror pmirror:/s/n1/local.sock rw\n"
    "22 20 0:32 / /s/with\\040space rw - fuse.pmirror pmirror:x rw\n"
    "23 1 0:33 / /s2/mnt rw - fuse.pmirror pmirror:y rw\n";

TEST(MountsTest, ListsTheDirectoryItselfAndWhatIsBelowTheLastMountedFirst) {
  EXPECT_THAT(MountsBelow("/s", kTable),
              ElementsAre(Field(&MountEntry::point, "/s/with space"),
                          Field(&MountEntry::point, "/s/n1/v0/mnt"), Field(&MountEntry::point, "/s")));
}

TEST(MountsTest, TellsTheTypeBehindAnyNumberOfOptionalFields) {
  const std::vector<MountEntry> mounts = MountsBelow("/s", kTable);
  EXPECT_THAT(mounts,
              ElementsAre(Field(&MountEntry::type, "fuse.pmirror"), Field(&MountEntry::type, "fuse.pmirror"),
                          Field(&MountEntry::type, "tmpfs")));
}

TEST(MountsTest, ADirectoryWhoseNameOnlyBeginsAlikeIsNotBelow) {
  EXPECT_THAT(MountsBelow("/s/n1/v", kTable), IsEmpty());
}

}  // namespace
}  // namespace pmirror::cli
