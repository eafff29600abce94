// SPDX-License-Identifier: BSD-3-Clause
// RTLD_NEXT, and for libraries that were loaded apart (dlopen with RTLD_LOCAL) their own handle.
#include "interpose/next_call.h"

#include <dlfcn.h>

#include <array>
#include <atomic>

namespace pmirror::interpose {
namespace {

struct Row {
  const char* name;
  Library library;
};

#define INTERCEPTED(name, library) Row{#name, Library::library},
#define LEFT_ALONE(name, reason)
constexpr Row kRows[] = {
#include "interpose/calls.def"
};
#undef INTERCEPTED
#undef LEFT_ALONE

constinit std::array<std::atomic<void*>, static_cast<size_t>(Call::kCount)> g_addresses{};

}  // namespace

void* AddressIn(Library library, const char* name) {
  if (void* found = ::dlsym(RTLD_NEXT, name); found != nullptr) {
    return found;
  }
  if (library == Library::kLibc) {
    return nullptr;
  }
  void* loaded =
      ::dlopen(library == Library::kLibpmem ? "libpmem.so.1" : "libpmem2.so.1", RTLD_LAZY | RTLD_NOLOAD);
  if (loaded == nullptr) {
    return nullptr;
  }
  void* found = ::dlsym(loaded, name);
  ::dlclose(loaded);  // the program keeps it loaded: it has just called it
  return found;
}

void* NextAddress(Call call) {
  std::atomic<void*>& cached = g_addresses[static_cast<size_t>(call)];
  void* address = cached.load(std::memory_order_relaxed);
  if (address == nullptr) {
    const Row& row = kRows[static_cast<size_t>(call)];
    address = AddressIn(row.library, row.name);
    cached.store(address, std::memory_order_relaxed);
  }
  return address;
}

void WarmUp() {
  for (size_t i = 0; i < g_addresses.size(); ++i) {
    if (kRows[i].library == Library::kLibc) {
      NextAddress(static_cast<Call>(i));
    }
  }
}

}  // namespace pmirror::interpose
