// SPDX-License-Identifier: BSD-3-Clause
// What the programs of this node have stored to a volume's files through mappings and not yet brought to the replicas, as the engine asks
// for it (trap 4). The registry of programs implements it (client_registry.h).
#pragma once

#include <cstdint>

#include "fs/extent_set.h"
#include "replication/types.h"

namespace pmirror::fs {

// A process that runs the preload library, from its hello to the end of its main connection; never used twice, unlike a pid.
enum class ProcessSerial : uint64_t { kNone = 0 };

class ForeignStores {
 public:
  virtual ~ForeignStores() = default;

  // Adds what any process but `except` has dirty in `range` to `dirty`, clipped to it, and takes it over: written pages are protected again,
  // and whoever called must capture the extents or keep them dirty. Looks at each process's page table first, at its tickets (open and redo)
  // afterwards (docs/internals/capture-order.md, R4). A page table that cannot be scanned counts as all dirty.
  // Requires: the caller serialises Take of one file, and has raised kFileDaemonDirty of the file before.
  virtual void Take(FileId file, Extent range, ProcessSerial except, ExtentSet& dirty) = 0;

  // False only when at some moment during the call no process had anything dirty in `range`. Changes nothing.
  virtual bool Any(FileId file, Extent range) = 0;

  // Syncs of programs that succeeded so far.
  virtual uint64_t Syncs() const = 0;
};

}  // namespace pmirror::fs
