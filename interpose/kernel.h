// SPDX-License-Identifier: BSD-3-Clause
// The system calls that pmirror takes over, straight to the kernel: never through our own interposition,
// usable before any constructor. errno as libc's.
#pragma once

#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>

namespace pmirror::interpose::kernel {

inline void* Mmap(void* address, size_t length, int protection, int flags, int fd, off_t offset) {
  return reinterpret_cast<void*>(::syscall(SYS_mmap, address, length, protection, flags, fd, offset));
}
inline int Munmap(uintptr_t address, size_t length) {
  return static_cast<int>(::syscall(SYS_munmap, address, length));
}
inline void* Mremap(void* old, size_t old_size, size_t new_size, int flags, void* target) {
  return reinterpret_cast<void*>(::syscall(SYS_mremap, old, old_size, new_size, flags, target));
}
inline int Mprotect(uintptr_t address, size_t length, int protection) {
  return static_cast<int>(::syscall(SYS_mprotect, address, length, protection));
}
inline int Madvise(uintptr_t address, size_t length, int advice) {
  return static_cast<int>(::syscall(SYS_madvise, address, length, advice));
}
inline int Msync(uintptr_t address, size_t length, int flags) {
  return static_cast<int>(::syscall(SYS_msync, address, length, flags));
}

}  // namespace pmirror::interpose::kernel
