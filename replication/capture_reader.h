// SPDX-License-Identifier: BSD-3-Clause
// The daemon's half of a capture log (capture_log.h): takes out what lies before a cut. Used by one thread at a time; allocates.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "replication/capture_log.h"

namespace pmirror {

class CaptureReader {
 public:
  // The memory is zero at first. Makes it ready for writers.
  static void Initialise(CaptureLogMemory& memory);

  explicit CaptureReader(CaptureLogMemory& memory) : memory_(memory) {}

  struct Capture {
    FileId file{};
    uint64_t number = 0;
    std::span<const WireRange> ranges;
    std::span<const std::byte> payload;
  };
  // One pass: hands out the captures below `cut`, in no order, revokes what is not committed, and gives back rooms. The spans lie in memory of the
  // reader's own, until the next call. Requires: `cut` was announced and published (docs/internals/rpo.md). False: the log is not as a writer
  // leaves it; nothing more can be said of what is in it.
  bool Pass(uint64_t cut, const std::function<void(const Capture&)>& take);

  // Share of the ring that is in use, 0 to 1.
  double fill() const;

 private:
  enum class Found { kNothing, kCapture, kFault };
  Found Look(uint32_t number, uint64_t cut);
  bool Release();

  CaptureLogMemory& memory_;
  Capture capture_;
  std::vector<std::byte> copy_;  // of a room: the process may go on writing to it
};

}  // namespace pmirror
