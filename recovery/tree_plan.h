// SPDX-License-Identifier: BSD-3-Clause
// Plans how one copy's tree becomes another's (docs/internals/resync.md, phase 2). Pure.
// ---
// For maintainers. An object is known by its id, a name is an entry of a directory that is known by its id.
// The plan has four parts:
//
//   1. What a crash left half made (without an id) is removed.
//   2. Every name that the original does not have is taken away, the deepest first. An object that is to live
//      and loses its last name so is parked among the orphans, a directory with all that is in it.
//   3. Every name that the copy lacks is given, from the root downwards: to an object that is new, that is
//      parked, or that has other names. Non-directories get their attributes at once.
//   4. Directories get their attributes, and their times last: all changes inside them are behind.
//
// Why that is enough: after part 2 the copy has no entry that the original has not, so that no name is
// occupied by another object, and no directory to be removed has content. In part 3 a directory whose turn it
// is has ancestors that are all in their final place, so that nothing is ever moved into its own descendant.
// Swaps, cycles of names and directories that change places with their parents are no special cases.
//
// After any number of its operations the copy is again a tree with orphans, of which an inventory can be
// taken and a plan made. A crash in the middle of an operation leaves what NamespaceApplier says, and part 1
// knows it.
//
// Time and memory: linear in the size of both inventories.
#pragma once

#include <vector>

#include "recovery/tree_compare.h"
#include "recovery/tree_item.h"
#include "replication/namespace_op.h"

namespace pmirror::recovery {

struct TreePlan {
  // To be applied by server/namespace_applier.h in this order. Generations are 0. kUnlink with kOpOrphaned
  // may name a directory, and kForgetOrphan an empty one.
  std::vector<NamespaceOp> operations;
  // What stands in the way: objects without an id on either side (kId), because no operation can reach them;
  // ids that name two objects (kId). While there are any, `operations` is empty: the caller gives ids to the
  // original's, has the copy's removed, and begins again with new inventories. What a crash of
  // NamespaceApplier left half made on the copy is no obstacle.
  std::vector<Difference> obstacles;
};

// Turns `copy` into `original`: names, types, modes, owners, xattrs, symlink targets, devices, sizes, times.
// The data of files are not looked at.
//
// Requires: both of InventoryDetail::kFull, with their root. Orphans that the original holds are items with
// `orphan` set and an empty path, regular files; what its inventory found in its own .pmirror is not part of
// it and is ignored. An orphan that has also a name counts as named. Orphans of the copy that the original
// does not have are removed.
//
// Modification times are made equal wherever they differ, access times only together with them. Times of
// stores are not replicated, so that a copy that took part for long costs one kSetTimes a file.
TreePlan PlanTree(const Inventory& original, const Inventory& copy);

}  // namespace pmirror::recovery
