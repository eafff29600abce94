// SPDX-License-Identifier: BSD-3-Clause
// How libpmirror finds the preload library in the same process: one exported function that gives a table.
// Both are installed together.
#pragma once

#include "interpose/pmirror.h"

namespace pmirror::interpose {

constexpr int kPreloadTableVersion = 1;

struct PreloadTable {
  int version;
  bool (*active)();                                         // a daemon was found
  int (*flush)(const pmirror_range* ranges, size_t count);  // as pmirror_flush
  int (*error)(const char** what);
  int (*is_replicated)(const void* address, size_t length);
};

}  // namespace pmirror::interpose

extern "C" const pmirror::interpose::PreloadTable* pmirror_preload_entry();
