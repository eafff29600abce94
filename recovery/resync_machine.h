// SPDX-License-Identifier: BSD-3-Clause
// The course of one resync of one replica, as a state machine without I/O (docs/internals/resync.md): says what is to be done next, and is
// told what came of it. A step that fails ends the resync; the next one begins anew, which finds equal what has been brought over already.
//
// Not thread-safe. The shell is fs/resync_runner.h, in the simulation tests/sim.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "recovery/block_checksums.h"
#include "replication/types.h"

namespace pmirror::recovery {

struct FileInDoubt {
  FileId id = FileId::kNone;
  uint64_t size = 0;  // bytes, about: for the progress that is shown
};

struct ResyncCounts {
  uint64_t files = 0;
  uint64_t files_done = 0;
  uint64_t bytes = 0;  // to compare, about
  uint64_t bytes_compared = 0;
  uint64_t bytes_sent = 0;
};

class ResyncMachine {
 public:
  enum class Step {
    kBegin,       // the replica says of itself that it is a mixture
    kChangeTree,  // its tree becomes ours, as of an operation
    kJoin,        // its session is connected, and every sync sends to it from here on
    kListFiles,   // the files that may differ: Listed()
    kCompare,     // action().extent of action().file in blocks of action().block: Compared() or Gone()
    kSend,        // action().extent of action().file: Sent() or Gone()
    kEnd,         // everything is durable there, and the copy whole
    kAdmit,       // it is a member of the in-sync set
    kDone,
  };
  struct Action {
    Step step = Step::kBegin;
    FileId file = FileId::kNone;
    Extent extent;
    uint32_t block = 0;
  };

  static constexpr uint64_t kChunk = 64 << 20;        // bytes of one question
  static constexpr uint32_t kCoarseBlock = 64 << 10;  // of the first look
  static constexpr uint32_t kFineBlock = 4 << 10;     // of the second: what is sent
  static constexpr uint64_t kLongestSend = 4 << 20;   // bytes; a pause for others can come between two

  const Action& action() const { return action_; }
  const ResyncCounts& counts() const { return counts_; }

  // The step was done. Requires: it is none of those that have a call of their own.
  void Done();
  void Listed(std::vector<FileInDoubt> files);
  // `differing`: as DifferingBlocks gives them. `size`: of our file now.
  void Compared(const std::vector<Extent>& differing, uint64_t size);
  void Sent();
  // The file has left the volume.
  void Gone();

 private:
  void GoTo(Step step);
  void NextFile();
  void NextPart();

  Action action_;
  ResyncCounts counts_;
  std::deque<FileInDoubt> files_;  // those to come
  uint64_t next_offset_ = 0;       // of the file at hand: where the first look goes on
  uint64_t size_ = 0;
  std::deque<Extent> suspects_;  // for the second look
  std::deque<Extent> to_send_;
};

const char* Name(ResyncMachine::Step step);

// The blocks of `extent` that may differ, adjacent ones joined, within our file's size. Both were asked for the same extent and block.
std::vector<Extent> DifferingBlocks(const BlockChecksums& ours, const BlockChecksums& theirs, Extent extent,
                                    uint32_t block);

}  // namespace pmirror::recovery
