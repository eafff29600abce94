// SPDX-License-Identifier: BSD-3-Clause
// Plans of recovery::PlanTree, applied to real backing directories: any tree becomes any other, also when the
// daemon dies in between. A seed that fails is in the message; PMIRROR_TREE_SEED=N runs that one alone.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/unit/server/random_tree.h"

namespace pmirror::server {
namespace {

// First and last seed; a seed costs 2.5 ms, one of kCrashEverywhere a hundred.
struct Seeds {
  uint64_t first;
  uint64_t last;
};
constexpr Seeds kNoCrash{1, 1200};
constexpr Seeds kCrashSomewhere{1201, 2400};
constexpr Seeds kCrashEverywhere{2401, 2440};

// Plans and applies the first `count` operations. The plan is returned.
recovery::TreePlan Apply(const Inventory& original, Copy& copy, size_t count = SIZE_MAX) {
  recovery::TreePlan plan = recovery::PlanTree(original, copy.Take(InventoryDetail::kFull));
  EXPECT_EQ(Describe(plan.obstacles), "");
  for (size_t at = 0; at < plan.operations.size() && at < count; ++at) {
    const NamespaceOp& op = plan.operations[at];
    EXPECT_EQ(copy.Apply(op), 0) << "operation " << at << " " << Name(op.kind) << " " << Raw(op.target)
                                 << " in " << Raw(op.parent) << " " << op.name;
  }
  return plan;
}

template <typename Test>
void ForEach(Seeds seeds, Test test) {
  if (const char* const chosen = std::getenv("PMIRROR_TREE_SEED"); chosen != nullptr) {
    seeds.first = seeds.last = std::strtoull(chosen, nullptr, 10);
  }
  for (uint64_t seed = seeds.first; seed <= seeds.last && !testing::Test::HasFailure(); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    test(seed);
  }
}

TEST(TreePlanApplied, AnyTreeBecomesAnyOther) {
  size_t operations = 0;
  size_t pairs = 0;
  ForEach(kNoCrash, [&](uint64_t seed) {
    Copy original;
    Copy copy;
    Grower(seed, Grower::Role::kOriginal, original).Grow();
    Grower(seed, Grower::Role::kCopy, copy).Grow();
    const Inventory wanted = TakeOriginal(original);
    operations += Apply(wanted, copy).operations.size();
    ExpectEqual(wanted, copy);
    EXPECT_EQ(copy.indexed(), original.indexed());
    ++pairs;
  });
  EXPECT_GE(operations, pairs == 1 ? 0 : 10 * pairs) << "the trees are too much alike to prove anything";
}

// The daemon dies behind operation `count` of the plan, or in the middle of the next.
void CrashAndGoOn(uint64_t seed, const Inventory& wanted, size_t count, Half half) {
  SCOPED_TRACE("crash behind operation " + std::to_string(count) + ", half " +
               std::to_string(static_cast<int>(half)));
  Copy copy;
  Grower(seed, Grower::Role::kCopy, copy).Grow();
  const recovery::TreePlan plan = Apply(wanted, copy, count);
  if (half != Half::kNothing && count < plan.operations.size() &&
      (plan.operations[count].kind == OpKind::kCreate ||
       plan.operations[count].kind == OpKind::kCreateOrphan)) {
    copy.HalfCreate(plan.operations[count], half);
  }
  copy.Restart();
  Apply(wanted, copy);
  ExpectEqual(wanted, copy);
}

TEST(TreePlanApplied, ACrashAtARandomPlaceIsNoObstacleToTheNextPlan) {
  ForEach(kCrashSomewhere, [&](uint64_t seed) {
    Copy original;
    Grower(seed, Grower::Role::kOriginal, original).Grow();
    Dice dice(seed);
    const size_t count = dice.Below(60);
    CrashAndGoOn(seed, TakeOriginal(original), count, static_cast<Half>(dice.Below(3)));
  });
}

TEST(TreePlanApplied, ACrashAtEveryPlaceIsNoObstacleToTheNextPlan) {
  ForEach(kCrashEverywhere, [&](uint64_t seed) {
    Copy original;
    Copy copy;
    Grower(seed, Grower::Role::kOriginal, original).Grow();
    Grower(seed, Grower::Role::kCopy, copy).Grow();
    const Inventory wanted = TakeOriginal(original);
    const size_t operations = Apply(wanted, copy).operations.size();
    for (size_t count = 0; count < operations && !testing::Test::HasFailure(); ++count) {
      CrashAndGoOn(seed, wanted, count, static_cast<Half>(count % 3));
    }
  });
}

}  // namespace
}  // namespace pmirror::server
