// SPDX-License-Identifier: BSD-3-Clause
// Descriptor calls of programs that close or overwrite what they did not open (trap 14). For them our
// descriptors do not exist.
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include "interpose/next_call.h"
#include "interpose/own_descriptors.h"
#include "interpose/runtime.h"

#ifndef CLOSE_RANGE_UNSHARE
#define CLOSE_RANGE_UNSHARE 2
#endif

namespace pmirror::interpose {
namespace {

// Applies `close_some(first, last)` to what is not ours of [first, last]. Stops at the first failure.
template <typename CloseSome>
int AroundOurs(unsigned first, unsigned last, CloseSome&& close_some) {
  for (;;) {
    const int own =
        first <= static_cast<unsigned>(INT32_MAX) ? own_descriptors().NextOwned(static_cast<int>(first)) : -1;
    if (own < 0 || static_cast<unsigned>(own) > last) {
      return close_some(first, last);
    }
    const auto at = static_cast<unsigned>(own);
    if (at > first && close_some(first, at - 1) != 0) {
      return -1;
    }
    if (at == last) {
      return 0;
    }
    first = at + 1;
  }
}

// Makes `fd`, if it is one of ours, the program's to overwrite.
void MakeRoomAt(int fd) {
  if (!own_descriptors().Owns(fd)) {
    return;
  }
  const int saved_errno = errno;
  const OwnDescriptors::Vacated vacated = own_descriptors().Vacate(fd);
  Runtime* runtime = Runtime::Get();
  if (vacated.session && runtime != nullptr) {
    runtime->volume(vacated.tag / pmirror::kMaxReplicas).Disconnect(vacated.tag % pmirror::kMaxReplicas);
  }
  errno = saved_errno;
}

int Refuse(int error) {
  errno = error;
  return -1;
}

}  // namespace

// The parameters' names in libc's headers are reserved ones.
// NOLINTBEGIN(readability-inconsistent-declaration-parameter-name)
extern "C" {

int close(int fd) {
  if (own_descriptors().Owns(fd)) {
    return Refuse(EBADF);
  }
  return Next(Call::k_close, &::close)(fd);
}

int close_range(unsigned first, unsigned last, int flags) noexcept {
  const auto real = Next(Call::k_close_range, &::close_range);
  if (first > last || (flags & ~CLOSE_RANGE_UNSHARE) !=
                          0) {  // ours are close-on-exec already; bad arguments are the kernel's to refuse
    return real(first, last, flags);
  }
  return AroundOurs(first, last, [&](unsigned from, unsigned to) { return real(from, to, flags); });
}

void closefrom(int first) noexcept {
  const auto real = Next(Call::k_close_range, &::close_range);
  AroundOurs(static_cast<unsigned>(first < 0 ? 0 : first), ~0u, [&](unsigned from, unsigned to) {
    if (to == ~0u) {
      Next(Call::k_closefrom, &::closefrom)(static_cast<int>(from));
      return 0;
    }
    return real(from, to, 0);
  });
}

int dup2(int from, int to) noexcept {
  if (own_descriptors().Owns(from)) {
    return Refuse(EBADF);
  }
  if (from != to && ::fcntl(from, F_GETFD) >= 0) {  // a call that will fail moves nothing
    MakeRoomAt(to);
  }
  return Next(Call::k_dup2, &::dup2)(from, to);
}

int dup3(int from, int to, int flags) noexcept {
  if (own_descriptors().Owns(from)) {
    return Refuse(EBADF);
  }
  if (from != to && (flags & ~O_CLOEXEC) == 0 && ::fcntl(from, F_GETFD) >= 0) {
    MakeRoomAt(to);
  }
  return Next(Call::k_dup3, &::dup3)(from, to, flags);
}
}
// NOLINTEND(readability-inconsistent-declaration-parameter-name)

}  // namespace pmirror::interpose
