// SPDX-License-Identifier: BSD-3-Clause
// Optimized flushes: ranges named by the program, no scan. A flush only remembers its range, with its thread;
// the drain captures all of them, one frame with a barrier (per file): N flushes and a drain cost about one
// round trip. Async-signal-safe, no allocation. The list is the thread's own: flushes of one thread are
// drained by that thread, as with the CPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "interpose/describe_volume.h"
#include "interpose/runtime.h"
#include "interpose/thread_state.h"
#include "replication/result.h"

namespace pmirror::interpose {

// Whether any of the range is a replicated mapping whose stores reach the file.
bool IsReplicated(Runtime& runtime, uintptr_t address, size_t length);

// Remembers a range for the next Drain. A full list is drained at once: its error is returned.
Error Flush(Runtime& runtime, uintptr_t address, size_t length);

// What this thread has flushed is durable here and on every in-sync replica. On an error the ranges are gone
// from the list.
Error Drain(Runtime& runtime);
bool NothingToDrain();

// These ranges, at once; sorts them in place. Ranges outside our mappings are passed over. On an error `place` says
// where. Requires: at most kMaxFlushed.
Error FlushNow(Runtime& runtime, std::span<FlushedRange> ranges, ErrorPlace& place);

// The same, and then compared with what the replicas read back. Requires also: at most kMaxVerified bytes. Errors as
// MappedFile::CaptureVerified.
constexpr size_t kMaxVerified = 512 << 10;
Error FlushVerified(Runtime& runtime, std::span<FlushedRange> ranges, ErrorPlace& place);

// For the void functions: SIGBUS when it failed (P6). What failed is remembered by Flush and Drain.
void RaiseOnError(const Error& error, const void* address);

// FlushNow, all or nothing on each replica. EXDEV: in several files; E2BIG: more than one frame holds, which kMaxGroup bytes
// never are.
constexpr size_t kMaxGroup = kGroupBytes;
Error FlushGroup(Runtime& runtime, std::span<FlushedRange> ranges, ErrorPlace& place);

}  // namespace pmirror::interpose
