// SPDX-License-Identifier: BSD-3-Clause
// FileState::Capture of fs/file_state.h, for the simulated daemon.
#pragma once

#include "tests/sim/daemon.h"

namespace pmirror::sim {

// What is dirty or under way within a range, and more; without Succeeded() it is dirty again.
class Daemon::Capture {
 public:
  Capture(Daemon& daemon, FileId file, Extent range, const fs::ExtentSet& more)
      : daemon_(daemon), file_(file) {
    FileState& state = daemon.State(file);
    extents_ = state.dirty.Within(range);
    for (const Extent& extent : extents_.extents()) {
      state.dirty.Remove(extent);
    }
    for (const auto& [number, set] : state.under_way) {
      extents_.Add(set.Within(range));
    }
    extents_.Add(more);
    number_ = ++state.captures;
    state.under_way[number_] = extents_;
    daemon.UpdateFlag(file);
  }
  ~Capture() {
    FileState& state = daemon_.State(file_);
    state.under_way.erase(number_);
    if (!succeeded_ && !state.gone) {
      state.dirty.Add(extents_);
    }
    daemon_.UpdateFlag(file_);
  }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  const fs::ExtentSet& extents() const { return extents_; }
  void Succeeded() { succeeded_ = true; }

 private:
  Daemon& daemon_;
  const FileId file_;
  uint64_t number_ = 0;
  fs::ExtentSet extents_;
  bool succeeded_ = false;
};

}  // namespace pmirror::sim
