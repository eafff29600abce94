// SPDX-License-Identifier: BSD-3-Clause
// The table of mappings against a plain map of pages, and readers beside a writer.
#include "interpose/mapping_table.h"

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <random>
#include <thread>
#include <vector>

namespace pmirror::interpose {
namespace {

constexpr size_t kP = kPageSize;

Mapping At(uintptr_t page, size_t pages, uint64_t file_page, uint32_t file = 1, uint32_t flags = kMapShared) {
  return {.address = page * kP, .length = pages * kP, .offset = file_page * kP, .file = file, .flags = flags};
}

class MappingTableTest : public ::testing::Test {
 protected:
  std::unique_ptr<MappingTable> table_ = std::make_unique<MappingTable>();
  Mapping found_;
};

TEST_F(MappingTableTest, EmptyTableFindsNothing) {
  EXPECT_TRUE(table_->empty());
  EXPECT_FALSE(table_->Find(5 * kP, found_));
  EXPECT_FALSE(table_->Next(0, found_));
}

TEST_F(MappingTableTest, FindsByAnyAddressInside) {
  ASSERT_TRUE(table_->Insert(At(10, 4, 7)));
  EXPECT_FALSE(table_->Find(10 * kP - 1, found_));
  ASSERT_TRUE(table_->Find(13 * kP + 17, found_));
  EXPECT_EQ(found_.OffsetOf(13 * kP + 17), 10 * kP + 17);
  EXPECT_FALSE(table_->Find(14 * kP, found_));
}

TEST_F(MappingTableTest, PartialRemovalKeepsBothEnds) {
  ASSERT_TRUE(table_->Insert(At(10, 10, 0)));
  ASSERT_TRUE(table_->Remove(13 * kP, 15 * kP));
  EXPECT_EQ(table_->size(), 2u);
  ASSERT_TRUE(table_->Find(12 * kP, found_));
  EXPECT_EQ(found_.end(), 13 * kP);
  EXPECT_FALSE(table_->Find(14 * kP, found_));
  ASSERT_TRUE(table_->Find(15 * kP, found_));
  EXPECT_EQ(found_.offset, 5 * kP);
}

TEST_F(MappingTableTest, NeighboursThatContinueEachOtherAreOne) {
  ASSERT_TRUE(table_->Insert(At(10, 2, 0)));
  ASSERT_TRUE(table_->Insert(At(14, 2, 4)));
  ASSERT_TRUE(table_->Insert(At(12, 2, 2)));
  EXPECT_EQ(table_->size(), 1u);
  ASSERT_TRUE(table_->Insert(At(16, 2, 100)));  // another place of the file
  ASSERT_TRUE(table_->Insert(At(8, 2, 0, 2)));  // another file
  EXPECT_EQ(table_->size(), 3u);
}

TEST_F(MappingTableTest, FlagsOfAPartSplitAndJoinAgain) {
  ASSERT_TRUE(table_->Insert(At(10, 10, 0)));
  ASSERT_TRUE(table_->SetFlags(12 * kP, 14 * kP, kMapStored, 0));
  EXPECT_EQ(table_->size(), 3u);
  ASSERT_TRUE(table_->Find(12 * kP, found_));
  EXPECT_EQ(found_.flags, kMapShared | kMapStored);
  ASSERT_TRUE(table_->SetFlags(12 * kP, 14 * kP, 0, kMapStored));
  EXPECT_EQ(table_->size(), 1u);
}

TEST_F(MappingTableTest, FullTableRefusesAndIsUnchanged) {
  for (size_t i = 0; i < kMaxMappings; ++i) {
    ASSERT_TRUE(table_->Insert(At(10 + 10 * i, 5, 0)));
  }
  EXPECT_FALSE(table_->Insert(At(1, 1, 0)));
  EXPECT_FALSE(table_->Remove(12 * kP, 13 * kP));
  EXPECT_EQ(table_->size(), kMaxMappings);
}

TEST_F(MappingTableTest, AnyHistoryMatchesAMapOfPages) {
  std::mt19937 random(11);
  std::map<uintptr_t, std::pair<uint64_t, uint32_t>> pages;  // page -> (file page, flags)
  for (int step = 0; step < 5000; ++step) {
    const uintptr_t start = 1 + random() % 200;
    const size_t count = 1 + random() % 20;
    table_->Remove(start * kP, (start + count) * kP);
    const uint64_t offset = random() % 3 == 0 ? start : random() % 1000;
    const int kind = static_cast<int>(random() % 3);
    if (kind == 0) {
      ASSERT_TRUE(table_->Insert(At(start, count, offset)));
    }
    for (uintptr_t page = start; page < start + count; ++page) {
      pages.erase(page);
      if (kind == 0) {
        pages[page] = {offset + page - start, kMapShared};
      }
    }
    if (kind == 1) {
      const uintptr_t other = 1 + random() % 200;
      ASSERT_TRUE(table_->SetFlags(other * kP, (other + count) * kP, kMapStored, 0));
      for (uintptr_t page = other; page < other + count; ++page) {
        if (pages.contains(page)) {
          pages[page].second |= kMapStored;
        }
      }
    }
    for (uintptr_t page = 0; page < 230; ++page) {
      const auto expected = pages.find(page);
      ASSERT_EQ(table_->Find(page * kP, found_), expected != pages.end()) << page;
      if (expected != pages.end()) {
        ASSERT_EQ(found_.OffsetOf(page * kP), expected->second.first * kP);
        ASSERT_EQ(found_.flags, expected->second.second);
      }
    }
  }
}

TEST_F(MappingTableTest, ReadersBesideAWriterSeeWholeEntries) {
  std::atomic<bool> stop{false};
  ASSERT_TRUE(table_->Insert(At(1000, 4, 1000, 1)));
  std::vector<std::thread> readers;
  readers.reserve(2);
  std::atomic<int> wrong{0};
  for (int i = 0; i < 2; ++i) {
    readers.emplace_back([&] {
      while (!stop) {
        Mapping found;
        if (!table_->Find(1001 * kP, found) ||
            found.offset != found.address) {  // every entry maps page n at page n
          ++wrong;
        }
      }
    });
  }
  for (int step = 0; step < 20000; ++step) {
    const uintptr_t page = 1 + static_cast<uintptr_t>(step) % 500;
    table_->Insert(At(page, 1, page, 2));
    table_->Remove(page * kP, (page + 1) * kP);
  }
  stop = true;
  for (std::thread& reader : readers) {
    reader.join();
  }
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace pmirror::interpose
