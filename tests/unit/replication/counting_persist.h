// SPDX-License-Identifier: BSD-3-Clause
// For tests of syncs: how often the local copy was made durable, with the result that the test wants.
#pragma once

#include "replication/replicate.h"

namespace pmirror {

class CountingPersist : public LocalPersist {
 public:
  Error Persist() override {
    ++calls;
    return error;
  }
  int calls = 0;
  Error error;
};

}  // namespace pmirror
