// SPDX-License-Identifier: BSD-3-Clause
// CLWB, CLFLUSHOPT or CLFLUSH, chosen once.
#include "interpose/cache_flush.h"

#include <cpuid.h>
#include <immintrin.h>

#include <atomic>

namespace pmirror::interpose {
namespace {

constexpr uintptr_t kLine = 64;

enum class Instruction : int { kUnknown = 0, kClflush, kClflushopt, kClwb };

Instruction Detect() {
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) {
    return Instruction::kClflush;
  }
  return (b & (1u << 24)) != 0   ? Instruction::kClwb
         : (b & (1u << 23)) != 0 ? Instruction::kClflushopt
                                 : Instruction::kClflush;
}

Instruction Best() {
  static constinit std::atomic<Instruction> best{Instruction::kUnknown};
  Instruction found = best.load(std::memory_order_relaxed);
  if (found == Instruction::kUnknown) {
    found = Detect();
    best.store(found, std::memory_order_relaxed);
  }
  return found;
}

__attribute__((target("clwb"))) void Clwb(uintptr_t line) { _mm_clwb(reinterpret_cast<void*>(line)); }
__attribute__((target("clflushopt"))) void Clflushopt(uintptr_t line) {
  _mm_clflushopt(reinterpret_cast<void*>(line));
}

}  // namespace

void FlushCaches(uintptr_t address, size_t length) {
  const Instruction best = Best();
  for (uintptr_t line = address & ~(kLine - 1); line < address + length; line += kLine) {
    if (best == Instruction::kClwb) {
      Clwb(line);
    } else if (best == Instruction::kClflushopt) {
      Clflushopt(line);
    } else {
      _mm_clflush(reinterpret_cast<const void*>(line));
    }
  }
}

void DrainCaches() { _mm_sfence(); }

}  // namespace pmirror::interpose
