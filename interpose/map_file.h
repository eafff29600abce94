// SPDX-License-Identifier: BSD-3-Clause
// Making and unmaking mappings of replicated files. All under the runtime's map lock (taken inside unless
// said otherwise). Results and errno as the system calls they stand for.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>

#include "interpose/runtime.h"

namespace pmirror::interpose {

// mmap(2) of a regular file of `volume`: maps the backing file instead, tracked and announced.
void* MapFile(Runtime& runtime, Volume& volume, void* hint, size_t length, int protection, int flags, int fd,
              off_t offset);

// mmap(2) of anything else with MAP_FIXED over our mappings.
void* MapOver(Runtime& runtime, void* address, size_t length, int protection, int flags, int fd,
              off_t offset);

// munmap(2), mremap(2) of ranges that overlap our mappings.
int UnmapRange(Runtime& runtime, uintptr_t address, size_t length);
void* RemapRange(Runtime& runtime, uintptr_t old, size_t old_size, size_t new_size, int flags, void* target);

// --- for the parts of this and process.cc; the map lock is held ---

// Starts tracking a new mapping as well as it can be proven; sets mapping.tracking.
void Track(Runtime& runtime, Mapping& mapping, bool populate_after);
// Says kMapped for it.
Error TellMapped(Runtime& runtime, const Mapping& mapping);
// Announces it and puts it into the table. On an error nothing is there.
Error AddMapping(Runtime& runtime, const Mapping& mapping);

enum class Leaving {
  kUnmap,  // stores from now on are errors of the program: they are kept out
  kStay,   // the mapping stays usable (exec, exit): only what is dirty is told
};
// Tells the daemon that our mappings in the range are going, with what is dirty in them.
void HandOver(Runtime& runtime, uintptr_t start, uintptr_t past, Leaving leaving);
// Takes them out of the table, and returns when nobody copies from them any more.
void Forget(Runtime& runtime, uintptr_t start, uintptr_t past);

}  // namespace pmirror::interpose
