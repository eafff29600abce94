// SPDX-License-Identifier: BSD-3-Clause
// libpmem's flushes. Ranges outside replicated mappings, and calls that libpmem makes to itself, go to the
// real function alone.
#include <cerrno>

#include "interpose/flush.h"
#include "interpose/next_call.h"
#include "interpose/pmem_calls.h"
#include "interpose/sync.h"

namespace pmirror::interpose {
namespace {

uintptr_t Number(const void* address) { return reinterpret_cast<uintptr_t>(address); }

// A call of the real library: what it calls of itself meanwhile is left to it.
class InsideReal {
 public:
  InsideReal() { ++thread_state().inside_pmem; }
  ~InsideReal() { --thread_state().inside_pmem; }
  InsideReal(const InsideReal&) = delete;
  InsideReal& operator=(const InsideReal&) = delete;
};

// The runtime when the range is replicated and the call is the program's own; else null.
Runtime* Concerned(const void* address, size_t length) {
  Runtime* runtime = Runtime::Get();
  if (runtime == nullptr || thread_state().inside_pmem != 0 || runtime->maps().empty() || length == 0 ||
      !IsReplicated(*runtime, Number(address), length)) {
    return nullptr;
  }
  return runtime;
}

void Persist(Runtime& runtime, const void* address, size_t length) {
  Error result = Flush(runtime, Number(address), length);
  if (result.ok()) {
    result = Drain(runtime);
  }
  RaiseOnError(result, address);
}

// After a copy of the real library's: the flush and the drain it implied.
void AfterCopy(Runtime* runtime, const void* to, size_t length, unsigned flags) {
  if (runtime == nullptr || (flags & kPmemNoFlush) != 0) {
    return;
  }
  if ((flags & kPmemNoDrain) != 0) {
    RaiseOnError(Flush(*runtime, Number(to), length), to);
  } else {
    Persist(*runtime, to, length);
  }
}

void DrainAll(const void* blame) {
  Runtime* runtime = Runtime::Get();
  if (runtime != nullptr && thread_state().inside_pmem == 0 && !NothingToDrain()) {
    RaiseOnError(Drain(*runtime), blame);
  }
}

template <typename Function, typename... Arguments>
auto Real(Call call, Function* function, Arguments... arguments) {
  const InsideReal inside;
  return Next(call, function)(arguments...);
}

}  // namespace

// The parameters' names in libc's headers are reserved ones.
// NOLINTBEGIN(readability-inconsistent-declaration-parameter-name)
extern "C" {

void pmem_persist(const void* address, size_t length) {
  if (Runtime* runtime = Concerned(address, length); runtime != nullptr) {
    return Persist(*runtime, address, length);
  }
  Real(Call::k_pmem_persist, &::pmem_persist, address, length);
}

void pmem_flush(const void* address, size_t length) {
  if (Runtime* runtime = Concerned(address, length); runtime != nullptr) {
    return RaiseOnError(Flush(*runtime, Number(address), length), address);
  }
  Real(Call::k_pmem_flush, &::pmem_flush, address, length);
}

void pmem_drain() {
  Real(Call::k_pmem_drain, &::pmem_drain);
  DrainAll(nullptr);
}

// msync of the pages, and as durable as that.
int pmem_msync(const void* address, size_t length) {
  return Next(Call::k_pmem_msync, &::pmem_msync)(address, length);  // its msync reaches ours
}

void pmem_deep_flush(const void* address, size_t length) {
  Real(Call::k_pmem_deep_flush, &::pmem_deep_flush, address, length);
  if (Runtime* runtime = Concerned(address, length); runtime != nullptr) {
    RaiseOnError(Flush(*runtime, Number(address), length), address);
  }
}

int pmem_deep_drain(const void* address, size_t length) {
  const int result = Real(Call::k_pmem_deep_drain, &::pmem_deep_drain, address, length);
  Runtime* runtime = Runtime::Get();
  if (runtime == nullptr || thread_state().inside_pmem != 0 || NothingToDrain()) {
    return result;
  }
  if (const Error drained = Drain(*runtime); !drained.ok()) {
    errno = ErrnoOf(drained);
    return -1;
  }
  return result;
}

int pmem_deep_persist(const void* address, size_t length) {
  const int result = Real(Call::k_pmem_deep_persist, &::pmem_deep_persist, address, length);
  Runtime* runtime = Concerned(address, length);
  if (runtime == nullptr || result != 0) {
    return result;
  }
  Error replicated = Flush(*runtime, Number(address), length);
  if (replicated.ok()) {
    replicated = Drain(*runtime);
  }
  if (!replicated.ok()) {
    errno = ErrnoOf(replicated);
    return -1;
  }
  return result;
}

void* pmem_memmove(void* to, const void* from, size_t length, unsigned flags) {
  Real(Call::k_pmem_memmove, &::pmem_memmove, to, from, length, flags);
  AfterCopy(Concerned(to, length), to, length, flags);
  return to;
}

void* pmem_memcpy(void* to, const void* from, size_t length, unsigned flags) {
  Real(Call::k_pmem_memcpy, &::pmem_memcpy, to, from, length, flags);
  AfterCopy(Concerned(to, length), to, length, flags);
  return to;
}

void* pmem_memset(void* to, int value, size_t length, unsigned flags) {
  Real(Call::k_pmem_memset, &::pmem_memset, to, value, length, flags);
  AfterCopy(Concerned(to, length), to, length, flags);
  return to;
}

void* pmem_memmove_persist(void* to, const void* from, size_t length) {
  Real(Call::k_pmem_memmove_persist, &::pmem_memmove_persist, to, from, length);
  AfterCopy(Concerned(to, length), to, length, 0);
  return to;
}

void* pmem_memcpy_persist(void* to, const void* from, size_t length) {
  Real(Call::k_pmem_memcpy_persist, &::pmem_memcpy_persist, to, from, length);
  AfterCopy(Concerned(to, length), to, length, 0);
  return to;
}

void* pmem_memset_persist(void* to, int value, size_t length) {
  Real(Call::k_pmem_memset_persist, &::pmem_memset_persist, to, value, length);
  AfterCopy(Concerned(to, length), to, length, 0);
  return to;
}

void* pmem_memmove_nodrain(void* to, const void* from, size_t length) {
  Real(Call::k_pmem_memmove_nodrain, &::pmem_memmove_nodrain, to, from, length);
  AfterCopy(Concerned(to, length), to, length, kPmemNoDrain);
  return to;
}

void* pmem_memcpy_nodrain(void* to, const void* from, size_t length) {
  Real(Call::k_pmem_memcpy_nodrain, &::pmem_memcpy_nodrain, to, from, length);
  AfterCopy(Concerned(to, length), to, length, kPmemNoDrain);
  return to;
}

void* pmem_memset_nodrain(void* to, int value, size_t length) {
  Real(Call::k_pmem_memset_nodrain, &::pmem_memset_nodrain, to, value, length);
  AfterCopy(Concerned(to, length), to, length, kPmemNoDrain);
  return to;
}

// With eADR a program may skip its flushes, and with them the only sign of what it has finished storing.
int pmem_has_auto_flush() {
  return Runtime::Get() != nullptr ? 0 : Next(Call::k_pmem_has_auto_flush, &::pmem_has_auto_flush)();
}
}
// NOLINTEND(readability-inconsistent-declaration-parameter-name)

}  // namespace pmirror::interpose
