// SPDX-License-Identifier: BSD-3-Clause
// What the file system must know of programs when they open a file; the client registry implements it.
#pragma once

#include <sys/types.h>

namespace pmirror::fs {

// Thread-safe; called on the path of each open, so it must not block.
class OpenOracle {
 public:
  virtual ~OpenOracle() = default;

  // False when IsAnnounced() would be false for everybody: saves the mapping of thread to process.
  virtual bool AnyAnnounced() const = 0;

  // True when process `tgid` runs the preload library and has said so.
  virtual bool IsAnnounced(pid_t tgid) const = 0;
};

}  // namespace pmirror::fs
