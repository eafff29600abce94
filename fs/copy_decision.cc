// SPDX-License-Identifier: BSD-3-Clause
#include "fs/copy_decision.h"

namespace pmirror::fs {

const char* Explain(CopyDecision decision) {
  switch (decision) {
    case CopyDecision::kNew:
      return "both copies are empty";
    case CopyDecision::kContinue:
      return "both copies left the last mount cleanly at the same operation";
    case CopyDecision::kReplay:
      return "the copy lacks only what the primary still holds";
    case CopyDecision::kNeedsCompare:
      return "the last mount did not end cleanly, so the copies may differ anywhere and have to be compared";
    case CopyDecision::kNeedsCopy:
      return "the copy is empty and the primary is not: it has to be filled";
    case CopyDecision::kForeign:
      return "the copy is of another history; choose which one to keep and empty the other's backing "
             "directory";
  }
  return "unknown";
}

}  // namespace pmirror::fs
