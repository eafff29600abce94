// SPDX-License-Identifier: BSD-3-Clause
// Comparison of two inventories: each attribute that differs is one difference, by path.
#include "recovery/tree_compare.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <functional>

namespace pmirror::recovery {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TreeItem File(std::string path, uint64_t id, uint64_t size = 10) {
  TreeItem item;
  item.path = std::move(path);
  item.id = FileId{id};
  item.mode = S_IFREG | 0644;
  item.size = size;
  item.links = 1;
  return item;
}

TEST(TreeCompareTest, EqualTreesHaveNoDifference) {
  const Inventory tree{File("a", 2), File("b", 3)};
  EXPECT_THAT(CompareTrees(tree, tree), IsEmpty());
}

TEST(TreeCompareTest, NamesOfOneSideAreMissingOrExtraInTheOrderOfPaths) {
  EXPECT_THAT(
      CompareTrees({File("a", 2), File("c", 4), File("d", 5)}, {File("b", 3), File("c", 4), File("e", 6)}),
      ElementsAre(Difference{"a", What::kMissing, {}}, Difference{"b", What::kExtra, {}},
                  Difference{"d", What::kMissing, {}}, Difference{"e", What::kExtra, {}}));
}

struct Change {
  const char* name;
  What what;
  std::function<void(TreeItem&)> make;
};

class TreeCompareAttributeTest : public ::testing::TestWithParam<Change> {};

TEST_P(TreeCompareAttributeTest, OneChangedAttributeIsOneDifference) {
  TreeItem copy = File("f", 2);
  GetParam().make(copy);
  EXPECT_THAT(CompareTrees({File("f", 2)}, {copy}), ElementsAre(Difference{"f", GetParam().what, {}}));
}

INSTANTIATE_TEST_SUITE_P(
    Attributes, TreeCompareAttributeTest,
    ::testing::Values(Change{"Id", What::kId, [](TreeItem& i) { i.id = FileId{9}; }},
                      Change{"Type", What::kType, [](TreeItem& i) { i.mode = S_IFDIR | 0644; }},
                      Change{"Mode", What::kMode, [](TreeItem& i) { i.mode ^= 1; }},
                      Change{"User", What::kOwner, [](TreeItem& i) { i.uid = 1; }},
                      Change{"Group", What::kOwner, [](TreeItem& i) { i.gid = 1; }},
                      Change{"Size", What::kSize, [](TreeItem& i) { i.size = 11; }},
                      Change{"Xattr", What::kXattr, [](TreeItem& i) { i.xattr_crc = 1; }},
                      Change{"Target", What::kTarget, [](TreeItem& i) { i.target = "x"; }},
                      Change{"Device", What::kDevice, [](TreeItem& i) { i.rdev = 1; }},
                      Change{"Links", What::kLinks, [](TreeItem& i) { i.links = 2; }}),
    [](const ::testing::TestParamInfo<Change>& test) { return std::string(test.param.name); });

TEST(TreeCompareTest, P5_AnObjectWithoutAnIdOnBothSidesIsNotTakenForEqual) {
  EXPECT_THAT(CompareTrees({File("f", 0)}, {File("f", 0)}), ElementsAre(Difference{"f", What::kId, {}}));
}

TEST(TreeCompareTest, OrphansAreNotCompared) {
  TreeItem orphan = File(".pmirror/orphans/0000000000000009", 9);
  orphan.orphan = true;
  EXPECT_THAT(CompareTrees({File("f", 2)}, {File("f", 2), orphan}), IsEmpty());
}

TEST(TreeCompareTest, ComparableFilesAreThoseOfBothSidesOnceWithTheSmallerSize) {
  TreeItem directory = File("d", 7);
  directory.mode = S_IFDIR | 0755;
  const auto files =
      ComparableFiles({File("a", 2, 100), File("b", 2, 100), File("only", 3), File("none", 0), directory},
                      {File("renamed", 2, 40), File("none", 0), directory});
  ASSERT_EQ(files.size(), 1u);
  EXPECT_EQ(files[0].id, FileId{2});
  EXPECT_EQ(files[0].path, "a");
  EXPECT_EQ(files[0].size, 40u);
}

}  // namespace
}  // namespace pmirror::recovery
