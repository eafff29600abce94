// SPDX-License-Identifier: BSD-3-Clause
#include "recovery/resync_machine.h"

#include <algorithm>
#include <cassert>
#include <utility>

namespace pmirror::recovery {
namespace {

using Step = ResyncMachine::Step;

Step After(Step step) {
  switch (step) {
    case Step::kBegin:
      return Step::kChangeTree;
    case Step::kChangeTree:
      return Step::kJoin;
    case Step::kJoin:
      return Step::kListFiles;
    case Step::kEnd:
      return Step::kAdmit;
    default:
      return Step::kDone;
  }
}

}  // namespace

void ResyncMachine::Done() {
  assert(action_.step != Step::kListFiles && action_.step != Step::kCompare && action_.step != Step::kSend);
  GoTo(After(action_.step));
}

void ResyncMachine::GoTo(Step step) {
  action_ = {};
  action_.step = step;
}

void ResyncMachine::Listed(std::vector<FileInDoubt> files) {
  assert(action_.step == Step::kListFiles);
  files_.assign(files.begin(), files.end());
  counts_.files = files_.size();
  for (const FileInDoubt& file : files_) {
    counts_.bytes += file.size;
  }
  NextFile();
}

void ResyncMachine::NextFile() {
  suspects_.clear();
  to_send_.clear();
  if (files_.empty()) {
    GoTo(Step::kEnd);
    return;
  }
  const FileInDoubt file = files_.front();
  files_.pop_front();
  next_offset_ = kChunk;
  size_ = file.size;
  action_ = {.step = Step::kCompare, .file = file.id, .extent = {0, kChunk}, .block = kCoarseBlock};
}

void ResyncMachine::Compared(const std::vector<Extent>& differing, uint64_t size) {
  assert(action_.step == Step::kCompare);
  size_ = size;
  const bool first_look = action_.block == kCoarseBlock;
  if (first_look) {
    const uint64_t end = std::min(size, action_.extent.end());
    counts_.bytes_compared += end > action_.extent.offset ? end - action_.extent.offset : 0;
  }
  std::deque<Extent>& found = first_look ? suspects_ : to_send_;
  const uint64_t longest = first_look ? kChunk : kLongestSend;
  for (Extent extent : differing) {
    for (; extent.length > longest; extent = {extent.offset + longest, extent.length - longest}) {
      found.push_back({extent.offset, longest});
    }
    found.push_back(extent);
  }
  NextPart();
}

void ResyncMachine::Sent() {
  assert(action_.step == Step::kSend);
  counts_.bytes_sent += action_.extent.length;
  NextPart();
}

void ResyncMachine::Gone() {
  assert(action_.step == Step::kCompare || action_.step == Step::kSend);
  ++counts_.files_done;
  NextFile();
}

// Of the file at hand: what is known to differ goes first, so that little is remembered.
void ResyncMachine::NextPart() {
  const FileId file = action_.file;
  if (!to_send_.empty()) {
    action_ = {.step = Step::kSend, .file = file, .extent = to_send_.front(), .block = 0};
    to_send_.pop_front();
  } else if (!suspects_.empty()) {
    action_ = {.step = Step::kCompare, .file = file, .extent = suspects_.front(), .block = kFineBlock};
    suspects_.pop_front();
  } else if (next_offset_ < size_) {
    action_ = {.step = Step::kCompare, .file = file, .extent = {next_offset_, kChunk}, .block = kCoarseBlock};
    next_offset_ += kChunk;
  } else {
    ++counts_.files_done;
    NextFile();
  }
}

const char* Name(Step step) {
  switch (step) {
    case Step::kBegin:
    case Step::kChangeTree:
      return "tree";
    case Step::kJoin:
    case Step::kListFiles:
    case Step::kCompare:
    case Step::kSend:
      return "data";
    case Step::kEnd:
    case Step::kAdmit:
    case Step::kDone:
      return "end";
  }
  return "end";
}

std::vector<Extent> DifferingBlocks(const BlockChecksums& ours, const BlockChecksums& theirs, Extent extent,
                                    uint32_t block) {
  std::vector<Extent> differing;
  const uint64_t shorter = std::min(ours.size, theirs.size);
  for (size_t i = 0; i < ours.sums.size(); ++i) {
    const uint64_t begin = extent.offset + i * uint64_t{block};
    const uint64_t end = std::min({begin + block, extent.end(), ours.size});
    if (begin >= end) {
      break;
    }
    // A block in which one of the files ends was summed over less of it there.
    const bool whole_in_both = ours.size == theirs.size || end <= shorter;
    if (whole_in_both && i < theirs.sums.size() && theirs.sums[i] == ours.sums[i]) {
      continue;
    }
    if (!differing.empty() && differing.back().end() == begin) {
      differing.back().length += end - begin;
    } else {
      differing.push_back({begin, end - begin});
    }
  }
  return differing;
}

}  // namespace pmirror::recovery
