// SPDX-License-Identifier: BSD-3-Clause
// The two modes of an inode, as a state machine.
#include "fs/inode_mode.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <random>

namespace pmirror::fs {
namespace {

TEST(InodeMode, FirstPlainOpenIsCachedAndEmptiesTheCache) {
  InodeMode mode;
  const InodeMode::Opened opened = mode.OpenPlain(7);
  EXPECT_FALSE(opened.direct_io);
  EXPECT_FALSE(opened.keep_cache);
  EXPECT_TRUE(mode.cached());
}

TEST(InodeMode, SecondPlainOpenKeepsTheCache) {
  InodeMode mode;
  mode.OpenPlain(7);
  mode.ClosePlain(7);
  EXPECT_TRUE(mode.OpenPlain(8).keep_cache);
}

TEST(InodeMode, DirectIsRefusedWithTheHolderWhileAPlainHandleIsOpen) {
  InodeMode mode;
  mode.OpenPlain(7);
  mode.OpenPlain(7);
  mode.ClosePlain(7);
  pid_t holder = 0;
  EXPECT_EQ(mode.TakeDirect(&holder), EBUSY);
  EXPECT_EQ(holder, 7);
  mode.ClosePlain(7);
  EXPECT_EQ(mode.TakeDirect(&holder), 0);
}

TEST(InodeMode, PlainOpenWhileDirectIsDirectIoAndNotCounted) {
  InodeMode mode;
  pid_t holder = 0;
  ASSERT_EQ(mode.TakeDirect(&holder), 0);
  EXPECT_TRUE(mode.OpenPlain(7).direct_io);
  EXPECT_FALSE(mode.cached());
  mode.DropDirect();
  EXPECT_FALSE(mode.direct());
}

TEST(InodeMode, AnnouncedOpenIsDirectIoAndDoesNotStandInTheWay) {
  InodeMode mode;
  EXPECT_TRUE(mode.OpenAnnounced().direct_io);
  pid_t holder = 0;
  EXPECT_EQ(mode.TakeDirect(&holder), 0);
}

TEST(InodeMode, CacheIsNotKeptAfterDirectMode) {
  InodeMode mode;
  mode.OpenPlain(7);
  mode.ClosePlain(7);
  pid_t holder = 0;
  ASSERT_EQ(mode.TakeDirect(&holder), 0);
  mode.DropDirect();
  EXPECT_FALSE(mode.OpenPlain(7).keep_cache);
}

TEST(InodeMode, ChangeBesideTheCacheMustInvalidateNowOnlyWhenSomebodyCaches) {
  InodeMode mode;
  mode.OpenPlain(7);
  EXPECT_TRUE(mode.ChangedBesideCache());
  EXPECT_TRUE(mode.OpenPlain(8).keep_cache) << "it was invalidated";
  mode.ClosePlain(7);
  mode.ClosePlain(8);
  EXPECT_FALSE(mode.ChangedBesideCache());
  EXPECT_FALSE(mode.OpenPlain(7).keep_cache) << "the next open invalidates";
}

// A reference that knows every byte's version: what the kernel's cache holds is never older than the file at
// an open that keeps it.
TEST(InodeMode, NoSequenceOfEventsKeepsAStaleCacheOrMixesTheModes) {
  for (unsigned seed = 0; seed < 200; ++seed) {
    std::mt19937 random(seed);
    InodeMode mode;
    int plain = 0;
    int direct = 0;
    bool stale = true;  // the kernel's cache may differ from the file
    for (int step = 0; step < 200; ++step) {
      pid_t holder = 0;
      switch (random() % 6) {
        case 0: {
          const InodeMode::Opened opened = mode.OpenPlain(1);
          ASSERT_EQ(opened.direct_io, direct > 0);
          ASSERT_FALSE(opened.keep_cache && stale) << "seed " << seed;
          plain += opened.direct_io ? 0 : 1;
          stale = opened.direct_io ? stale : false;
          break;
        }
        case 1:
          if (plain > 0) {
            mode.ClosePlain(1);
            --plain;
          }
          break;
        case 2:
          ASSERT_EQ(mode.TakeDirect(&holder), plain > 0 ? EBUSY : 0);
          direct += plain > 0 ? 0 : 1;
          break;
        case 3:
          if (direct > 0) {
            mode.DropDirect();
            --direct;
          }
          break;
        case 4:
          stale = !mode.ChangedBesideCache();  // true: the caller invalidates
          break;
        default:
          stale = stale || direct > 0;  // a store through a mapping of the backing file
      }
      ASSERT_FALSE(plain > 0 && direct > 0);
    }
  }
}

}  // namespace
}  // namespace pmirror::fs
