// SPDX-License-Identifier: BSD-3-Clause
// How libpmirror finds the preload library in the same process: one exported function that gives a table.
// Both are installed together.
#pragma once

#include "interpose/pmirror.h"

namespace pmirror::interpose {

constexpr int kPreloadTableVersion = 2;

struct PreloadTable {
  int version;
  bool (*active)();                                         // a daemon was found
  int (*flush)(const pmirror_range* ranges, size_t count);  // as pmirror_flush
  int (*flush_verify)(const pmirror_range* ranges, size_t count);
  int (*flush_atomic)(const pmirror_range* ranges, size_t count);
  int (*error)(const char** what);
  void (*error_info)(pmirror_error_info* info);  // all of it but `size`
  int (*is_replicated)(const void* address, size_t length);
  // All of it but `size`; 0 or an errno.
  int (*attributes)(const void* address, pmirror_attributes* out);
  int (*volume_of)(const void* address);  // a number that only this volume has; -1: not replicated
  const char* (*socket_path)();           // of the local daemon
};

}  // namespace pmirror::interpose

extern "C" const pmirror::interpose::PreloadTable* pmirror_preload_entry();
