// SPDX-License-Identifier: BSD-3-Clause
// What is planned for each way in which a copy's tree can differ. That plans work on real trees is shown by
// tests/unit/server/tree_plan_applied_test.cc.
#include "recovery/tree_plan.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <string>

namespace pmirror::recovery {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using Texts = std::vector<std::string>;

constexpr OpTime kTime{1000, 1};

TreeItem Item(std::string path, uint64_t id, uint32_t mode) {
  TreeItem item;
  item.path = std::move(path);
  item.id = FileId{id};
  item.mode = mode;
  item.atime = item.mtime = kTime;
  return item;
}
TreeItem Root() { return Item("", 1, S_IFDIR | 0755); }
TreeItem File(std::string path, uint64_t id) { return Item(std::move(path), id, S_IFREG | 0644); }
TreeItem Directory(std::string path, uint64_t id) { return Item(std::move(path), id, S_IFDIR | 0755); }
TreeItem Symlink(std::string path, uint64_t id, std::string target) {
  TreeItem item = Item(std::move(path), id, S_IFLNK | 0777);
  item.target = std::move(target);
  return item;
}
TreeItem Device(std::string path, uint64_t id, uint64_t rdev) {
  TreeItem item = Item(std::move(path), id, S_IFCHR | 0600);
  item.rdev = rdev;
  return item;
}
// As the walk of a copy finds it.
TreeItem Parked(TreeItem item) {
  item.path = fmt::format(".pmirror/orphans/{:016x}", Raw(item.id));
  item.orphan = true;
  return item;
}
// As a primary holds it open.
TreeItem Open(uint64_t id) {
  TreeItem item = File("", id);
  item.orphan = true;
  return item;
}
TreeItem With(TreeItem item, void (*change)(TreeItem&)) {
  change(item);
  return item;
}

// "create 10 1/a", "unlink! 10 1/a" (! stands for kOpOrphaned), "set_xattr 10 user.a", "truncate 10 5".
std::string Text(const NamespaceOp& op) {
  std::string text =
      fmt::format("{}{} {}", Name(op.kind), op.flags == kOpOrphaned ? "!" : "", Raw(op.target));
  switch (op.kind) {
    case OpKind::kCreate:
    case OpKind::kLink:
    case OpKind::kUnlink:
    case OpKind::kRemoveDirectory:
      return fmt::format("{} {}/{}", text, Raw(op.parent), op.name);
    case OpKind::kSetXattr:
    case OpKind::kRemoveXattr:
      return fmt::format("{} {}", text, op.name);
    case OpKind::kSetMode:
      return fmt::format("{} {:o}", text, op.mode);
    case OpKind::kSetOwner:
      return fmt::format("{} {}:{} {:o}", text, op.uid, op.gid, op.mode);
    case OpKind::kTruncate:
      return fmt::format("{} {}", text, op.extent.offset);
    default:
      return text;
  }
}

// The plan for trees that have a root besides what is given. Times are left out where a test is not about
// them.
enum class Times { kHidden, kShown };
Texts Plan(Inventory original, Inventory copy, Times times = Times::kHidden) {
  original.insert(original.begin(), Root());
  copy.insert(copy.begin(), Root());
  const TreePlan plan = PlanTree(original, copy);
  EXPECT_THAT(plan.obstacles, IsEmpty());
  Texts texts;
  for (const NamespaceOp& op : plan.operations) {
    EXPECT_EQ(op.generation, 0u);
    if (op.kind != OpKind::kSetTimes || times == Times::kShown) {
      texts.push_back(Text(op));
    }
  }
  return texts;
}

std::vector<Difference> Obstacles(Inventory original, Inventory copy) {
  original.insert(original.begin(), Root());
  copy.insert(copy.begin(), Root());
  TreePlan plan = PlanTree(original, copy);
  EXPECT_TRUE(plan.obstacles.empty() || plan.operations.empty());
  return plan.obstacles;
}

TEST(TreePlanTest, EqualTreesNeedNothing) {
  const Inventory tree{Directory("d", 2), File("d/f", 3), File("d/g", 3), Symlink("s", 4, "x"),
                       Device("z", 5, 7)};
  EXPECT_THAT(Plan(tree, tree, Times::kShown), IsEmpty());
}

TEST(TreePlanTest, MissingObjectsAreCreatedFromTheRootDownwardsWithEverythingTheyAre) {
  Inventory original{Root(),
                     With(Directory("d", 2), [](TreeItem& i) { i.uid = 5; }),
                     With(File("d/f", 3),
                          [](TreeItem& i) {
                            i.size = 9;
                            i.xattrs = {{"user.a", "1"}};
                          }),
                     File("d/g", 3),
                     Symlink("d/s", 4, "to"),
                     Device("d/z", 5, 77)};
  const std::vector<NamespaceOp> ops = PlanTree(original, {Root()}).operations;
  Texts texts;
  for (const NamespaceOp& op : ops) {
    texts.push_back(Text(op));
  }
  EXPECT_THAT(texts, ElementsAre("create 2 1/d", "create 3 2/f", "truncate 3 9", "set_xattr 3 user.a",
                                 "set_times 3", "link 3 2/g", "create 4 2/s", "set_times 4", "create 5 2/z",
                                 "set_times 5", "set_times 1", "set_times 2"));
  EXPECT_EQ(ops[0].uid, 5u);
  EXPECT_EQ(ops[0].mode, S_IFDIR | 0755u);
  EXPECT_EQ(ops[4].atime, kTime);
  EXPECT_EQ(ops[4].mtime, kTime);
  EXPECT_EQ(ops[6].value, "to");
  EXPECT_EQ(ops[8].rdev, 77u);
}

TEST(TreePlanTest, ARemovedTreeGoesDeepestFirst) {
  EXPECT_THAT(
      Plan({}, {Directory("d", 2), Directory("d/e", 3), File("d/e/f", 4), File("d/g", 5)}),
      ElementsAre("unlink 5 2/g", "unlink 4 3/f", "remove_directory 3 2/e", "remove_directory 2 1/d"));
}

TEST(TreePlanTest, WhatLivesOnIsTakenOutOfARemovedTreeFirst) {
  EXPECT_THAT(Plan({File("f", 4)}, {Directory("d", 2), File("d/f", 4)}),
              ElementsAre("unlink! 4 2/f", "remove_directory 2 1/d", "link 4 1/f"));
}

TEST(TreePlanTest, HardLinksComeAndGoWithoutParking) {
  EXPECT_THAT(Plan({File("a", 2), File("b", 2)}, {File("a", 2), File("c", 2)}),
              ElementsAre("unlink 2 1/c", "link 2 1/b"));
}

TEST(TreePlanTest, AnObjectThatKeepsNoneOfItsNamesIsParkedOnce) {
  EXPECT_THAT(Plan({File("a", 2), File("b", 2)}, {File("x", 2), File("y", 2)}),
              ElementsAre("unlink! 2 1/y", "unlink 2 1/x", "link 2 1/a", "link 2 1/b"));
}

TEST(TreePlanTest, TwoNamesAreSwapped) {
  EXPECT_THAT(Plan({File("a", 2), File("b", 3)}, {File("a", 3), File("b", 2)}),
              ElementsAre("unlink! 2 1/b", "unlink! 3 1/a", "link 2 1/a", "link 3 1/b"));
}

TEST(TreePlanTest, ADirectoryAndItsParentChangePlacesAndTheirContentStays) {
  EXPECT_THAT(Plan({Directory("b", 3), Directory("b/a", 2), File("b/a/f", 4)},
                   {Directory("a", 2), Directory("a/b", 3), File("a/f", 4)}),
              ElementsAre("unlink! 3 2/b", "unlink! 2 1/a", "link 3 1/b", "link 2 3/a"));
}

TEST(TreePlanTest, ANameThatAnotherObjectOccupiesIsFreedFirst) {
  EXPECT_THAT(Plan({File("a", 2)}, {Directory("a", 3), File("a/f", 4)}),
              ElementsAre("unlink 4 3/f", "remove_directory 3 1/a", "create 2 1/a"));
}

TEST(TreePlanTest, WhatCannotBeChangedIsMadeAgain) {
  EXPECT_THAT(Plan({File("a", 2)}, {Directory("a", 2), File("a/f", 4)}),
              ElementsAre("unlink 4 2/f", "remove_directory 2 1/a", "create 2 1/a"));
  EXPECT_THAT(Plan({Directory("a", 2), File("a/f", 4)}, {File("a", 2), File("f", 4)}),
              ElementsAre("unlink! 4 1/f", "unlink 2 1/a", "create 2 1/a", "link 4 2/f"));
  EXPECT_THAT(Plan({Symlink("a", 2, "new")}, {Symlink("a", 2, "old")}),
              ElementsAre("unlink 2 1/a", "create 2 1/a"));
  EXPECT_THAT(Plan({Device("a", 2, 1)}, {Device("a", 2, 2), Device("b", 2, 2)}),
              ElementsAre("unlink 2 1/b", "unlink 2 1/a", "create 2 1/a"));
}

TEST(TreePlanTest, SizesAreSetBothWays) {
  EXPECT_THAT(Plan({With(File("a", 2), [](TreeItem& i) { i.size = 5; }), File("b", 3)},
                   {File("a", 2), With(File("b", 3), [](TreeItem& i) { i.size = 5; })}),
              ElementsAre("truncate 2 5", "truncate 3 0"));
}

TEST(TreePlanTest, TheOwnerIsSetWithTheModeThatTheOriginalHasNow) {
  EXPECT_THAT(Plan({With(File("a", 2),
                         [](TreeItem& i) {
                           i.uid = 7;
                           i.mode = S_IFREG | 04755;
                         })},
                   {File("a", 2)}),
              ElementsAre(fmt::format("set_owner 2 7:0 {:o}", S_IFREG | 04755)));
  EXPECT_THAT(Plan({With(File("a", 2), [](TreeItem& i) { i.mode = S_IFREG | 02600; })}, {File("a", 2)}),
              ElementsAre(fmt::format("set_mode 2 {:o}", S_IFREG | 02600)));
}

TEST(TreePlanTest, CapabilitiesThatAnotherChangeTakesAwayAreSetAgain) {
  const auto capable = [](TreeItem& i) { i.xattrs = {{"security.capability", "c"}}; };
  TreeItem grown = With(File("a", 2), capable);
  grown.size = 3;
  EXPECT_THAT(Plan({grown}, {With(File("a", 2), capable)}),
              ElementsAre("truncate 2 3", "set_xattr 2 security.capability"));
}

TEST(TreePlanTest, XattrsAreRemovedChangedAndAdded) {
  EXPECT_THAT(Plan({With(File("a", 2),
                         [](TreeItem& i) {
                           i.xattrs = {{"b", "1"}, {"c", "2"}, {"e", ""}};
                         })},
                   {With(File("a", 2),
                         [](TreeItem& i) {
                           i.xattrs = {{"a", ""}, {"b", "1"}, {"c", "1"}, {"d", ""}};
                         })}),
              ElementsAre("remove_xattr 2 a", "set_xattr 2 c", "remove_xattr 2 d", "set_xattr 2 e"));
}

TEST(TreePlanTest, TheModeIsSetAfterTheAclThatMovesIt) {
  const auto shared = [](TreeItem& i) {
    i.xattrs = {{"system.posix_acl_access", "x"}};
    i.mode = S_IFREG | 0664;
  };
  EXPECT_THAT(
      Plan({With(File("a", 2), shared)}, {File("a", 2)}),
      ElementsAre("set_xattr 2 system.posix_acl_access", fmt::format("set_mode 2 {:o}", S_IFREG | 0664)));
}

TEST(TreePlanTest, NewObjectsDoNotInheritADefaultAcl) {
  const auto acl = [](TreeItem& i) { i.xattrs = {{"system.posix_acl_default", "x"}}; };
  const TreeItem directory = With(Directory("d", 2), acl);
  EXPECT_THAT(Plan({directory, File("d/f", 3), File("d/g", 4)}, {directory}),
              ElementsAre("remove_xattr 2 system.posix_acl_default", "create 3 2/f", "create 4 2/g",
                          "set_xattr 2 system.posix_acl_default"));
}

TEST(TreePlanTest, TimesAreMadeEqualAndDirectoriesComeLast) {
  const auto late = [](TreeItem& i) { i.mtime = {2000, 0}; };
  EXPECT_THAT(Plan({Directory("d", 2), File("d/f", 3), File("d/g", 4), File("h", 5)},
                   {Directory("d", 2), With(File("d/f", 3), late), File("h", 5)}, Times::kShown),
              ElementsAre("set_times 3", "create 4 2/g", "set_times 4", "set_times 2"));
}

TEST(TreePlanTest, StaleOrphansAreForgotten) {
  EXPECT_THAT(Plan({}, {Parked(File("", 2))}), ElementsAre("forget_orphan 2"));
  EXPECT_THAT(Plan({File("a", 2)}, {Parked(Directory("", 2))}),
              ElementsAre("forget_orphan 2", "create 2 1/a"));
}

TEST(TreePlanTest, AnOrphanThatIsNamedOnTheOriginalGetsItsNameBack) {
  EXPECT_THAT(Plan({File("a", 2)}, {Parked(File("", 2))}), ElementsAre("link 2 1/a"));
}

TEST(TreePlanTest, AnObjectAmongTheOrphansAndInTheTreeIsOnlyInTheTree) {
  EXPECT_THAT(Plan({File("a", 2)}, {File("a", 2), Parked(File("", 2))}), ElementsAre("forget_orphan 2"));
  EXPECT_THAT(Plan({File("b", 2)}, {File("a", 2), Parked(File("", 2))}),
              ElementsAre("unlink 2 1/a", "link 2 1/b"));
}

TEST(TreePlanTest, AParkedDirectoryComesBackWithItsContent) {
  TreeItem inside = File(".pmirror/orphans/0000000000000002/f", 3);
  EXPECT_THAT(Plan({Directory("d", 2), File("d/f", 3)}, {Parked(Directory("", 2)), inside}),
              ElementsAre("link 2 1/d"));
  EXPECT_THAT(Plan({}, {Parked(Directory("", 2)), inside}), ElementsAre("unlink 3 2/f", "forget_orphan 2"));
}

TEST(TreePlanTest, OpenOrphansOfTheOriginalAreMadeKeptAndTurnedInto) {
  EXPECT_THAT(Plan({Open(2)}, {}), ElementsAre("create_orphan 2"));
  EXPECT_THAT(Plan({Open(2)}, {Parked(File("", 2))}), IsEmpty());
  EXPECT_THAT(Plan({Open(2)}, {File("a", 2), File("b", 2)}), ElementsAre("unlink! 2 1/b", "unlink 2 1/a"));
  TreeItem grown = Open(2);
  grown.size = 4;
  EXPECT_THAT(Plan({grown}, {}), ElementsAre("create_orphan 2", "truncate 2 4"));
}

TEST(TreePlanTest, AnOrphanOfTheOriginalThatHasANameCountsAsNamed) {
  EXPECT_THAT(Plan({File("a", 2), Open(2)}, {}), ElementsAre("create 2 1/a"));
  EXPECT_THAT(Plan({File("a", 2), Open(2)}, {File("a", 2)}), IsEmpty());
}

TEST(TreePlanTest, WhatTheOriginalHasInItsOwnDirectoryIsNoPartOfIt) {
  EXPECT_THAT(Plan({Parked(Directory("", 2)), File(".pmirror/orphans/0000000000000002/f", 3)}, {}),
              IsEmpty());
}

TEST(TreePlanTest, ObjectsWithoutAnIdAreObstaclesOnBothSides) {
  EXPECT_THAT(Obstacles({File("a", 0)}, {}), ElementsAre(Difference{"a", What::kId, {}}));
  EXPECT_THAT(Obstacles({File("b", 3)}, {Directory("a", 0), File("a/f", 2)}),
              ElementsAre(Difference{"a", What::kId, {}}, Difference{"a/f", What::kId, {}}));
}

TEST(TreePlanTest, AnIdOfTwoObjectsIsAnObstacle) {
  EXPECT_THAT(Obstacles({Directory("a", 2), Directory("b", 2)}, {}),
              ElementsAre(Difference{"b", What::kId, {}}));
  EXPECT_THAT(Obstacles({}, {File("a", 2), Symlink("b", 2, "x")}),
              ElementsAre(Difference{"b", What::kId, {}}));
  TreeItem wrong = Parked(File("", 2));
  wrong.id = FileId{3};
  EXPECT_THAT(Obstacles({}, {wrong}), ElementsAre(Difference{wrong.path, What::kId, {}}));
}

TEST(TreePlanTest, CreationsThatACrashCutAreNoObstacles) {
  const std::string id = std::to_string(uint64_t{1} << 63);
  const TreeItem file = Item("f", 0, S_IFREG);
  EXPECT_THAT(Plan({}, {file}), ElementsAre("create " + id + " 1/f", "unlink " + id + " 1/f"));
  EXPECT_THAT(Plan({}, {Item("d", 0, S_IFDIR | 02000)}),
              ElementsAre("create " + id + " 1/d", "remove_directory " + id + " 1/d"));
  TreeItem orphan = file;
  orphan.path = ".pmirror/orphans/0000000000000002";
  orphan.orphan = true;
  EXPECT_THAT(Plan({Open(2)}, {orphan}), ElementsAre("forget_orphan 2", "create_orphan 2"));

  TreeItem stored = file;
  stored.size = 1;
  EXPECT_THAT(Obstacles({}, {stored}), ElementsAre(Difference{"f", What::kId, {}}));
  EXPECT_THAT(Obstacles({}, {Item("d", 0, S_IFDIR), File("d/f", 2)}),
              ElementsAre(Difference{"d", What::kId, {}}, Difference{"d/f", What::kId, {}}));
}

// Quadratic work would take hours.
TEST(TreePlanTest, LargeTreesArePlannedInLinearTime) {
  constexpr uint64_t kCount = 300'000;
  Inventory original{Root()};
  Inventory copy{Root()};
  for (uint64_t id = 10; id < 10 + kCount; ++id) {
    const bool directory = id % 1000 == 10;
    const std::string inside = directory ? "" : fmt::format("d{}/", id - (id - 10) % 1000);
    original.push_back(directory ? Directory(fmt::format("d{}", id), id)
                                 : File(fmt::format("{}f{}", inside, id), id));
    copy.push_back(directory ? Directory(fmt::format("d{}", id), id)
                             : File(fmt::format("{}g{}", inside, id), id));
  }
  EXPECT_EQ(PlanTree(original, copy).operations.size(), 2 * (kCount - kCount / 1000) + kCount);
}

}  // namespace
}  // namespace pmirror::recovery
